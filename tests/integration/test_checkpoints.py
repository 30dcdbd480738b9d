"""A trial that is begun again goes on from its last checkpoint, wherever that happens."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hyperfarm import trial
from hyperfarm.jobs import DEFAULT_MAX_ATTEMPTS
from hyperfarm.store import Store
from tests.support import TWO_PARAMETERS, descendants, eventually, gone, hyperfarm, started, worker

SHORT = ["--lease", "2"]
BIG = 20 << 20


class Script:
    """An objective in a file, and the journal that its processes write: one line for each thing done."""

    def __init__(self, folder: Path, name: str, body: str) -> None:
        self.path, self.journal, self.gate = folder / f"{name}.py", folder / "journal", folder / "gate"
        top = f"import io, os, pathlib, random, signal, time\nBIG = {BIG}\n"
        top += "def note(*words):\n"
        top += f"    with open({str(self.journal)!r}, 'a') as out:\n"
        top += "        out.write(' '.join(map(str, [os.environ.get('HOST', '?'), trial.attempt, *words])) + '\\n')\n"
        top += "def wait_at_gate():\n"
        top += f"    while not os.path.exists({str(self.gate)!r}):\n        time.sleep(0.02)\n"
        self.path.write_text(TWO_PARAMETERS + top + body)

    def noted(self) -> list[str]:
        return self.journal.read_text().splitlines() if self.journal.exists() else []

    def wait_for(self, line: str) -> None:
        eventually(lambda: line in self.noted(), f"{line!r} is noted", 100)


@pytest.fixture
def host(mongo_url: str, tmp_path: Path) -> Callable[..., Any]:
    """Start a worker that is known to its objectives by a name."""

    def start(name: str, *options: str) -> Any:
        return worker(mongo_url, tmp_path / name, *SHORT, *options, HOST=name)

    return start


@pytest.fixture
def searching(mongo_url: str) -> Callable[..., Any]:
    @contextmanager
    def start(script: Script, count: int = 1, *options: str) -> Iterator[subprocess.Popen]:
        evals = ["--max-evals", str(count), "--algo", "rand"]
        with started("run", str(script.path), "--mongo", mongo_url, *evals, *options) as controller:
            yield controller
            assert controller.wait(100) == 0

    return start


def checkpoint_blobs(store: Store) -> list[Any]:
    return [one["_id"] for one in store.database["farm.files"].find({"metadata.kind": "checkpoint"})]


def chunk_bytes(store: Store, blobs: list[Any]) -> int:
    return sum(len(one["data"]) for one in store.database["farm.chunks"].find({"files_id": {"$in": blobs}}))


STEPS = """
def objective(p):
    saved = trial.resume()
    step = int(saved.read_bytes()) if saved else 0
    note("begins after", step)
    while step < 5:
        step += 1
        text = str(step).encode()
        pathlib.Path("here").write_bytes(text)
        trial.checkpoint([text, pathlib.Path("here"), io.BytesIO(text)][step % 3])
        note("step", step)
        if step == 3 and os.environ["HOST"] == "a":
            time.sleep(600)
    return step
"""


@pytest.mark.parametrize("how", ["killed", "drained", "told twice"])
def test_a_trial_goes_on_elsewhere_from_its_last_checkpoint(how, host, searching, store, tmp_path):
    script = Script(tmp_path, "steps", STEPS)
    with searching(script):
        grace = "1" if how == "drained" else "600"
        with host("a", "--grace", grace) as first:
            script.wait_for("a 1 step 3")
            family = descendants(first.pid)
            if how == "killed":
                first.send_signal(signal.SIGKILL)
            else:
                first.send_signal(signal.SIGTERM)
            if how == "told twice":
                eventually(lambda: any(doc["draining"] for doc in store.live_workers()), "it drains")
                assert first.poll() is None
                first.send_signal(signal.SIGTERM)
            first.wait(30)
            assert first.returncode == (-signal.SIGKILL if how == "killed" else 0)
            eventually(lambda: gone(family), "no process of the first worker is left", 20)
        with host("b"):
            script.wait_for(f"b {2 if how == 'killed' else 1} step 5")
            eventually(lambda: store.jobs.find_one({"state": 2}), "the result")
            # A worker killed right after its result leaves the checkpoint to gc.
            eventually(lambda: not checkpoint_blobs(store), "the checkpoint is deleted")
    attempt = 2 if how == "killed" else 1
    noted = ["a 1 begins after 0", *(f"a 1 step {n}" for n in (1, 2, 3))]
    noted += [f"b {attempt} begins after 3", *(f"b {attempt} step {n}" for n in (4, 5))]
    assert script.noted() == noted
    (job,) = store.find_jobs("steps")
    assert (job["state"], job["attempt"], job["result"]["loss"]) == (2, attempt, 5.0)
    (entry,) = job["history"]
    assert entry["event"] == ("requeue" if how == "killed" else "release")
    assert "checkpoint" not in job


def test_a_trial_that_knows_of_the_drain_stores_how_far_it_has_come(host, searching, store, tmp_path):
    body = """
