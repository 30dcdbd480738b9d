"""Any order of anything that controllers, workers, zombies and reapers do: the database equals the model.

The clock is in the test's hand, so a life of a job passes both sides of every boundary to the millisecond.
CI draws the same lives at every run of the same code (Hypothesis' own profile for CI); elsewhere they are
drawn anew, and a failure prints the line that plays it again. Nothing here depends on chance but on what is
drawn: when Hypothesis speaks of flaky or inconsistent data, the database did not answer in time.
"""

from __future__ import annotations

import copy
import datetime as dt
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
from bson import ObjectId
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from hyperfarm.errors import LeaseLost
from hyperfarm.jobs import Claim, Event, JobState
from hyperfarm.reaping import FOREIGN_EVERY_S, SECOND_LOOK_S, Reaper
from hyperfarm.store import Store, new_token
from tests.making import KEY, job
from tests.store.clocked import MS, ClockedStore
from tests.store.model import DONE, RUNNING, Model

KEYS = st.sampled_from([KEY, KEY, KEY, None])
LEASES_S = st.sampled_from([60, 90.5, 120])
STEPS_MS = st.sampled_from([0, 1, 999, 2000, 29_999, 60_000, 120_000]) | st.integers(0, 200_000)
LOSSES = st.sampled_from([1.0, 1.0, 2.0, -3.5, math.inf, -math.inf, math.nan])
FEW_LIVES = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)


