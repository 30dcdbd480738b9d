"""Rule 4: an expired lease is taken back by whoever notices, once, and never too early."""

from __future__ import annotations

import datetime as dt
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from pymongo import MongoClient, monitoring

from hyperfarm.errors import DatabaseUnavailable
from hyperfarm.jobs import KEPT_HISTORY, PARKED_OWNER, Event, JobState
from hyperfarm.mongo import normalise_url
from hyperfarm.reaping import SECOND_LOOK_S, Reaper
from hyperfarm.store import Store
from tests.making import KEY, claim, expire, job, queue, stored


def test_a_lease_holds_until_its_end_and_not_longer(store: Store) -> None:
    queue(store)
    held = claim(store, lease_s=0.3)
    assert held.lease.expires is not None
    deadline = time.monotonic() + 10
    while True:
        before = store.now()
        reaped = store.reap()
        if reaped:
            break
        assert before < held.lease.expires, "not reaped although the lease had ended"
        assert time.monotonic() < deadline
    assert store.now() >= held.lease.expires
    [(doc, event)] = reaped
    assert (doc["tid"], event) == (held.tid, Event.REQUEUE)
    [entry] = store.jobs.find_one({"tid": held.tid})["history"]
    assert entry["at"] >= held.lease.expires


def test_a_live_lease_is_left_alone(store: Store) -> None:
    queue(store)
    held = claim(store, lease_s=60)
    before = stored(store, held)
    assert store.reap() == []
    assert stored(store, held) == before
    assert store.running_count() == 1
    expire(store, held)
    assert store.running_count() == 0


def test_a_job_is_tried_three_times_then_it_fails_with_the_whole_story(store: Store) -> None:
    queue(store)
    expected = [(Event.REQUEUE, 0), (Event.REQUEUE, 0), (Event.GIVE_UP, 3)]
    for number, (event, state) in enumerate(expected, start=1):
        held = claim(store, worker=f"host{number}")
        expire(store, held)
        assert [event for _, event in store.reap()] == [event]
        doc = stored(store, held)
        assert doc is not None
        owner = PARKED_OWNER if event is Event.REQUEUE else None
        assert (doc["state"], doc["owner"], doc["attempt"]) == (state, owner, number)
        assert [one["worker"] for one in doc["history"]] == [f"host{n}" for n in range(1, number + 1)]
    assert doc["result"] == {"status": "fail"}
    kind, story = doc["error"]
    assert kind == "AttemptsExhausted"
    for number in (1, 2, 3):
        assert f"attempt {number}: no sign of life from worker host{number}" in story
    assert "slot" in doc, "a job out of attempts has used its slot up"
    assert store.claim(KEY, worker="w", owner="o", token="t", lease_s=1) is None


def test_a_child_that_dies_again_and_again_ends_its_job_too(store: Store) -> None:
    queue(store)
    events = [store.end_attempt(claim(store), f"death {number}") for number in (1, 2, 3)]
    assert events == [Event.REQUEUE, Event.REQUEUE, Event.GIVE_UP]
    doc = store.jobs.find_one({})
    assert doc is not None
    assert doc["error"][1] == "attempt 1: death 1; attempt 2: death 2; attempt 3: death 3"


def test_reaping_and_dying_give_a_job_without_max_attempts_the_same_number(store: Store) -> None:
    for lose in ("reap", "die"):
        store.jobs.delete_many({})
        store.insert_jobs([job(0)])
        for attempt in (1, 2, 3):
            held = claim(store)
            assert held.attempt == attempt
            if lose == "die":
                event = store.end_attempt(held, "died")
            else:
                expire(store, held)
                [(_, event)] = store.reap()
            assert event is (Event.GIVE_UP if attempt == 3 else Event.REQUEUE)


def test_a_release_is_no_attempt(store: Store) -> None:
    queue(store)
    for _ in range(5):
        held = claim(store)
        assert held.attempt == 1
        assert store.release(held, "the worker was stopped")
    doc = stored(store, held)
    assert doc is not None
    assert (doc["state"], doc["attempt"], doc["owner"]) == (JobState.NEW, 0, None)
    assert "lease" not in doc
    assert {one["event"] for one in doc["history"]} == {"release"}


def test_the_history_of_a_job_is_bounded(store: Store) -> None:
    queue(store)
    for number in range(KEPT_HISTORY + 5):
        store.release(claim(store), f"release {number}")
    doc = store.jobs.find_one({})
    assert doc is not None
    kept = [one["reason"] for one in doc["history"]]
    assert kept == [f"release {number}" for number in range(5, KEPT_HISTORY + 5)]


