"""What goes wrong around a search: children that die badly, refusals, removal, a database that goes away."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hyperfarm import MongoTrials, embedded
from hyperfarm.store import Store
from tests.support import TWO_PARAMETERS, descendants, eventually, gone, hyperfarm, started, worker


def write(folder: Path, name: str, body: str, top: str = "") -> str:
    script = folder / name
    script.write_text(
        top + TWO_PARAMETERS + "def objective(p):\n" + "".join(f"    {line}\n" for line in body.split("\n"))
    )
    return str(script)


def test_a_child_that_dies_with_a_fork_alive_does_not_hang_its_trial(mongo_url, store, tmp_path):
    script = write(
        tmp_path,
        "forks.py",
        "import os, signal, time\nif os.fork() == 0:\n    time.sleep(600)\nos.kill(os.getpid(), signal.SIGKILL)",
    )
    hyperfarm("run", script, "--mongo", mongo_url, "--workers", "1", "--max-evals", "1")
    (job,) = store.find_jobs("forks")
    assert job["state"] == 3
    assert job["error"][1].count("SIGKILL") == 3


def test_code_that_a_warm_worker_cannot_import_is_refused_once_not_over_and_over(mongo_url, store, tmp_path):
    with worker(mongo_url, tmp_path / "w") as host:
        hyperfarm("run", write(tmp_path, "warm.py", "return 1"), "--mongo", mongo_url, "--max-evals", "1")
        site = tmp_path / "lib" / "site-packages"
        site.mkdir(parents=True)
        (site / "rare_library.py").write_text("")
        script = write(tmp_path, "warm.py", "return 1", top="import rare_library\n")
        options = ["--mongo", mongo_url, "--max-evals", "2", "--extend", "--replace-code"]
        with started("run", script, *options, PYTHONPATH=str(site)) as controller:
            eventually(lambda: [one for doc in store.live_workers() for one in doc["refused"]], "a refusal")
            (job,) = [doc for doc in store.find_jobs("warm") if doc["state"] in (0, 1)]
            # Two starts of a child would take seconds: the version stays as it is after one claim and release.
            deadline = time.monotonic() + 5
            while time.monotonic() < deadline:
                versions = [doc["version"] for doc in store.find_jobs("warm") if doc["tid"] == job["tid"]]
                assert max(versions) <= 4
                time.sleep(0.2)
            controller.terminate()
            assert "rare_library" in controller.communicate(timeout=20)[0]
        host.terminate()


def test_a_broken_connection_while_code_is_read_is_no_refusal(mongo_url, store, tmp_path):
    admin = store.database.client.admin
    script = write(tmp_path, "blip.py", "return 1")
    with started("run", script, "--mongo", mongo_url, "--max-evals", "2") as controller:
        eventually(lambda: store.waiting().exp_keys, "a job waits")
        admin.command(
            "configureFailPoint",
            "failCommand",
            mode={"times": 3},
            data={
                "failCommands": ["find"],
                "closeConnection": True,
                "namespace": f"{store.database.name}.farm.files",
            },
        )
        try:
            with worker(mongo_url, tmp_path / "w"):
                assert controller.wait(60) == 0
        finally:
            admin.command("configureFailPoint", "failCommand", mode="off")


def test_another_hosts_refusal_does_not_end_a_search_with_its_own_worker(mongo_url, store, tmp_path):
    script = write(tmp_path, "mixed.py", "import time\ntime.sleep(0.1)\nreturn 1")
    config = str(tmp_path / "another-config")
    with (
        started("run", script, "--mongo", mongo_url, "--max-evals", "4"),
        worker(mongo_url, tmp_path / "w", HYPERFARM_CONFIG=config),
    ):
        eventually(lambda: [one for doc in store.live_workers() for one in doc["refused"]], "a refusal")
        hyperfarm("run", script, "--mongo", mongo_url, "--max-evals", "4", "--workers", "1")
    assert [doc["state"] for doc in store.find_jobs("mixed")] == [2] * 4


def test_rm_under_a_running_search_leaves_nothing(mongo_url, store, tmp_path):
    script = write(tmp_path, "live.py", "trial.save('a', b'x' * 100000)\nprint('hello')\nreturn 1")
    with (
        worker(mongo_url, tmp_path / "w", "--slots", "3"),
        started("run", script, "--mongo", mongo_url, "--max-evals", "100000", "--algo", "rand") as controller,
    ):
        eventually(lambda: store.jobs.count_documents({"state": 2}) > 20, "twenty trials")
        hyperfarm("rm", "live", "--yes", "--mongo", mongo_url)
        assert "cancelled" in controller.communicate(timeout=20)[0]

        def left() -> dict:
            names = ("jobs", "experiments", "reports", "farm.files", "farm.chunks", "fs.files")
            counts = {name: store.database[name].count_documents({}) for name in names}
            return {name: count for name, count in counts.items() if count}

        with contextlib.suppress(AssertionError):  # What is left tells more than that there is something.
            eventually(lambda: not left(), "workers have removed what they had uploaded", 10)
        assert left() == {}


def test_an_experiment_made_anew_under_its_old_name_is_not_mixed_up(mongo_url, store, tmp_path):
    slow = write(tmp_path, "again.py", "import time\ntime.sleep(0.05)\nreturn 1")
    (tmp_path / "new").mkdir()
    new = write(tmp_path / "new", "again.py", "return 2")
    with (
        worker(mongo_url, tmp_path / "w", "--slots", "2"),
        started("run", slow, "--mongo", mongo_url, "--max-evals", "900") as before,
    ):
        eventually(lambda: store.jobs.count_documents({"state": 2}) > 5, "five trials")
        hyperfarm("rm", "again", "--yes", "--mongo", mongo_url)
        hyperfarm("run", new, "--mongo", mongo_url, "--max-evals", "30")
        before.wait(20)
    docs = store.find_jobs("again")
    assert [(doc["state"], doc["result"]["loss"]) for doc in docs] == [(2, 2.0)] * 30


def test_a_smaller_max_evals_of_fmin_ends_it(mongo_url, tmp_path):
    from hyperopt import fmin, hp, rand

    trials = MongoTrials(mongo_url, exp_key="less")
    common = {"algo": rand.suggest, "trials": trials, "show_progressbar": False}
    with worker(mongo_url, tmp_path / "w"):
        fmin(abs, hp.uniform("x", -1, 1), early_stop_fn=lambda seen: (len(seen) > 2, []), **common)
        count = len(trials)
        assert count > 2
        fmin(abs, hp.uniform("x", -1, 1), max_evals=count + 2, **common)
        assert len(trials) == count + 2
        fmin(abs, hp.uniform("x", -1, 1), max_evals=2, **common)
        assert len(trials) == count + 2


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("trial.report(values=list(range(1000000)))\nreturn 1", "trial.save"),
        ("import asyncio\nraise asyncio.CancelledError('cut')", "CancelledError"),
    ],
)
def test_what_fails_the_same_way_every_time_is_tried_once(body, says, mongo_url, store, tmp_path):
    script = write(tmp_path, "same.py", body)
    hyperfarm("run", script, "--mongo", mongo_url, "--workers", "1", "--max-evals", "1")
    (job,) = store.find_jobs("same")
    assert (job["state"], job["attempt"]) == (3, 1)
    assert says in ": ".join(job["error"])


def test_a_result_with_a_million_keys_is_stored(mongo_url, store, tmp_path):
    script = write(
        tmp_path, "wide.py", "return {'loss': 1, 'status': 'ok', **{f'k{i}': i for i in range(1000000)}}"
    )
    hyperfarm("run", script, "--mongo", mongo_url, "--workers", "1", "--max-evals", "1")
    (job,) = store.find_jobs("wide")
    assert (job["state"], job["attempt"], job["result"]["loss"]) == (2, 1, 1)


def test_an_expired_lease_is_taken_back_from_a_dead_worker_not_from_a_living_one(mongo_url, store, tmp_path):
    script = write(
        tmp_path, "lease.py", "import time\ntime.sleep(4 if trial.attempt == 1 else 0)\nreturn trial.attempt"
    )
    with (
        started("run", script, "--mongo", mongo_url, "--max-evals", "1") as controller,
        worker(mongo_url, tmp_path / "dead", "--lease", "2") as dead,
    ):
        eventually(lambda: store.jobs.find_one({"state": 1}), "it runs")
        dead.send_signal(signal.SIGKILL)
        with worker(mongo_url, tmp_path / "alive", "--lease", "2"):
            assert controller.wait(60) == 0
    (job,) = store.find_jobs("lease")
    assert (job["state"], job["attempt"], job["result"]["loss"]) == (2, 2, 2.0)
    assert "its lease expired" in job["history"][0]["reason"]


class Outage:
    """A mongod of its own that a test may kill or freeze."""

    def __init__(self, folder: Path) -> None:
        self.context = embedded.throwaway(folder)
        self.server = self.context.__enter__()

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.server.pid, signal.SIGCONT)
        self.context.__exit__(None, None, None)


@pytest.fixture
def outage(tmp_path: Path):
    made = Outage(tmp_path / "db")
    yield made
    made.close()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("workers", ["0", "1"])
def test_ctrl_c_ends_a_search_within_five_seconds_with_the_database_away(how, workers, outage, tmp_path):
    script = write(tmp_path, "away.py", "import time\ntime.sleep(0.5)\nreturn 1")
    url = outage.server.url
    store = Store.open(url)
    options = ["--mongo", url, "--max-evals", "900", "--workers", workers]
    with worker(url, tmp_path / "w") as host, started("run", script, *options) as controller:
        eventually(lambda: store.jobs.find_one({"state": 2}), "a finished trial")
        store.close()
        family = [*descendants(controller.pid), *descendants(host.pid)]
        os.kill(outage.server.pid, how)
        began = time.monotonic()
        for process in (controller, host):
            process.send_signal(signal.SIGINT)
        output, _ = controller.communicate(timeout=30)
        took = time.monotonic() - began
        assert took < 5.5, output
        assert "Traceback" not in output
        assert controller.returncode == 130
        assert "carry it on with the same command" in output
        host.communicate(timeout=30)
        assert time.monotonic() - began < 5.5
    eventually(lambda: gone(family), "no process is left", 5)


def test_a_time_limit_holds_with_the_database_away(outage, tmp_path):
    script = write(tmp_path, "limit.py", "return 1")
    with started(
        "run", script, "--mongo", outage.server.url, "--max-evals", "9", "--timeout", "4"
    ) as controller:
        store = Store.open(outage.server.url)
        eventually(lambda: store.waiting().exp_keys, "a job waits")
        store.close()
        os.kill(outage.server.pid, signal.SIGKILL)
        assert "the time is up" in controller.communicate(timeout=20)[0]


def test_sigterm_while_starting_up_stops_the_private_database(own_home, tmp_path):
    script = write(tmp_path, "early.py", "return 1", top="import time\ntime.sleep(0.1)\n")
    with started("run", script) as process:
        server = eventually(embedded.status, "the private database runs")
        process.terminate()
        process.wait(20)
        eventually(lambda: gone([server.pid]), "mongod is gone", 10)


def test_a_result_object_does_not_show_the_password(mongo_url):
    from hyperfarm.api import SearchResult

    fields = dict.fromkeys(SearchResult.__dataclass_fields__)
    assert "secret" not in repr(SearchResult(**{**fields, "url": "mongodb://me:secret@host/db"}))


def test_python_callers_may_keep_only_a_collection(mongo_url):
    code = f"from hyperfarm.store import Store\njobs = Store.open({mongo_url!r}).jobs\nprint(jobs.find_one())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "None"
