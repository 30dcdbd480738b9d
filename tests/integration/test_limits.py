"""What one trial may take: its time and its memory, with all the processes that it has started."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from hyperopt import hp

from hyperfarm import minimize
from hyperfarm.blobs import Blobs
from hyperfarm.cli import cli
from hyperfarm.errors import HyperfarmError
from tests.support import TWO_PARAMETERS, gone, hyperfarm, worker


def script(folder: Path, name: str, text: str) -> str:
    path = folder / f"{name}.py"
    path.write_text(TWO_PARAMETERS + text)
    return str(path)


def seconds_taken(job: dict) -> float:
    return (job["refresh_time"] - job["book_time"]).total_seconds()


def stopped_for(kind: str, jobs: list[dict]) -> list[dict]:
    """The jobs that a limit has stopped; each was tried once and says so everywhere that people look."""
    stopped = [job for job in jobs if job["state"] == 3]
    for job in stopped:
        assert job["error"][0] == kind, job["error"]
        assert (job["attempt"], job.get("history", [])) == (1, []), "it is not tried again"
        assert job["result"] == {"status": "fail"}
        assert "lease" not in job
    return stopped


def test_a_trial_that_runs_too_long_is_stopped_and_the_search_goes_on(mongo_url, store, tmp_path):
    text = """
import time
def objective(p):
    print("as far as", trial.id, flush=True)
    trial.report(loss=0.5, step=1)
    if trial.id == 1:
        time.sleep(600)
    return 1
"""
    path = script(tmp_path, "slow", text)
    hyperfarm(
        *("run", path, "--mongo", mongo_url, "--workers", "1", "--max-evals", "4", "--trial-timeout", "3")
    )
    jobs = store.find_jobs("slow")
    assert [job["state"] for job in jobs] == [2, 3, 2, 2]
    (stopped,) = stopped_for("TrialTimeout", jobs)
    assert "3 s" in stopped["error"][1]
    assert 3 <= seconds_taken(stopped) < 30
    assert b"as far as 1" in Blobs(store.database).read(stopped["log"])
    assert [report["loss"] for report in store.reports(stopped)] == [0.5]
    shown = hyperfarm("show", "slow", "--trial", "1", "--mongo", mongo_url).stdout
    assert "TrialTimeout" in shown
    assert "longer than 3 s" in shown
    assert "as far as 1" in hyperfarm("logs", "slow", "1", "--mongo", mongo_url).stdout


@pytest.mark.parametrize(("of_the_search", "of_the_host"), [("2", "600"), ("600", "2"), (None, "2")])
def test_the_tighter_of_two_limits_counts(of_the_search, of_the_host, mongo_url, store, tmp_path):
    path = script(
        tmp_path,
        "both",
        "import time\ndef objective(p):\n    time.sleep(600 if trial.id else 0)\n    return 1\n",
    )
    options = [] if of_the_search is None else ["--trial-timeout", of_the_search]
    with worker(mongo_url, tmp_path / "w", "--trial-timeout", of_the_host):
        hyperfarm("run", path, "--mongo", mongo_url, "--max-evals", "2", *options)
    (stopped,) = stopped_for("TrialTimeout", store.find_jobs("both"))
    assert "longer than 2 s" in stopped["error"][1]


HANGS = """
import ctypes, multiprocessing, os, re, signal, subprocess, sys, time
JOURNAL = {journal!r}
SLEEP = [sys.executable, "-c", "import time; time.sleep(170)"]

def tell(pid):
    with open(JOURNAL, "a") as out:
        out.write(f"{{trial.id}} {{pid}}\\n")

def loader(queue):
    queue.put(os.getpid())
    time.sleep(600)

def subprocess_():
    tell(subprocess.Popen(SLEEP).pid)

def data_loaders():
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    for _ in range(2):
        context.Process(target=loader, args=(queue,), daemon=True).start()
    for _ in range(2):
        tell(queue.get())

def own_session():
    tell(subprocess.Popen(SLEEP, start_new_session=True).pid)

def deaf():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ignore = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(170)"
    tell(subprocess.Popen([sys.executable, "-c", ignore], start_new_session=True).pid)

def daemon():
    # Its parent is gone and its session is its own: it is nobody's descendant any more.
    away = {{"start_new_session": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}}
    fork = f"import subprocess; print(subprocess.Popen({{SLEEP!r}}, **{{away!r}}).pid)"
    tell(int(subprocess.run([sys.executable, "-c", fork], capture_output=True).stdout))

