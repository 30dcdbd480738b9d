"""Jobs that hyperopt's own programs have a part in: given a slot, taken back, given free."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from hyperfarm.errors import LeaseLost
from hyperfarm.jobs import PARKED_OWNER, Event, JobState
from hyperfarm.reaping import Reaper
from hyperfarm.store import Store
from tests.making import KEY, OK, claim, job, queue

GRACE_S = 100.0


def foreign(
    store: Store, tid: int, state: int = 1, *, silent_s: float = 0.0, **fields: Any
) -> dict[str, Any]:
    """A job as hyperopt's own programs leave it."""
    heard = store.now() - timedelta(seconds=silent_s)
    doc = {**job(tid), "state": state, "owner": "h:1", "book_time": heard, "refresh_time": heard, **fields}
    store.jobs.insert_one(doc)
    return doc


def one(store: Store, tid: int) -> dict[str, Any]:
    found = store.jobs.find_one({"tid": tid})
    assert found is not None
    return found


def test_a_silent_worker_without_a_lease_loses_its_job(store: Store) -> None:
    silent = foreign(store, 1, silent_s=GRACE_S + 5)
    alive = foreign(store, 2, silent_s=GRACE_S - 5)
    queue(store)
    ours = claim(store)
    ids = [doc["_id"] for doc in store.without_lease()]
    assert sorted(map(str, ids)) == sorted(map(str, [silent["_id"], alive["_id"]]))
    [(doc, event)] = store.take_back([*ids, ours.job_id], GRACE_S)
    assert (doc["tid"], event) == (1, Event.REQUEUE)
    back = one(store, 1)
    assert (back["state"], back["owner"], back["attempt"], back["version"]) == (0, None, 1, 1)
    assert "not_before" not in back
    assert "no sign of life from h:1" in back["history"][0]["reason"]
    assert one(store, 2)["state"] == JobState.RUNNING
    assert store.take_back(ids, GRACE_S) == []


def test_it_ends_as_an_error_after_its_attempts(store: Store) -> None:
    foreign(store, 1, silent_s=GRACE_S + 5, attempt=2, max_attempts=3)
    ids = [doc["_id"] for doc in store.without_lease()]
    assert [event for _, event in store.take_back(ids, GRACE_S)] == [Event.GIVE_UP]
    ended = one(store, 1)
    assert (ended["state"], ended["attempt"], ended["error"][0]) == (3, 3, "AttemptsExhausted")


def test_a_sign_of_life_in_between_wins(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign(store, 1, silent_s=GRACE_S + 5)
    ids = [doc["_id"] for doc in store.without_lease()]
    now = store.now()

    def refreshed() -> Any:
        store.jobs.update_one({"tid": 1}, {"$set": {"refresh_time": now}, "$inc": {"version": 1}})
        return now

    monkeypatch.setattr(store, "now", refreshed)
    assert store.take_back(ids, GRACE_S) == []
    assert one(store, 1)["state"] == JobState.RUNNING


def test_slots_are_given_to_what_counts_and_versions_stay(store: Store) -> None:
    queue(store, 1, first_slot=1)
    for tid, state in ((100, 2), (101, 3), (102, 1), (103, 0)):
        foreign(store, tid, state, owner=None)
    assert store.adopt(KEY) == 3
    slots = {doc["tid"]: doc.get("slot") for doc in store.jobs.find({"tid": {"$gte": 100}})}
    assert slots == {100: 0, 101: None, 102: 2, 103: 3}
    assert {doc["version"] for doc in store.jobs.find()} == {0}
    assert store.adopt(KEY) == 0
    assert store.adopt("other") == 0


def test_a_job_that_nobody_of_ours_takes_is_free_for_all(store: Store) -> None:
    queue(store)
    held = claim(store)
    store.end_attempt(held, "it died")
    assert one(store, held.tid)["owner"] == PARKED_OWNER
    assert store.unpark(0) == 0, "its back-off is not over"
    long_ago = store.now() - timedelta(seconds=61)
    store.jobs.update_one({"_id": held.job_id}, {"$set": {"not_before": long_ago}})
    version = one(store, held.tid)["version"]
    assert store.unpark(62) == 0
    assert store.unpark(60) == 1
    free = one(store, held.tid)
    assert (free["owner"], free["version"], "not_before" in free) == (None, version + 1, False)
    assert claim(store).attempt == 2


def test_the_reaper_looks_at_them_now_and_then_and_warns_once(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    foreign(store, 1, silent_s=50)
    now = 0.0
    reaper = Reaper(store, lambda: now, legacy_grace_s=GRACE_S)
    for _ in range(4):
        assert reaper.look() == []
        now += 26
    assert caplog.text.count("is no worker of hyperfarm's") == 1
    store.jobs.update_one(
        {"tid": 1}, {"$set": {"refresh_time": store.now() - timedelta(seconds=GRACE_S + 1)}}
    )
    assert [event for _, event in reaper.look()] == [Event.REQUEUE]
    assert store.without_lease() == []


def test_nothing_is_injected_without_the_lease(store: Store) -> None:
    queue(store, 2)
    held = claim(store)
    store.inject(held, [job(50, "other", result=OK["result"])])
    injected = one(store, 50)
    assert (injected["exp_key"], injected["state"], "slot" in injected) == (KEY, 2, False)
    store.release(held, "why not")
    with pytest.raises(LeaseLost):
        store.inject(held, [job(51)])
    assert store.jobs.find_one({"tid": 51}) is None