def objective(p):
    saved = trial.resume()
    step = int(saved.read_bytes()) if saved else 0
    note("begins after", step)
    while step < FAR and not trial.is_draining():
        step += FAR if saved else 1
        time.sleep(0.05)
    if step < FAR:
        trial.checkpoint(str(step).encode())
        note("stored", step)
        time.sleep(600)
    return step
"""
    script = Script(tmp_path, "drained", body.replace("FAR", "10_000"))
    with searching(script):
        with host("a", "--grace", "6") as first:
            script.wait_for("a 1 begins after 0")
            first.send_signal(signal.SIGTERM)
            assert first.wait(30) == 0
        stored = int(script.noted()[1].split()[-1])
        assert script.noted()[1] == f"a 1 stored {stored}"
        with host("b"):
            eventually(lambda: store.jobs.find_one({"state": 2}), "the result")
    assert script.noted()[2:] == [f"b 1 begins after {stored}"]
    (job,) = store.find_jobs("drained")
    assert (job["attempt"], job["result"]["loss"]) == (1, stored + 10_000)
    assert [entry["event"] for entry in job["history"]] == ["release"]


def test_a_killed_process_resumes_on_the_same_host_byte_for_byte(host, searching, store, tmp_path):
    body = """
def content(step):
    return random.Random(step).randbytes(BIG)

def objective(p):
    saved = trial.resume()
    if trial.attempt == 2:
        assert saved.read_bytes() == content(3)
        note("resumes")
        wait_at_gate()
        return 1
    assert saved is None
    for step in (1, 2, 3):
        trial.checkpoint(content(step))
        assert trial.resume().read_bytes() == content(step)
        note("step", step)
        if step == 2:
            wait_at_gate()
            os.unlink({gate!r})
    os.kill(os.getpid(), signal.SIGKILL)
"""
    script = Script(tmp_path, "big", body.replace("{gate!r}", repr(str(tmp_path / "gate"))))
    with host("a") as only, searching(script):
        script.wait_for("a 1 step 2")
        assert len(blobs := checkpoint_blobs(store)) == 1, "the one before is deleted"
        assert chunk_bytes(store, blobs) == BIG
        script.gate.touch()
        script.wait_for("a 2 resumes")
        blobs = checkpoint_blobs(store)
        job = store.jobs.find_one({"state": 1})
        assert blobs == [job["checkpoint"]["blob"]]
        script.gate.touch()
        eventually(lambda: store.jobs.find_one({"state": 2}), "the result")
        eventually(lambda: not checkpoint_blobs(store), "no checkpoint is left", 10)
        assert only.poll() is None
    assert chunk_bytes(store, blobs) == 0
    (job,) = store.find_jobs("big")
    assert job["attempt"] == 2
    assert "checkpoint" not in job


ENDINGS = """
def objective(p):
    trial.checkpoint(b"some way")
    note("ends", trial.id)
    if trial.id == 1:
        raise ValueError("no")
    if trial.id == 2:
        time.sleep(600)
    if trial.id == 3:
        os._exit(3)
    return 1
"""


def test_no_checkpoint_is_left_however_a_trial_ends(host, searching, store, tmp_path):
    script = Script(tmp_path, "ends", ENDINGS)
    with host("a"), searching(script, 4, "--trial-timeout", "2", "--max-attempts", "2"):
        eventually(lambda: store.jobs.count_documents({"state": {"$in": [2, 3]}}) == 4, "four trials", 100)
    jobs = store.find_jobs("ends")
    assert [job["state"] for job in jobs] == [2, 3, 3, 3]
    assert [job["error"][0] for job in jobs[1:]] == ["ValueError", "TrialTimeout", "AttemptsExhausted"]
    left = [job["tid"] for job in jobs if "checkpoint" in job]
    eventually(lambda: not checkpoint_blobs(store), f"no checkpoint is left (trials {left} have one)", 5)
    assert not left


def test_a_checkpoint_counts_only_when_it_is_whole(host, searching, store, tmp_path):
    body = """