def in_a_regular_expression():
    re.match(r"(a+)+$", "a" * 60 + "b")

def in_c_with_the_gil():
    ctypes.PyDLL(None).sleep(600)

def objective(p):
    if trial.id == 2:
        return 1
    tell(os.getpid())
    print("hangs", flush=True)
    own_session()
    if trial.id == 1:
        in_c_with_the_gil()
    subprocess_()
    data_loaders()
    deaf()
    daemon()
    in_a_regular_expression()
"""


def test_however_it_hangs_all_its_processes_are_killed(mongo_url, store, tmp_path):
    journal = tmp_path / "journal"
    path = script(tmp_path, "hangs", HANGS.format(journal=str(journal)))
    with worker(mongo_url, tmp_path / "w", "--slots", "2") as host:
        options = ["--max-evals", "3", "--trial-timeout", "8", "--algo", "rand"]
        hyperfarm("run", path, "--mongo", mongo_url, *options)
        jobs = store.find_jobs("hangs")
        assert [job["state"] for job in jobs] == [3, 3, 2]
        blobs = Blobs(store.database)
        for job in stopped_for("TrialTimeout", jobs):
            assert blobs.read(job["log"]).startswith(b"hangs")
        began = [line.split() for line in journal.read_text().splitlines()]
        assert [tid for tid, _ in sorted(began)] == ["0"] * 7 + ["1"] * 2, "all were started in time"
        alive = [(tid, pid) for tid, pid in began if not gone([int(pid)])]
        assert not alive, "the worker lives, and nothing that the stopped trials had started does"
        assert host.poll() is None


MEMORY = """
import os, subprocess, sys, time

def objective(p):
    if trial.id == {hungry}:
        print("takes a lot", flush=True)
        eater = "import time; data = b'x' * (400 << 20); time.sleep(600)"
        subprocess.run([sys.executable, "-c", eater])
    return 1
"""


def test_memory_of_a_trials_subprocess_counts(mongo_url, store, tmp_path):
    path = script(tmp_path, "hungry", MEMORY.format(hungry=0))
    options = ["--workers", "1", "--max-evals", "3", "--trial-memory", "300M"]
    hyperfarm("run", path, "--mongo", mongo_url, *options)
    jobs = store.find_jobs("hungry")
    assert [job["state"] for job in jobs] == [3, 2, 2]
    (stopped,) = stopped_for("TrialMemoryExceeded", jobs)
    assert b"takes a lot" in Blobs(store.database).read(stopped["log"])
    assert "MB" in stopped["error"][1]


def test_a_hosts_own_memory_limit_counts(mongo_url, store, tmp_path):
    path = script(tmp_path, "hungry", MEMORY.format(hungry=0))
    with worker(mongo_url, tmp_path / "w", "--trial-memory", "300M"):
        hyperfarm("run", path, "--mongo", mongo_url, "--max-evals", "2", "--trial-memory", "4G")
    assert len(stopped_for("TrialMemoryExceeded", store.find_jobs("hungry"))) == 1


def test_pages_that_forked_children_share_count_once(mongo_url, store, tmp_path):
    text = """
import os, time
def objective(p):
    data = b"x" * (200 << 20)
    children = []
    for _ in range(4):
        pid = os.fork()
        if pid == 0:
            time.sleep(600)
        children.append(pid)
    time.sleep(2.5)  # Several looks at its memory.
    for pid in children:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    return len(data)
"""
    path = script(tmp_path, "shares", text)
    options = ["--workers", "1", "--max-evals", "1", "--trial-memory", "400M"]
    hyperfarm("run", path, "--mongo", mongo_url, *options)
    (job,) = store.find_jobs("shares")
    assert (job["state"], job.get("error")) == (2, None)


def test_what_earlier_trials_left_in_the_process_is_not_held_against_a_trial(mongo_url, store, tmp_path):
    text = """
import time
KEPT = []
def objective(p):
    KEPT.append(b"x" * (90 << 20))  # As libraries do that never forget: with the third trial it is too much.
    time.sleep(1.2)
    return 1
