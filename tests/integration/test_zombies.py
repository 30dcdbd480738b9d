"""Workers and controllers that die or freeze in the middle: nothing that they had under way is half there."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hyperfarm.blobs import Blobs, blob_ids
from hyperfarm.store import Store
from tests.support import TWO_PARAMETERS, descendants, eventually, gone, hyperfarm, started, worker

SHORT = ["--lease", "2"]


class Script:
    """An objective in a file, the journal that its processes write, and gates at which they wait."""

    def __init__(self, folder: Path, name: str, body: str) -> None:
        self.folder, self.path, self.journal = folder, folder / f"{name}.py", folder / "journal"
        top = "import ctypes, os, pathlib, time\nHOST = os.environ.get('HOST', '?')\n"
        top += "def note(*words):\n"
        top += f"    with open({str(self.journal)!r}, 'a') as out:\n"
        top += "        out.write(' '.join(map(str, [HOST, trial.attempt, *words])) + '\\n')\n"
        top += "def wait_at(gate):\n"
        top += (
            f"    while not os.path.exists(os.path.join({str(folder)!r}, gate)):\n        time.sleep(0.02)\n"
        )
        self.path.write_text(TWO_PARAMETERS + top + body)

    def noted(self) -> list[str]:
        return self.journal.read_text().splitlines() if self.journal.exists() else []

    def wait_for(self, *lines: str) -> None:
        eventually(lambda: set(lines) <= set(self.noted()), f"{lines} are noted", 100)

    def open(self, gate: str) -> None:
        (self.folder / gate).touch()


@pytest.fixture
def host(mongo_url: str, tmp_path: Path) -> Callable[..., Any]:
    """Start a worker that is known to its objectives by a name."""

    def start(name: str, *options: str) -> Any:
        return worker(mongo_url, tmp_path / name, *SHORT, *options, HOST=name)

    return start


class Blocked:
    """A statement that MongoDB holds up."""

    def __init__(self, store: Store, entered: int) -> None:
        self._admin, self._entered = store.database.client.admin, entered

    def wait(self) -> None:
        """Return when the statement is being held up."""
        self._admin.command(
            "waitForFailPoint", "failCommand", timesEntered=self._entered + 1, maxTimeMS=40_000
        )


@contextlib.contextmanager
def inserts(store: Store, collection: str, mode: Any, **how: Any) -> Iterator[Blocked]:
    """Hold up, or break, inserts into a collection of this test's database."""
    admin = store.database.client.admin
    data = {"failCommands": ["insert"], "namespace": f"{store.database.name}.{collection}", **how}
    before = admin.command("configureFailPoint", "failCommand", mode=mode, data=data)["count"]
    try:
        yield Blocked(store, before)
    finally:
        admin.command("configureFailPoint", "failCommand", mode="off")


ZOMBIE = """
class Model:
    def save(self, path):
        pathlib.Path(path).write_bytes(HOST.encode() * 1000)

def objective(p):
    note(trial.id, "begins")
    trial.report(loss=1.0, of=HOST == "heir")
    if HOST == "heir":
        trial.checkpoint(b"heir")
        note(trial.id, "has begun")
        wait_at("heir may end")
        trial.save_model(Model())
        return 222
    wait_at("zombie goes on")
    print("zombie")
    if trial.id == 0:
        return 111
    if trial.id == 1:
        trial.report(loss=111.0, of=False)
    if trial.id == 2:
        trial.checkpoint(b"zombie")
        note("its checkpoint was taken")
    if trial.id == 3:
        trial.save_model(Model())
        return 111
    if trial.id == 4:
        raise ValueError("zombie")
    time.sleep(600)
"""
TRIALS = 5


@pytest.mark.parametrize("stopped_with", ["supervisor", "supervisor and children"])
def test_nothing_of_a_zombie_is_kept(stopped_with, host, mongo_url, store, tmp_path):
    script = Script(tmp_path, "zombie", ZOMBIE)
    evals = ["--max-evals", str(TRIALS), "--algo", "rand"]
    with (
        host("zombie", "--slots", str(TRIALS)) as zombie,
        started("run", str(script.path), "--mongo", mongo_url, *evals) as controller,
    ):
        script.wait_for(*(f"zombie 1 {tid} begins" for tid in range(TRIALS)))
        tokens = [job["lease"]["token"] for job in store.find_jobs("zombie")]
        family = descendants(zombie.pid)
        frozen = [zombie.pid, *(family if stopped_with != "supervisor" else [])]
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
        script.open("zombie goes on")  # Its children send what they have into the supervisor's sockets.
        with host("heir", "--slots", str(TRIALS)) as heir:
            script.wait_for(*(f"heir 2 {tid} has begun" for tid in range(TRIALS)))
            for pid in reversed(frozen):
                os.kill(pid, signal.SIGCONT)
            eventually(lambda: gone(family), "the zombie's objectives are stopped", 30)
            for job in store.find_jobs("zombie"):
                assert (job["state"], job["attempt"]) == (1, 2), job
                assert job["lease"]["token"] not in tokens
                assert Blobs(store.database).read(job["checkpoint"]) == b"heir"
            script.open("heir may end")
            assert controller.wait(60) == 0
            assert zombie.poll() is None
            assert heir.poll() is None
            files = store.database["farm.files"]
            of_zombie = {"metadata.token": {"$in": tokens}}
            eventually(lambda: not files.count_documents(of_zombie), "its blobs are deleted", 20)
    assert not [line for line in script.noted() if "was taken" in line]
    for job in store.find_jobs("zombie"):
        assert (job["state"], job["attempt"], job["result"]["loss"]) == (2, 2, 222.0), job
        assert [entry["event"] for entry in job["history"]] == ["requeue"]
        assert [(one["loss"], one["of"]) for one in store.reports(job)] == [(1.0, True)]
        (model,) = job["artifacts"]
        assert Blobs(store.database).read(model) == b"heir" * 1000
        assert "log" not in job, "the heir has printed nothing"
        assert not blob_ids(job["result"])
    assert not files.count_documents({"metadata.kind": "checkpoint"})


