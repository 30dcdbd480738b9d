"""The local copy of an experiment's jobs equals the database, and reading it costs what changed."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import bson
import pytest

from hyperfarm.jobs import JobState, is_failed, is_ok
from hyperfarm.store import Store
from hyperfarm.values import encode_keys, is_number
from hyperfarm.view import COMPARE_EVERY_S, View
from tests.making import KEY, OK, claim, expire, job, queue, watched

HIDDEN = ("traceback", "history", "notes")
OTHER = "other"


class FakeClock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def check(view: View, store: Store, exp_key: str | None) -> None:
    """The copy, and all that it derives, equals what is computed afresh from the database."""
    docs = store.find_jobs(exp_key, hide=HIDDEN)
    assert written(view.jobs()) == written(docs)
    open_ones = [doc for doc in docs if doc["state"] in (0, 1)]
    assert sorted(doc["tid"] for doc in view.unfinished()) == [doc["tid"] for doc in open_ones]
    slots: dict[int, set[int]] = {}
    for doc in docs:
        if "slot" in doc:
            slots.setdefault(doc["slot"], set()).add(doc["tid"])
    assert view.slots() == slots
    assert view.count_failed() == sum("slot" in doc and is_failed(doc) for doc in docs)
    numbered = [doc for doc in docs if is_ok(doc) and is_number(doc["result"].get("loss"))]
    best = min(numbered, key=lambda doc: (doc["result"]["loss"], doc["tid"]), default=None)
    assert view.best() == best


def written(docs: list[dict[str, Any]]) -> list[bytes]:
    """In BSON, in which NaN equals itself."""
    return [bson.encode(encode_keys(doc)) for doc in docs]


class Farm:
    """Does random things to the jobs of two experiments."""

    def __init__(self, store: Store, seed: int) -> None:
        self.store, self.random = store, random.Random(seed)
        self.slot = {KEY: 0, OTHER: 0}
        self.held: list[Any] = []

    def key(self) -> str:
        return self.random.choice([KEY, KEY, OTHER])

    def insert(self) -> None:
        key, count = self.key(), self.random.randint(1, 4)
        queue(self.store, count, key, first_slot=self.slot[key])
        self.slot[key] += count

    def insert_without_slot(self) -> None:
        [tid] = self.store.new_tids(1)
        self.store.insert_jobs([job(tid, self.key())])

    def claim(self) -> None:
        key = self.key()
        if self.store.jobs.count_documents({"exp_key": key, "state": 0}):
            self.held.append(claim(self.store, key))

    def _take(self) -> Any:
        alive = [one for one in self.held if self.store.claimed(one.lease.token)]
        self.held = alive
        return alive.pop(self.random.randrange(len(alive))) if alive else None

    def finish(self) -> None:
        if held := self._take():
            loss = self.random.choice([float("nan"), float("inf"), 1.0, self.random.random()])
            result = {"status": self.random.choice(["ok", "ok", "ok", "fail"]), "loss": loss, "a.b": 1}
            state = self.random.choice([JobState.DONE, JobState.DONE, JobState.DONE, JobState.ERROR])
            self.store.finish(held, state, {"result": result, "traceback": "long", "notes": ["x"]})

    def lose(self) -> None:
        if held := self._take():
            way = self.random.choice(["release", "end", "reap", "checkpoint"])
            if way == "release":
                self.store.release(held, "r")
            elif way == "end":
                self.store.end_attempt(held, "e")
            elif way == "checkpoint":
                self.store.checkpoint(held, {"status": "running", "loss": 0.0})
            else:
                expire(self.store, held)
                self.store.reap()

    def cancel(self) -> None:
        if self.random.random() < 0.3:
            self.store.cancel(self.key())

    def withdraw(self) -> None:
        if self.random.random() < 0.3:
            self.store.withdraw_queued(self.key())

    # What an ordinary refresh cannot see: only a comparison of all jobs finds it.

    def delete(self) -> None:
        for doc in self.store.jobs.aggregate([{"$sample": {"size": 2}}]):
            self.store.jobs.delete_one({"_id": doc["_id"]})

    def retry(self) -> None:
        fresh = {"state": 0, "attempt": 0, "owner": None, "result": {"status": "new"}}
        self.store.jobs.update_one({"state": {"$in": [2, 3]}}, {"$set": fresh, "$inc": {"version": 1}})

    def insert_late(self) -> None:
        lowest = self.store.jobs.find_one({}, sort=[("tid", 1)])
        if lowest is not None:
            self.store.insert_jobs([job(lowest["tid"] - 1, self.key())])


VISIBLE = (
    "insert",
    "insert_without_slot",
    "claim",
    "claim",
    "finish",
    "finish",
    "lose",
    "cancel",
    "withdraw",
)
HARD = ("delete", "retry", "insert_late")


@pytest.mark.parametrize("seed", range(3))
def test_an_ordinary_refresh_follows_the_life_of_jobs(store: Store, seed: int) -> None:
    farm, clock = Farm(store, seed), FakeClock()
    keys = (KEY, OTHER, None)
    views = {key: View(store, key, clock) for key in keys}
    for view in views.values():
        view.refresh()
    clock.now = 1.0  # and stays there: no comparison of all jobs takes place
    for _ in range(80):
        getattr(farm, farm.random.choice(VISIBLE))()
        for key, view in views.items():
            view.refresh()
            check(view, store, key)
    assert store.jobs.count_documents({"state": {"$in": [2, 3]}}) > 3


@pytest.mark.parametrize("seed", range(3))
def test_a_full_refresh_finds_whatever_happened(store: Store, seed: int) -> None:
    farm = Farm(store, 100 + seed)
    store.new_tids(50)
    views = {key: View(store, key) for key in (KEY, OTHER, None)}
    for _ in range(20):
        for _ in range(farm.random.randint(1, 6)):
            getattr(farm, farm.random.choice(VISIBLE + HARD))()
            if farm.random.random() < 0.5:
                views[KEY].refresh()
        for key, view in views.items():
            view.refresh(full=True)
            check(view, store, key)


def test_a_refresh_returns_what_is_new_or_changed(store: Store) -> None:
    view = View(store, KEY)
    tids = queue(store, 3)
    assert [doc["tid"] for doc in view.refresh()] == tids
    assert view.refresh() == []
    held = claim(store)
    store.renew([held.lease.token], 60)
    assert [doc["state"] for doc in view.refresh()] == [JobState.RUNNING]
    store.renew([held.lease.token], 60)
    assert view.refresh(full=True) == [], "a renewal is nothing that a reader can see"


def hide_from_ordinary_refresh(how: str, store: Store) -> None:
    if how == "deleted":
        store.jobs.delete_one({"tid": 10})
    elif how == "late":
        store.insert_jobs([job(5)])
    else:
        store.jobs.update_one({"tid": 10}, {"$set": {"state": 0}, "$inc": {"version": 1}})


@pytest.mark.parametrize("how", ["deleted", "late", "retried"])
def test_every_few_seconds_all_jobs_are_compared(store: Store, how: str) -> None:
    clock = FakeClock()
    view = View(store, KEY, clock)
    store.insert_jobs([job(10, state=2, result=OK["result"]), job(11)])
    view.refresh()
    hide_from_ordinary_refresh(how, store)
    clock.now = COMPARE_EVERY_S - 0.1
    view.refresh()
    assert view.jobs() != store.find_jobs(KEY)
    clock.now = COMPARE_EVERY_S + 0.1
    view.refresh()
    check(view, store, KEY)


def test_comparisons_take_a_bounded_share_of_the_time(store: Store) -> None:
    clock = FakeClock()

    class Slow(Store):
        def job_versions(self, exp_key: str | None) -> Any:
            clock.now += 2.0
            return super().job_versions(exp_key)

    view = View(Slow(store.database), KEY, clock)
    view.refresh()
    ended = clock.now
    clock.now = ended + 2.0 / 0.02 - 1
    view.refresh()
    assert clock.now == ended + 99
    clock.now = ended + 2.0 / 0.02 + 1
    view.refresh()
    assert clock.now == ended + 103


def read(store: Store, call: Callable[[], Any]) -> tuple[int, int]:
    """(index keys, documents) that the database examined during the call."""
    with watched(store) as seen:
        call()
    return sum(one.get("keysExamined", 0) for one in seen), sum(one.get("docsExamined", 0) for one in seen)


@pytest.mark.parametrize("exp_key", [KEY, None])
def test_an_ordinary_refresh_reads_what_changed_and_no_more(store: Store, exp_key: str | None) -> None:
    store.jobs.insert_many([job(tid, state=2, result=OK["result"]) for tid in range(1000)])
    store.new_tids(1000)
    clock = FakeClock()
    view = View(store, exp_key, clock)
    view.refresh()
    assert len(view.jobs()) == 1000
    keys, docs = read(store, view.refresh)
    assert keys < 10
    assert docs == 0
    queue(store, 5)
    keys, docs = read(store, view.refresh)
    assert keys < 30
    assert docs == 5
    store.finish(claim(store), JobState.DONE, OK)
    keys, docs = read(store, view.refresh)
    assert keys < 30
    assert docs == 1
    check(view, store, exp_key)


def test_jobs_of_ours_that_lose_their_slot_leave_the_winners_mark(store: Store) -> None:
    """The other controller's job is known and finished when ours, put in ahead of its insertion, is dropped."""
    queue(store, 1)
    store.finish(claim(store), JobState.DONE, OK)
    view = View(store, KEY)
    view.refresh()
    ours = job(50, slot=0, attempt=0, max_attempts=3)
    view.put([ours])
    assert view.slots() == {0: {0, 50}}
    assert store.insert_jobs([ours]) == set()
    view.forget([50])
    view.refresh(full=True)
    check(view, store, KEY)
    assert set(view.slots()) == {0}