"""
    path = script(tmp_path, "leaky", text)
    options = ["--workers", "1", "--max-evals", "4", "--trial-memory", "300M"]
    hyperfarm("run", path, "--mongo", mongo_url, *options)
    jobs = store.find_jobs("leaky")
    assert [(job["state"], job.get("error")) for job in jobs] == [(2, None)] * 4
    assert {job["attempt"] for job in jobs} == {1}


def test_minimize_takes_the_same_limits(mongo_url, store):
    def objective(point):
        import time

        from hyperfarm import trial

        if trial.id == 0:
            return bytearray(b"x" * (400 << 20)) and time.sleep(600)
        if trial.id == 1:
            time.sleep(600)
        return point

    minimize(
        objective, hp.uniform("x", 0, 1), max_evals=3, exp_key="both", mongo=mongo_url, workers=1,
        trial_timeout=6, trial_memory="300M", progress=False,
    )  # fmt: skip
    jobs = store.find_jobs("both")
    assert [job["state"] for job in jobs] == [3, 3, 2]
    assert [job["error"][0] for job in jobs[:2]] == ["TrialMemoryExceeded", "TrialTimeout"]
    assert [job["limits"] for job in jobs] == [{"timeout_s": 6, "memory": 300 << 20}] * 3


REFUSED = [
    (["--trial-memory", "lots"], "'lots' is not a size of memory"),
    (["--trial-memory", "0"], "'0' is not a size of memory"),
    (["--trial-memory", "-5M"], "'-5M' is not a size of memory"),
    (["--trial-timeout", "0"], "0.0 is not in the range"),
    (["--trial-timeout", "soon"], "'soon' is not a valid float"),
    (["--trial-timeout", "nan"], "nan"),
    (["--patience", "-1"], "-1.0 is not in the range"),
]
REFUSED_BY_RUN = [
    (["--keep-models", "x"], "keep_models is 'x'; write a number, all, or none"),
    (["--keep-models", "-1"], "keep_models is -1; it must be 0 or more"),
    (["--max-attempts", "0"], "max_attempts is 0; it must be 1 or more"),
]


def refusal(*args: str) -> str:
    """What the command says instead of doing its work; either error is one sentence and exit code 2."""
    with pytest.raises((HyperfarmError, click.UsageError)) as raised:
        cli.main(list(args), standalone_mode=False)
    error = raised.value
    return error.format_message() if isinstance(error, click.UsageError) else str(error)


@pytest.mark.parametrize(("options", "says"), REFUSED + REFUSED_BY_RUN)
def test_a_search_refuses_a_bad_limit(options, says, mongo_url, store, tmp_path):
    path = script(tmp_path, "fine", "def objective(p):\n    return 1\n")
    assert says in refusal("run", path, "--mongo", mongo_url, "--max-evals", "1", *options)
    assert not store.experiments()


@pytest.mark.parametrize(("options", "says"), REFUSED)
def test_a_worker_refuses_a_bad_limit(options, says, mongo_url, monkeypatch):
    monkeypatch.setattr("hyperfarm.worker.supervisor.Supervisor.run", lambda _self: None)
    assert says in refusal("worker", "--mongo", mongo_url, *options)


@pytest.mark.parametrize(
    "options",
    [
        ["--trial-memory", "lots"],
        ["--trial-timeout", "0"],
        ["--keep-models", "x"],
        ["--max-attempts", "0"],
    ],
)
def test_a_refusal_is_one_sentence_and_exit_code_2(options, mongo_url, tmp_path):
    path = script(tmp_path, "fine", "def objective(p):\n    return 1\n")
    refused = hyperfarm("run", path, "--mongo", mongo_url, *options, check=False)
    assert refused.returncode == 2, refused.stdout + refused.stderr
    said = [line for line in refused.stderr.splitlines() if line.startswith(("hyperfarm:", "Error:"))]
    assert len(said) == 1, refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize(
    "wishes", [{"trial_memory": "lots"}, {"trial_timeout": 0}, {"keep_models": "x"}, {"max_attempts": 0}]
)
def test_minimize_refuses_a_bad_limit(wishes, mongo_url):
    with pytest.raises(ValueError, match=r"memory|timeout|keep_models|max_attempts"):
        minimize(abs, hp.uniform("x", 0, 1), max_evals=1, mongo=mongo_url, **wishes)


@pytest.mark.parametrize("timeout", ["10000000", "inf"])
def test_a_limit_that_is_never_reached_does_no_harm(timeout, mongo_url, store, tmp_path):
    path = script(tmp_path, "fine", "def objective(p):\n    return 1\n")
    options = ["--workers", "1", "--max-evals", "1", "--max-attempts", "1", "--trial-timeout", timeout]
    hyperfarm("run", path, "--mongo", mongo_url, *options)
    (job,) = store.find_jobs("fine")
    assert (job["state"], job.get("error")) == (2, None)
