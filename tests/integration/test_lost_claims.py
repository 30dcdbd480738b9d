"""A claim whose answer never comes, though it takes effect: at once, after an election, or only much later."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from hyperfarm.store import Store
from tests.replica import ReplicaSet, three_members
from tests.support import TWO_PARAMETERS, descendants, eventually, gone, started, worker

COUNT = 3
STEP_DOWN_S = 60


class Script:
    """An objective in a file that waits at a gate, and the journal that its processes write."""

    def __init__(self, folder: Path, name: str) -> None:
        self.path, self.journal, self.gate = folder / f"{name}.py", folder / "journal", folder / "gate"
        body = f"""
import os, time
def objective(p):
    with open({str(self.journal)!r}, "a") as out:
        out.write(f"{{os.environ['HOST']}} {{trial.id}} {{trial.attempt}}\\n")
    while not os.path.exists({str(self.gate)!r}):
        time.sleep(0.02)
    return 1
"""
        self.path.write_text(TWO_PARAMETERS + body)

    def noted(self, host: str) -> list[str]:
        """What this host has begun: `TRIAL ATTEMPT`."""
        lines = self.journal.read_text().splitlines() if self.journal.exists() else []
        return [line.partition(" ")[2] for line in lines if line.startswith(f"{host} ")]


@contextlib.contextmanager
def waiting_jobs(script: Script, url: str, folder: Path) -> Iterator[Store]:
    """A search of COUNT trials, all of which wait in the queue for the next worker; at the end it is complete."""
    run = ["run", str(script.path), "--mongo", url, "--max-evals", str(COUNT), "--algo", "rand"]
    with started(*run) as controller, contextlib.closing(Store.open(url)) as store:
        with worker(url, folder / "first", "--slots", str(COUNT), "--grace", "0", HOST="first") as first:
            eventually(lambda: len(script.noted("first")) == COUNT, "all are begun")
            family = descendants(first.pid)
            first.send_signal(signal.SIGTERM)
            assert first.wait(30) == 0
            eventually(lambda: gone(family), "the first worker has left")
        assert [(job["state"], job["attempt"]) for job in store.find_jobs(script.path.stem)] == [
            (0, 0)
        ] * COUNT
        yield store
        script.gate.touch()
        assert controller.wait(100) == 0, controller.communicate()
        jobs = store.find_jobs(script.path.stem)
    assert [(job["state"], job["attempt"]) for job in jobs] == [(2, 1)] * COUNT
    # Claimed and released by the first worker, then claimed and finished: each counts one.
    assert [job["version"] for job in jobs] == [4] * COUNT
    assert sorted(script.noted("second")) == [f"{job['tid']} 1" for job in jobs]


def test_a_claim_that_is_carried_out_late_claims_nothing_more(mongo_url, tmp_path):
    """The worker gave it up, saw that it had had no effect, and claimed anew: only then it is carried out."""
    script = Script(tmp_path, "late")
    own = f"{mongo_url}&retryWrites=false&socketTimeoutMS=1500"
    with waiting_jobs(script, mongo_url, tmp_path) as store:
        admin, name = store.database.client.admin, store.database.name
        point = {"failCommands": ["findAndModify"], "namespace": f"{name}.jobs"}
        point |= {"blockConnection": True, "blockTimeMS": 8000}
        store.database.command("profile", 2)

        def carried_out() -> int:
            return store.database["system.profile"].count_documents({"command.findAndModify": "jobs"})

        before = admin.command("configureFailPoint", "failCommand", mode={"times": 1}, data=point)["count"]
        with worker(own, tmp_path / "second", HOST="second"):
            admin.command("waitForFailPoint", "failCommand", timesEntered=before + 1, maxTimeMS=40_000)
            eventually(lambda: store.jobs.find_one({"state": 1}), "another claim has been made")
            assert carried_out() == 1, "the first one is still to come"
            eventually(lambda: carried_out() >= 2, "it has come")
            running = [job for job in store.find_jobs("late") if job["state"] == 1]
            assert len(running) == 1, running
            script.gate.touch()
            eventually(lambda: store.jobs.count_documents({"state": 2}) == COUNT, "all are done")


@contextlib.contextmanager
def primary_alone(members: ReplicaSet) -> Iterator[None]:
    """The others live and vote, but copy nothing from the primary."""
    others = [one for one in members.members if one is not members.primary()]
    for one in others:
        one.client.admin.command("configureFailPoint", "stopReplProducer", mode="alwaysOn")
    try:
        yield
    finally:
        for one in others:
            one.client.admin.command("configureFailPoint", "stopReplProducer", mode="off")


def catch_up_for(members: ReplicaSet, milliseconds: int) -> None:
    """How long a new primary tries to get what the old one had."""
    admin = members.primary().client.admin
    config = admin.command("replSetGetConfig")["config"]
    config["version"] += 1
    config["settings"]["catchUpTimeoutMillis"] = milliseconds
    admin.command("replSetReconfig", config)


@pytest.mark.parametrize("fate", ["it is kept", "it is rolled back"])
def test_a_claim_that_a_step_down_cuts_off_is_made_once(fate, tmp_path):
    script = Script(tmp_path, "deposed")
    with three_members(tmp_path / "members") as members:
        url = members.url("farm")
        kept = fate == "it is kept"
        catch_up_for(members, 60_000 if kept else 0)
        # Without the driver's own retry: what hyperfarm does about it counts.
        own = f"{url}&retryWrites=false"
        with contextlib.ExitStack() as stack:
            store = stack.enter_context(waiting_jobs(script, url, tmp_path))
            old = members.primary()
            with primary_alone(members):
                second = stack.enter_context(worker(own, tmp_path / "second", HOST="second"))
                claimed = eventually(lambda: old.client.farm.jobs.find_one({"state": 1}), "a job is claimed")
                assert not script.noted("second"), "its answer waits for a majority"
                force = {"force": True, "secondaryCatchUpPeriodSecs": 0}
                old.client.admin.command("replSetStepDown", STEP_DOWN_S, **force)
                if not kept:
                    assert members.primary() is not old
            eventually(lambda: script.noted("second"), "a trial runs")
            new = members.primary()
            assert new is not old
            tokens = [job["lease"]["token"] for job in store.find_jobs("deposed") if job["state"] == 1]
            assert tokens == [claimed["lease"]["token"]], "one claim, under the token it began with"
            script.gate.touch()
            eventually(lambda: store.jobs.count_documents({"state": 2}) == COUNT, "all are done")
            assert second.poll() is None
