"""The command that takes hyperopt-mongo-worker's options: when it stops, what a signal does, where objectives run."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from hyperfarm.mongoexp import MongoTrials
from hyperfarm.store import Store
from hyperfarm.worker.supervisor import Supervisor, WorkerOptions
from tests.support import descendants, eventually, gone

COMMAND = str(Path(sys.executable).with_name("hyperfarm-mongo-worker"))
QUICK = ("--poll-interval=0.1",)
BOTH = pytest.mark.parametrize("how", [(), ("--no-subprocesses",)], ids=["subprocesses", "in process"])


def good(spec: Any, ctrl: Any) -> dict[str, Any]:
    import os

    return {"loss": spec["x"], "status": "ok", "pid": os.getpid(), "cwd": os.getcwd()}


def bad(spec: Any, ctrl: Any) -> dict[str, Any]:
    raise ValueError("no good")


def slow(spec: Any, ctrl: Any) -> dict[str, Any]:
    import time
    from pathlib import Path

    Path(spec["flag"]).touch()
    while not Path(spec["flag"] + ".go").exists():
        time.sleep(0.02)
    return {"loss": 1.0, "status": "ok"}


cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture
def trials(mongo_url: str) -> Iterator[MongoTrials]:
    made = MongoTrials(mongo_url, exp_key="k")
    yield made
    made.handle.conn.close()


def queue(trials: MongoTrials, *functions: Any, key: str = "k", x: Any = 3.0, **vals: Any) -> list[int]:
    tids = trials.new_trial_ids(len(functions))
    docs = []
    for tid, function in zip(tids, functions, strict=True):
        point = {"x": x, **vals}
        misc = {"tid": tid, "cmd": ["cpickled fn", cloudpickle.dumps(function)], "workdir": None}
        misc |= {
            "idxs": {name: [tid] for name in point},
            "vals": {name: [one] for name, one in point.items()},
        }
        docs += trials.new_trial_docs([tid], [None], [{"status": "new"}], [misc])
        docs[-1]["exp_key"] = key
    trials._insert_trial_docs(docs)
    return tids


def address(trials: MongoTrials) -> str:
    host, port = trials.handle.conn.address
    return f"--mongo={host}:{port}/{trials.handle.db.name}"


def serve(trials: MongoTrials, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    words = [COMMAND, address(trials), *QUICK, *options]
    return subprocess.run(
        words, cwd=folder, capture_output=True, text=True, timeout=100, stdin=subprocess.DEVNULL, check=False
    )


@contextlib.contextmanager
def serving(trials: MongoTrials, folder: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    words = [COMMAND, address(trials), *QUICK, *options]
    process = subprocess.Popen(
        words, cwd=folder, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, start_new_session=True
    )
    try:
        yield process
    finally:
        for pid in [process.pid, *descendants(process.pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.communicate()


def states(trials: MongoTrials) -> list[int]:
    return [doc["state"] for doc in trials.handle.jobs.find(sort=[("tid", 1)])]


@BOTH
def test_max_jobs(trials: MongoTrials, tmp_path: Path, how: tuple[str, ...]) -> None:
    queue(trials, good, good, good)
    done = serve(trials, tmp_path, "--max-jobs=2", *how)
    assert done.returncode == 0, done.stderr
    assert states(trials) == [2, 2, 0]
    pids = {doc["result"]["pid"] for doc in trials.handle.jobs.find({"state": 2})}
    assert len(pids) == (1 if how else 2), "a process for every job, or one for all"


@BOTH
def test_a_single_job(trials: MongoTrials, tmp_path: Path, how: tuple[str, ...]) -> None:
    queue(trials, good, bad)
    assert serve(trials, tmp_path, "--max-jobs=1", *how).returncode == 0
    assert serve(trials, tmp_path, "--max-jobs=1", *how).returncode == 1, "as the original, for job scripts"
    assert states(trials) == [2, 3]
    done = serve(trials, tmp_path, "--max-jobs=1", "--reserve-timeout=0.5", *how)
    assert done.returncode == 1
    assert "no job came within 0.5 s" in done.stderr
    assert "Traceback" not in done.stderr


@BOTH
def test_reserve_timeouts_and_failures_in_a_row(
    trials: MongoTrials, tmp_path: Path, how: tuple[str, ...]
) -> None:
    queue(trials, bad, good, bad, bad, good)
    done = serve(trials, tmp_path, "--max-consecutive-failures=2", *how)
    assert done.returncode == 0
    assert "2 failures in a row" in done.stderr
    assert states(trials) == [3, 2, 3, 3, 0]
    began = time.monotonic()
    done = serve(trials, tmp_path, "--reserve-timeout=0.6", "--max-consecutive-failures=3", *how)
    assert states(trials)[-1] == 2
    assert "3 failures in a row" in done.stderr
    assert 1.8 <= time.monotonic() - began < 30


@BOTH
def test_last_job_timeout_and_jobs_in_db(trials: MongoTrials, tmp_path: Path, how: tuple[str, ...]) -> None:
    queue(trials, good)
    done = serve(trials, tmp_path, "--last-job-timeout=1.5", "--reserve-timeout=1", *how)
    assert done.returncode == 0
    assert "1.5 s have passed" in done.stderr
    assert states(trials) == [2]
    queue(trials, good)
    done = serve(trials, tmp_path, "--max-jobs-in-db=2", *how)
    assert done.returncode == 0
    assert "the database holds 2 jobs" in done.stderr
    assert states(trials) == [2, 0]


@BOTH
def test_exp_key_and_workdir(trials: MongoTrials, tmp_path: Path, how: tuple[str, ...]) -> None:
    queue(trials, good, key="other")
    queue(trials, good)
    folder = tmp_path / "work"
    done = serve(trials, tmp_path, "--exp-key=k", "--max-jobs=1", f"--workdir={folder}", *how)
    assert done.returncode == 0, done.stderr
    assert states(trials) == [0, 2]
    assert trials.handle.jobs.find_one({"state": 2})["result"]["cwd"] == str(folder)


@BOTH
def test_usr1_lets_the_running_job_finish(trials: MongoTrials, tmp_path: Path, how: tuple[str, ...]) -> None:
    flag = tmp_path / "flag"
    queue(trials, slow, slow, flag=str(flag))
    with serving(trials, tmp_path, *how) as process:
        eventually(flag.exists, "the job runs")
        process.send_signal(signal.SIGUSR1)
        process.send_signal(signal.SIGUSR1)
        (tmp_path / "flag.go").touch()
        assert process.wait(30) == 0
    assert states(trials) == [2, 0]


@BOTH
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_other_signals_give_the_job_back(
    trials: MongoTrials, tmp_path: Path, how: tuple[str, ...], number: signal.Signals
) -> None:
    """The original leaves it running for ever."""
    flag = tmp_path / "flag"
    queue(trials, slow, flag=str(flag))
    with serving(trials, tmp_path, *how) as process:
        eventually(flag.exists, "the job runs")
        family = descendants(process.pid)
        process.send_signal(number)
        assert process.wait(20) == 0
        eventually(lambda: gone(family), "nothing is left of it")
    job = trials.handle.jobs.find_one()
    assert (job["state"], job["owner"], job["attempt"]) == (0, None, 0)


def test_an_unsigned_job_is_not_run_and_said_so(trials: MongoTrials, tmp_path: Path) -> None:
    queue(trials, good)
    trials.handle.jobs.update_one({}, {"$unset": {"cmd_signature": ""}})
    for how in ((), ("--no-subprocesses",)):
        done = serve(trials, tmp_path, "--max-jobs=1", "--reserve-timeout=0.6", *how)
        assert done.returncode == 1
        assert "--trust-unsigned runs them" in done.stderr
        assert states(trials) == [0]
        done = serve(trials, tmp_path, "--max-jobs=1", "--trust-unsigned", *how)
        assert done.returncode == 0, done.stderr
        assert states(trials) == [2]
        trials.handle.jobs.update_many({}, {"$set": {"state": 0, "owner": None}, "$unset": {"lease": ""}})


def test_a_command_that_was_changed_is_refused(trials: MongoTrials, tmp_path: Path) -> None:
    queue(trials, good, bad)
    [first, second] = trials.handle.jobs.find(sort=[("tid", 1)])
    trials.handle.jobs.delete_one({"_id": second["_id"]})
    trials.handle.jobs.update_one({"_id": first["_id"]}, {"$set": {"misc.cmd": second["misc"]["cmd"]}})
    done = serve(trials, tmp_path, "--max-jobs=1", "--reserve-timeout=0.6")
    assert "--trust-unsigned runs them" in done.stderr
    assert states(trials) == [0]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--mongo=mongo://h:1"], "mongo://host:port/database/jobs"),
        (["--mongo=127.0.0.1:1/db"], "no MongoDB answers"),
        (["--max-jobs=none"], "--max-jobs is none; it must be a number"),
        (["--max-jobs=0"], "--max-jobs is 0; it must be a number, 1 or more"),
        (["--poll-interval=-1"], "--poll-interval is -1"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path: Path, options: list[str], told: str) -> None:
    done = subprocess.run([COMMAND, *options], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_in_the_place_of_the_original(tmp_path: Path, trials: MongoTrials) -> None:
    """`hyperfarm worker --install-shim` writes where this environment's commands lie: tried in one of its own."""
    home = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
    own = next((home / "lib").iterdir()) / "site-packages" / "ours.pth"
    here = Path(sys.executable).parents[1]
    packages = next((here / "lib").glob("python3*")) / "site-packages"
    own.write_text(f"import site; site.addsitedir({str(packages)!r})\n")
    told = subprocess.run(
        [home / "bin" / "python", "-m", "hyperfarm.cli", "worker", "--install-shim"],
        capture_output=True,
        text=True,
        check=True,
    )
    command = home / "bin" / "hyperopt-mongo-worker"
    assert str(command) in told.stdout
    queue(trials, good)
    done = subprocess.run(
        [command, address(trials), "--max-jobs=1", *QUICK],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert states(trials) == [2]


def test_a_rule_to_stop_gives_no_more_time_to_a_worker_that_leaves(store: Store) -> None:
    supervisor = Supervisor(store, WorkerOptions())
    supervisor.leave()
    supervisor.drain(math.inf)  # As when `last_job_timeout` is over at the moment of a second SIGTERM.
    eventually(lambda: supervisor.out_of_time, "it waits for the database no longer", 5)