def objective(p):
    saved = trial.resume()
    note("begins with", saved and saved.read_bytes())
    if os.environ["HOST"] == "b":
        return 1
    trial.checkpoint(b"the first")
    note("one")
    wait_at_gate()
    trial.checkpoint(bytes(60 << 20))
    note("two")
"""
    script = Script(tmp_path, "half", body)
    database, admin = store.database, store.database.client.admin
    chunks = database["farm.chunks"]
    with searching(script):
        with host("a") as first:
            script.wait_for("a 1 one")
            before = chunks.count_documents({})
            point = {"failCommands": ["insert"], "namespace": f"{database.name}.farm.chunks"}
            point |= {"blockConnection": True, "blockTimeMS": 8_000}
            admin.command("configureFailPoint", "failCommand", mode={"skip": 1}, data=point)
            try:
                script.gate.touch()
                eventually(lambda: chunks.count_documents({}) > before, "half of it is there")
                first.send_signal(signal.SIGKILL)
                first.wait()
            finally:
                admin.command("configureFailPoint", "failCommand", mode="off")
        with host("b"):
            script.wait_for("b 2 begins with b'the first'")
            eventually(lambda: store.jobs.find_one({"state": 2}), "the result")
            eventually(lambda: not checkpoint_blobs(store), "the checkpoint is deleted")
    assert "a 1 two" not in script.noted()


def test_a_checkpoint_that_cannot_be_read_means_beginning_anew(host, searching, store, tmp_path):
    body = """
def objective(p):
    note(trial.id, "begins with", trial.resume())
    if trial.attempt == 1:
        trial.checkpoint(b"some way")
        note(trial.id, "waits")
        wait_at_gate()
        os._exit(3)
    trial.checkpoint(b"another way")
    return 1
"""
    script = Script(tmp_path, "lost", body)
    with host("a", "--slots", "3"), searching(script, 3):
        for tid in range(3):
            script.wait_for(f"a 1 {tid} waits")
        blobs = [job["checkpoint"]["blob"] for job in store.find_jobs("lost")]
        files, chunks = store.database["farm.files"], store.database["farm.chunks"]
        files.delete_one({"_id": blobs[0]})
        chunks.delete_many({"files_id": {"$in": blobs[:2]}})
        chunks.update_one({"files_id": blobs[2]}, {"$set": {"data": b"SOME WAY"}})
        script.gate.touch()
        eventually(lambda: store.jobs.count_documents({"state": 2}) == 3, "three trials")
        eventually(lambda: not checkpoint_blobs(store), "the checkpoints are deleted")
    assert {line for line in script.noted() if line.startswith("a 2")} == {
        f"a 2 {tid} begins with None" for tid in range(3)
    }
    assert [job["attempt"] for job in store.find_jobs("lost")] == [2] * 3


def test_wrong_arguments_are_a_clear_error_of_the_trial(mongo_url, store, tmp_path):
    body = """
def objective(p):
    trial.checkpoint([3, "no/such/file", io.StringIO("text")][trial.id])
    return 1
"""
    script = Script(tmp_path, "wrong", body)
    hyperfarm("run", str(script.path), "--mongo", mongo_url, "--workers", "1", "--max-evals", "3")
    jobs = store.find_jobs("wrong")
    assert [(job["state"], job["attempt"]) for job in jobs] == [(3, 1)] * 3
    assert jobs[0]["error"] == ["TypeError", "what to store is a path, bytes or a file object, not int"]
    assert jobs[1]["error"][0] == "FileNotFoundError"
    assert "no/such/file" in jobs[1]["error"][1]
    assert jobs[2]["error"][0] == "TypeError"
    assert not checkpoint_blobs(store)


def test_outside_a_farm_checkpoints_are_inert_but_check_their_arguments(tmp_path):
    (tmp_path / "there").write_bytes(b"x")
    for data in (b"x", bytearray(b"x"), memoryview(b"x"), tmp_path / "there", str(tmp_path / "there")):
        assert trial.checkpoint(data) is None
    with (tmp_path / "there").open("rb") as opened:
        trial.checkpoint(opened)
    assert trial.resume() is None
    assert trial.is_draining() is False
    assert trial.attempt == 1 < DEFAULT_MAX_ATTEMPTS
    with pytest.raises(TypeError, match="bytes or a file object, not int"):
        trial.checkpoint(3)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match="nowhere"):
        trial.checkpoint("nowhere")
    assert (tmp_path / "there").read_bytes() == b"x"