def test_an_objective_that_holds_the_gil_keeps_its_lease(host, mongo_url, store, tmp_path):
    body = "def objective(p):\n    note('begins')\n    ctypes.PyDLL(None).sleep(14)\n    return 3\n"
    script = Script(tmp_path, "gil", body)
    with host("a"), started("run", str(script.path), "--mongo", mongo_url, "--max-evals", "1") as controller:
        script.wait_for("a 1 begins")
        with host("b"):  # It would reap the job, too.
            assert controller.wait(60) == 0
    (job,) = store.find_jobs("gil")
    assert (job["state"], job["attempt"], job["result"]["loss"]) == (2, 1, 3.0)
    assert "history" not in job
    assert (job["refresh_time"] - job["book_time"]).total_seconds() > 13
    assert script.noted() == ["a 1 begins"]


def books_balance(store: Store, key: str, count: int) -> None:
    jobs = store.find_jobs(key)
    assert [job["state"] for job in jobs] == [2] * count
    assert sorted(job["slot"] for job in jobs) == list(range(count))
    assert len({job["tid"] for job in jobs}) == count


def test_a_controller_killed_between_taking_ids_and_inserting(host, mongo_url, store, tmp_path):
    script = Script(tmp_path, "cut", "def objective(p):\n    note(trial.id)\n    return 1\n")
    command = ["run", str(script.path), "--mongo", mongo_url, "--max-evals", "6", "--algo", "rand"]
    # MongoDB carries the held-up insert out later on, though its sender is dead by then: after its successor
    # has taken the same slots, or before.
    how = {"blockConnection": True, "blockTimeMS": 8_000}
    with host("a"), inserts(store, "jobs", {"times": 1}, **how) as blocked:
        with started(*command) as controller:
            blocked.wait()
            controller.send_signal(signal.SIGKILL)
            controller.wait()
        assert store.job_ids.find_one()["last_id"] > 0
        assert not store.find_jobs("cut")
        hyperfarm(*command)
        books_balance(store, "cut", 6)
    books_balance(store, "cut", 6)
    assert len(script.noted()) == len(set(script.noted())) == 6


def test_inserts_that_break_are_made_good(host, mongo_url, store, tmp_path):
    script = Script(tmp_path, "breaks", "def objective(p):\n    note(trial.id)\n    return 1\n")
    command = ["run", str(script.path), "--mongo", mongo_url, "--max-evals", "8", "--algo", "rand"]
    with host("a"), inserts(store, "jobs", {"times": 4}, closeConnection=True):
        hyperfarm(*command)
    books_balance(store, "breaks", 8)
    assert len(script.noted()) == len(set(script.noted())) == 8


def test_a_worker_killed_while_it_uploads_a_model(host, mongo_url, store, tmp_path):
    body = """
class Model:
    def save(self, path):
        pathlib.Path(path).write_bytes(HOST.encode() * (60 << 20))

def objective(p):
    note("begins")
    wait_at("upload")
    trial.save_model(Model())
    note("has saved")
    return 1
"""
    script = Script(tmp_path, "model", body)
    files, chunks = store.database["farm.files"], store.database["farm.chunks"]
    models = {"metadata.kind": "model"}
    with started("run", str(script.path), "--mongo", mongo_url, "--max-evals", "1") as controller:
        with host("a") as first:
            script.wait_for("a 1 begins")
            before = chunks.count_documents({})
            with inserts(store, "farm.chunks", {"skip": 1}, blockConnection=True, blockTimeMS=8_000):
                script.open("upload")
                eventually(lambda: chunks.count_documents({}) > before, "a part of the model is there")
                first.send_signal(signal.SIGKILL)
                first.wait()
        assert not files.count_documents(models)
        (job,) = store.find_jobs("model")
        assert (job["state"], job.get("artifacts")) == (1, None)
        with host("b"):
            assert controller.wait(100) == 0
    (job,) = store.find_jobs("model")
    assert (job["state"], job["attempt"]) == (2, 2)
    (model,) = job["artifacts"]
    assert Blobs(store.database).read(model) == b"b" * (60 << 20)
    assert [one["_id"] for one in files.find(models)] == [model["blob"]]
    assert script.noted() == ["a 1 begins", "b 2 begins", "b 2 has saved"]