def plain(value: Any) -> Any:
    """A copy that can be compared: NaN equals itself, and the one field of the real clock is left out."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items() if key != "refresh_time"}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return "NaN" if isinstance(value, float) and math.isnan(value) else value


def outcome(call: Callable[[], Any]) -> Any:
    """What came of it, in words that the store and the model share."""
    try:
        value = call()
    except LeaseLost:
        return "lease lost"
    return value.value if isinstance(value, Event) else value


class Farm(RuleBasedStateMachine):
    """Everything is done to the store and to the model; then they are compared in every detail."""

    def __init__(self, opened: Store) -> None:
        super().__init__()
        self.store = ClockedStore(opened)
        self.store.jobs.delete_many({})
        self.store.reports_.delete_many({})
        self.model = Model(self.store.time)
        self.claims: dict[str, Claim] = {}
        self.numbers = itertools.count()
        self.queued: list[dict[str, Any]] = []
        self.last: Callable[[], None] = lambda: None
        self.seconds = 0.0  # of the reapers' own clocks
        self.reapers = [Reaper(self.store, lambda: self.seconds) for _ in range(2)]
        self.seen: list[dict[Any, float]] = [{}, {}]
        self.next_unpark = [-math.inf, -math.inf]
        self.before: dict[Any, dict[str, Any]] = {}

    @initialize(count=st.integers(1, 4), lease_s=LEASES_S)
    def begin(self, count: int, lease_s: float) -> None:
        """Some jobs wait, and one of them is running: a life begins in the middle."""
        self.queue(KEY, 0, count, 3)
        self.claim(KEY, "w1", lease_s)

    # ---- the controllers ---------------------------------------------------------------------------

    @rule(key=KEYS, slot=st.integers(0, 4), count=st.integers(1, 3), tries=st.integers(1, 4))
    def queue(self, key: str | None, slot: int, count: int, tries: int) -> None:
        """A controller fills slots, some of which another may have taken."""
        ours: dict[str, Any] = {"attempt": 0, "max_attempts": tries}
        docs = [job(next(self.numbers), key, slot=slot + one, **ours) for one in range(count)]
        assert self.store.insert_jobs(docs) == self.model.insert_jobs(docs)
        self.queued = docs

    @rule()
    def queue_again(self) -> None:
        assert self.store.insert_jobs(self.queued) == self.model.insert_jobs(self.queued)

    @rule(
        key=KEYS,
        fields=st.sampled_from([{}, {}, {"state": 1, "owner": "host:1"}, {"owner": "hyperfarm:waits"}]),
    )
    def foreign(self, key: str | None, fields: dict[str, Any]) -> None:
        """A job of hyperopt's own fmin, which knows no slots; it may be running in a worker of hyperopt's."""
        docs = [job(next(self.numbers), key, **fields)]
        assert self.store.insert_jobs(docs) == self.model.insert_jobs(docs)

    @rule(key=KEYS, how=st.sampled_from(["cancel", "withdraw_queued", "withdraw_queued", "remove_jobs"]))
    def clear(self, key: str | None, how: str) -> None:
        self.both(how, key)

    @rule(key=KEYS, keep=st.integers(0, 2))
    def prune(self, key: str | None, keep: int) -> None:
        self.both("prune_models", key, keep)

    # ---- time --------------------------------------------------------------------------------------

    @rule(milliseconds=STEPS_MS)
    def wait(self, milliseconds: int) -> None:
        self.go_to(self.model.now + milliseconds * MS)

    @precondition(lambda self: self.model.boundaries())
    @rule(data=st.data(), side=st.sampled_from([-1, 0, 1]))
    def go_to_a_boundary(self, data: st.DataObject, side: int) -> None:
        self.go_to(data.draw(st.sampled_from(self.model.boundaries())) + side * MS)

    def go_to(self, moment: dt.datetime) -> None:
        self.store.time = self.model.now = max(moment, self.model.now)

    @rule(seconds=st.sampled_from([0.0, 0.125, SECOND_LOOK_S - 0.125, SECOND_LOOK_S, FOREIGN_EVERY_S]))
    def let_reapers_wait(self, seconds: float) -> None:
        self.seconds += seconds

    # ---- reapers -----------------------------------------------------------------------------------

    def reaped(self, found: list[tuple[dict[str, Any], Event]]) -> list[tuple[int, str]]:
        return sorted((doc["tid"], event.value) for doc, event in found)

    @rule(every=st.integers(1, 2))
    def reap(self, every: int) -> None:
        found = self.store.reap(lambda doc: doc["tid"] % every == 0)
        assert self.reaped(found) == sorted(self.model.reap(lambda doc: doc["tid"] % every == 0))

    @rule(late=st.sampled_from(["renew", "finish", "release"]), lease_s=LEASES_S)
    def reap_while_the_holder_wakes_up(self, late: str, lease_s: float) -> None:
        """Between the reaper's look and its update the holder comes first."""

        def is_due(doc: dict[str, Any]) -> bool:
            token = doc["lease"]["token"]
            if late == "renew":
                self.both("renew", [token], lease_s)
            elif late == "finish":
                self.write_as(token, "finish", JobState.DONE, {"result": {"status": "ok", "loss": 0.5}})
            else:
                self.write_as(token, "release", "told to stop")
            return True

        assert self.store.reap(is_due) == []

    @rule(which=st.sampled_from([0, 1]))
    def look(self, which: int) -> None:
        seen: dict[Any, float] = {}

        def is_due(doc: dict[str, Any]) -> bool:
            lease = doc["lease"]["token"], doc["lease"]["expires"]
            seen[lease] = self.seen[which].get(lease, self.seconds)
            return self.seconds - seen[lease] >= SECOND_LOOK_S

        expected = self.model.reap(is_due)
        assert self.reaped(self.reapers[which].look()) == sorted(expected)
        self.seen[which] = seen
        if self.seconds >= self.next_unpark[which]:
            self.next_unpark[which] = self.seconds + FOREIGN_EVERY_S
            self.model.unpark()

    # ---- workers and zombies -----------------------------------------------------------------------

    @rule(key=KEYS, worker=st.sampled_from(["w1", "w2", "$state"]), lease_s=LEASES_S)
    def claim(self, key: str | None, worker: str, lease_s: float) -> None:
        asked: dict[str, Any] = {"worker": worker, "owner": f"{worker}:1", "token": new_token()}
        got = self.store.claim(key, **asked, lease_s=lease_s)
        expected = self.model.claim(key, **asked, lease_s=lease_s)
        if got is None or expected is None:
            assert got is expected
            return
        assert plain(got.doc) == plain(expected)
        self.claims[got.lease.token] = got

    @precondition(lambda self: self.living())
    @rule(data=st.data(), how=st.sampled_from(["reap", "end_attempt", "release"]), lease_s=LEASES_S)
    def take_over(self, data: st.DataObject, how: str, lease_s: float) -> None:
        """A worker loses its job, and another one gets it: from now on there is a zombie."""
        zombie = data.draw(st.sampled_from(self.living()))
        ref = {"blob": ObjectId()}
        self.write_as(zombie, "keep_checkpoint", ref)
        if how == "reap":
            self.go_to(self.model.given_job(zombie)["lease"]["expires"])
            self.reap(1)
        else:
            self.write_as(zombie, how, "its process died")
        self.write_as(zombie, "keep_checkpoint", ref)  # The outcome of the first sending was unknown.
        doc = self.model.given_job(zombie)
        ready = doc.get("not_before", self.model.now)
        for moment in (ready - MS, ready):
            self.go_to(moment)
            self.claim(doc["exp_key"], "w3", lease_s)

    def living(self) -> list[str]:
        return [token for token in self.claims if self.model.is_held(token)]

    def both(self, method: str, *args: Any) -> None:
        """Do it to both, and the same must come of it."""
        came = outcome(lambda: getattr(self.store, method)(*args))
        assert came == outcome(lambda: getattr(self.model, method)(*args))

    def write_as(self, token: str, method: str, *args: Any) -> None:
        came = outcome(lambda: getattr(self.store, method)(self.claims[token], *args))
        assert came == outcome(lambda: getattr(self.model, method)(self.model.given[token], *args))

    def zombies(self) -> list[str]:
        """Those who have lost their job; if there are any, those whose job another one holds now."""
        living = self.living()
        held = {self.model.given[token].job for token in living}
        lost = [token for token in self.claims if token not in living]
        return [token for token in lost if self.model.given[token].job in held] or lost

    @precondition(lambda self: self.zombies())
    @rule(data=st.data())
    def a_zombie_writes_whatever_it_can(self, data: st.DataObject) -> None:
        token = data.draw(st.sampled_from(self.zombies()))
        before = plain([*self.store.jobs.find(), *self.store.reports_.find()])
        for method, *args in (
            ("add_reports", [{"step": 99}]),
            ("checkpoint", {"loss": -99.0}),
            ("keep_checkpoint", {"blob": ObjectId()}),
            ("finish", JobState.DONE, {"result": {"status": "ok", "loss": -99.0}}),
            ("finish", JobState.ERROR, {"result": {"status": "fail"}}),
            ("release", "too late"),
            ("end_attempt", "too late", {"log": {"size": 99}}),
        ):
            self.write_as(token, method, *args)
        self.both("renew", [token], 60)
        assert plain([*self.store.jobs.find(), *self.store.reports_.find()]) == before

    def somebody(self, data: st.DataObject) -> str:
        """Whoever holds a lease, or held one."""
        lost = [token for token in self.claims if not self.model.is_held(token)]
        groups = [group for group in (self.living(), self.zombies(), lost) if group]
        return data.draw(st.sampled_from(data.draw(st.sampled_from(groups))))

    def write(self, data: st.DataObject, method: str, *args: Any) -> None:
        """A worker writes about a job that it believes to be its own."""
        token = self.somebody(data)
        self.last = lambda: self.write_as(token, method, *args)
        self.last()

    @rule()
    def send_again(self) -> None:
        """The outcome of the last write is unknown to its worker, whatever happened since."""
        self.last()

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), lease_s=LEASES_S)
    def renew(self, data: st.DataObject, lease_s: float) -> None:
        known = st.sampled_from([*self.claims, "nobody's"])
        self.both("renew", data.draw(st.lists(known, unique=True, max_size=4)), lease_s)

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), loss=LOSSES, status=st.sampled_from(["ok", "ok", "fail"]))
    def finish(self, data: st.DataObject, loss: float, status: str) -> None:
        blobs = [{"kind": kind, "blob": ObjectId()} for kind in ("model", "other")]
        self.write(
            data, "finish", JobState.DONE, {"result": {"status": status, "loss": loss}, "artifacts": blobs}
        )

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        self.write(
            data, "finish", JobState.ERROR, {"error": ["ValueError", "no"], "result": {"status": "fail"}}
        )

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def checkpoint(self, data: st.DataObject) -> None:
        self.write(data, "checkpoint", {"status": "running", "loss": 7.0})

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def keep_checkpoint(self, data: st.DataObject) -> None:
        self.write(data, "keep_checkpoint", {"blob": ObjectId(), "size": 3})

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), count=st.integers(1, 2))
    def report(self, data: st.DataObject, count: int) -> None:
        self.write(data, "add_reports", [{"step": step} for step in range(count)])

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self.write(data, "release", "told to stop")

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), fields=st.sampled_from([{}, {"log": {"size": 5}}]))
    def end_attempt(self, data: st.DataObject, fields: dict[str, Any]) -> None:
        self.write(data, "end_attempt", "its process died", fields)

    # ---- what has to hold after each step ----------------------------------------------------------

    @invariant()
    def the_database_equals_the_model(self) -> None:
        found = {doc["_id"]: plain(doc) for doc in self.store.jobs.find()}
        assert found == plain(self.model.jobs)
        self.rules_hold_in_what_changed(found)
        self.before = found
        assert {one["_id"]: one for one in self.store.reports_.find()} == self.model.reports

    def rules_hold_in_what_changed(self, found: dict[Any, dict[str, Any]]) -> None:
        for key, doc in found.items():
            was = self.before.get(key)
            if was is None or was == doc:
                continue
            if without(was, "version", "lease.expires") == without(doc, "version", "lease.expires"):
                assert doc["version"] >= was["version"]
            else:
                assert doc["version"] > was["version"], "a reader would not see it"
            if JobState(was["state"]).is_finished:
                changed = {name for name in {*was, *doc} if was.get(name) != doc.get(name)}
                assert changed == {"artifacts", "models_removed", "version"}, "a finished job has changed"

    @invariant()
    def each_job_has_one_holder_and_each_slot_one_job(self) -> None:
        docs = self.before.values()
        tokens = [doc["lease"]["token"] for doc in docs if "lease" in doc]
        assert len(set(tokens)) == len(tokens)
        assert all(("lease" in doc) <= (doc["state"] == RUNNING) for doc in docs)
        slots = [(doc["exp_key"], doc["slot"]) for doc in docs if "slot" in doc]
        assert len(set(slots)) == len(slots)
        assert all(0 <= doc.get("attempt", 0) <= doc.get("max_attempts", 3) for doc in docs)
        assert all("result" in doc and "accepted" in doc for doc in docs if doc["state"] == DONE)

    @invariant()
    def the_queue_and_the_clock_are_told_exactly(self) -> None:
        waiting = self.store.waiting()
        assert len(set(waiting.exp_keys)) == len(waiting.exp_keys)
        assert (set(waiting.exp_keys), waiting.next_s) == self.model.waiting()
        assert self.store.running_count() == self.model.running_count()

    @precondition(lambda self: self.claims)
    @rule()
    def look_up_claims_and_reports(self) -> None:
        for token in self.claims:
            found = self.store.claimed(token)
            assert (found is not None) == self.model.is_held(token)
        for doc in self.model.jobs.values():
            shown = [one["_id"] for one in self.store.reports(doc)]
            assert shown == self.model.visible_reports(doc)


def without(doc: dict[str, Any], *names: str) -> dict[str, Any]:
    """A copy of the document without some fields, also of sub-documents."""
    rest = copy.deepcopy(doc)
    for name in names:
        head, _, tail = name.partition(".")
        rest.pop(name, None) if not tail else rest.get(head, {}).pop(tail, None)
    return rest


@pytest.mark.timeout(600)  # Only a failure takes long: it is made as short as it can be.
def test_every_life_of_a_farm_follows_the_rules(store: Store) -> None:
    run_state_machine_as_test(lambda: Farm(store), settings=FEW_LIVES)