def test_a_renewal_that_comes_in_between_wins(store: Store, mongo_url: str) -> None:
    queue(store)
    held = claim(store)
    expire(store, held)

    class RenewFirst(monitoring.CommandListener):
        """Renews the lease between the reaper's look and its update."""

        def started(self, event: monitoring.CommandStartedEvent) -> None:
            if event.command_name == "update":
                assert store.renew([held.lease.token], 60) == set()

        def succeeded(self, event: Any) -> None: ...

        def failed(self, event: Any) -> None: ...

    url, name = normalise_url(mongo_url)
    with MongoClient(url, tz_aware=True, event_listeners=[RenewFirst()]) as client:
        assert Store(client[name]).reap() == []
    doc = stored(store, held)
    assert doc is not None
    assert doc["lease"]["token"] == held.lease.token
    assert "history" not in doc
    assert store.claimed(held.lease.token) is not None


def test_two_reapers_take_a_job_back_once(store: Store, mongo_url: str) -> None:
    queue(store, 40)
    for _ in range(40):
        expire(store, claim(store))
    ready = threading.Barrier(2)

    def reap(_: int) -> list[int]:
        own = Store.open(mongo_url)
        ready.wait(timeout=30)
        tids = [doc["tid"] for doc, _ in own.reap()]
        own.close()
        return tids

    with ThreadPoolExecutor(2) as pool:
        reaped = [tid for tids in pool.map(reap, range(2)) for tid in tids]
    assert sorted(reaped) == sorted(doc["tid"] for doc in store.jobs.find())
    assert all(len(doc["history"]) == 1 for doc in store.jobs.find())


@pytest.mark.parametrize("lease", [None, {"token": "t", "worker": "w"}, {"token": "t", "expires": None}])
def test_a_job_without_a_dated_lease_is_a_foreign_workers(store: Store, lease: Any) -> None:
    long_ago = store.now() - dt.timedelta(days=400)
    doc = job(0, state=1, owner="host:1", book_time=long_ago, refresh_time=long_ago)
    if lease is not None:
        doc["lease"] = lease
    store.jobs.insert_one(doc)
    before = store.jobs.find_one({})
    assert store.reap() == []
    assert store.jobs.find_one({}) == before


def test_a_reaped_job_keeps_what_is_its_own(store: Store) -> None:
    doc = job(0, slot=0, attempt=0, max_attempts=3, spec={"a": "$state"}, bundle="abc")
    doc["misc"]["vals"] = {"a%2Eb": ["$tid"]}
    store.jobs.insert_one(doc)
    held = claim(store)
    expire(store, held)
    store.reap()
    after = stored(store, held)
    assert after is not None
    for field in ("misc", "spec", "slot", "bundle", "max_attempts", "exp_key", "tid", "result"):
        assert after[field] == doc[field]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_an_observer_waits_until_living_workers_could_have_renewed(store: Store) -> None:
    queue(store, 2)
    dead, alive = claim(store), claim(store)
    clock = Clock()
    reaper = Reaper(store, clock)
    expire(store, dead)
    expire(store, alive)
    assert reaper.look() == []
    clock.now = SECOND_LOOK_S - 0.1
    assert reaper.look() == []
    store.renew([alive.lease.token], 60)
    expire(store, alive)  # Renewed once, and expired again: its time begins anew.
    clock.now = SECOND_LOOK_S
    assert [(doc["tid"], event) for doc, event in reaper.look()] == [(dead.tid, Event.REQUEUE)]
    clock.now += SECOND_LOOK_S
    assert [doc["tid"] for doc, _ in reaper.look()] == [alive.tid]
    assert reaper.look() == []


def test_an_observer_begins_anew_when_the_database_was_away(store: Store) -> None:
    class Away(Store):
        away = False

        def reap(self, *args: Any) -> Any:
            if self.away:
                raise DatabaseUnavailable("away")
            return super().reap(*args)

    queue(store)
    expire(store, claim(store))
    clock, farm = Clock(), Away(store.database)
    reaper = Reaper(farm, clock)
    assert reaper.look() == []
    clock.now, farm.away = 5.0, True
    with pytest.raises(DatabaseUnavailable):
        reaper.look()
    clock.now, farm.away = SECOND_LOOK_S + 1, False
    assert reaper.look() == []
    clock.now += SECOND_LOOK_S
    assert len(reaper.look()) == 1
