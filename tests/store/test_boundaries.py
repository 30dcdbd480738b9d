"""Both sides of every boundary in time, to the millisecond: the clock is in the test's hand."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from pymongo import MongoClient, monitoring

from hyperfarm.jobs import Claim, Event, JobState
from hyperfarm.mongo import normalise_url
from hyperfarm.store import Store, new_token
from tests.making import KEY, OK, job
from tests.store.clocked import MS, ClockedStore

SIDES_MS = pytest.mark.parametrize("late_ms", [-1, 0, 1])
EXPIRED = pytest.mark.parametrize("lose", ["reap", "end_attempt"])


@pytest.fixture
def clocked(store: Store) -> ClockedStore:
    return ClockedStore(store)


def queue(store: Store, tries: int = 6) -> None:
    [tid] = store.new_tids(1)
    assert store.insert_jobs([job(tid, slot=tid, attempt=0, max_attempts=tries)]) == {tid}


def try_to_claim(store: Store, lease_s: float = 60) -> Claim | None:
    return store.claim(KEY, worker="w", owner="w:1", token=new_token(), lease_s=lease_s)


def claimed(store: Store, lease_s: float = 60) -> Claim:
    held = try_to_claim(store, lease_s)
    assert held is not None
    return held


def lost(store: ClockedStore, how: str, lease_s: float = 60) -> Event:
    """Claim the job, and lose the attempt now or when its lease ends."""
    held = claimed(store, lease_s)
    if how == "end_attempt":
        event = store.end_attempt(held, "its process died")
        assert event is not None
        return event
    store.advance(int(lease_s * 1000))
    [(_, event)] = store.reap()
    return event


@SIDES_MS
@pytest.mark.parametrize("lease_s", [30, 90, 0.001, 12.345])
def test_a_lease_ends_at_its_very_millisecond(clocked: ClockedStore, lease_s: float, late_ms: int) -> None:
    queue(clocked)
    held = claimed(clocked, lease_s)
    assert held.lease.expires == clocked.time + dt.timedelta(seconds=lease_s)
    clocked.time = held.lease.expires + late_ms * MS
    over = late_ms >= 0
    assert clocked.running_count() == (0 if over else 1)
    assert len(clocked.reap()) == (1 if over else 0)
    assert (clocked.claimed(held.lease.token) is None) is over


@SIDES_MS
def test_a_renewed_lease_counts_from_the_renewal(clocked: ClockedStore, late_ms: int) -> None:
    queue(clocked)
    held = claimed(clocked, 60)
    clocked.advance(59_999)
    assert clocked.renew([held.lease.token], 30) == set()
    clocked.advance(30_000 + late_ms)
    assert len(clocked.reap()) == (1 if late_ms >= 0 else 0)


@EXPIRED
@pytest.mark.parametrize("late_ms", [0, 1])
def test_a_back_off_ends_at_its_very_millisecond(clocked: ClockedStore, lose: str, late_ms: int) -> None:
    queue(clocked)
    for pause_ms in (2000, 8000, 32_000, 120_000, 120_000):
        assert lost(clocked, lose) is Event.REQUEUE
        clocked.advance(pause_ms - 1)
        assert (clocked.waiting().exp_keys, clocked.waiting().next_s) == ([], 0.001)
        assert try_to_claim(clocked) is None
        clocked.advance(1 + late_ms)
        assert (clocked.waiting().exp_keys, clocked.waiting().next_s) == ([KEY], None)
    assert lost(clocked, lose) is Event.GIVE_UP
    assert (clocked.waiting().exp_keys, clocked.waiting().next_s) == ([], None)


@EXPIRED
@pytest.mark.parametrize("tries", [1, 2, 3, 5])
def test_a_job_gets_all_its_attempts_and_no_more(clocked: ClockedStore, lose: str, tries: int) -> None:
    queue(clocked, tries)
    events = []
    while clocked.jobs.count_documents({"state": int(JobState.NEW)}):
        clocked.advance(120_000)
        events.append(lost(clocked, lose))
    assert events == [Event.REQUEUE] * (tries - 1) + [Event.GIVE_UP]


def test_the_next_back_off_is_the_soonest_of_all_experiments(clocked: ClockedStore) -> None:
    queue(clocked)
    queue(clocked)
    first, second = claimed(clocked), claimed(clocked)
    clocked.end_attempt(first, "died")
    clocked.advance(700)
    clocked.end_attempt(second, "died")
    assert clocked.waiting().next_s == 1.3
    clocked.advance(1299)
    assert clocked.waiting().next_s == 0.001
    clocked.advance(1)
    assert (clocked.waiting().exp_keys, clocked.waiting().next_s) == ([KEY], 0.7)


def test_a_lease_that_has_ended_is_its_holders_until_somebody_takes_it(clocked: ClockedStore) -> None:
    """After an outage of the database nobody may have reaped: then nothing is lost."""
    queue(clocked)
    queue(clocked)
    late, later = claimed(clocked), claimed(clocked)
    clocked.advance(10_000_000)
    assert clocked.renew([late.lease.token], 60) == set()
    clocked.finish(later, JobState.DONE, OK)
    assert clocked.reap() == []
    clocked.finish(late, JobState.DONE, OK)
    assert clocked.jobs.count_documents({"state": int(JobState.DONE)}) == 2


def test_the_time_is_what_the_server_says(store: Store, mongo_url: str) -> None:
    told: list[dt.datetime] = []

    class Listener(monitoring.CommandListener):
        def started(self, event: Any) -> None: ...

        def succeeded(self, event: monitoring.CommandSucceededEvent) -> None:
            told.append(event.reply["localTime"].replace(tzinfo=dt.timezone.utc))

        def failed(self, event: Any) -> None: ...

    url, name = normalise_url(mongo_url)
    with MongoClient(url, tz_aware=True, event_listeners=[Listener()]) as client:
        assert [Store(client[name]).now()] == told


def test_no_clock_of_this_machine_takes_part(clocked: ClockedStore) -> None:
    """All that is written down shows the database's time, of a year that this machine's clock does not."""
    queue(clocked)
    held = claimed(clocked)
    clocked.keep_checkpoint(held, {"blob": 1})
    clocked.end_attempt(held, "died")
    clocked.advance(2000)
    claimed(clocked)
    doc = clocked.jobs.find_one({})
    assert doc is not None
    [entry] = doc["history"]
    shown = [doc["book_time"], doc["lease"]["expires"], entry["at"], doc["checkpoint"]["at"]]
    assert shown == [clocked.time, clocked.time + 60_000 * MS, *[clocked.time - 2000 * MS] * 2]
