"""What happens between a reaper's look and its update wins: the update names all that was seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from hyperfarm.jobs import Claim, JobState
from hyperfarm.store import Store
from tests.making import KEY, OK, claim, job
from tests.store.clocked import ClockedStore

LEASE_S = 60.0


def taken_over_by_a_clock_that_is_behind(store: ClockedStore, held: Claim) -> None:
    """An election makes a primary whose clock is behind: the next lease ends when this one did."""
    store.release(held, "told to stop")
    store.advance(-int(LEASE_S * 1000))
    heir = claim(store, worker="w2", lease_s=LEASE_S)
    assert heir.lease.expires == held.lease.expires


BETWEEN: dict[str, Callable[[ClockedStore, Claim], Any]] = {
    "renewed": lambda store, held: store.renew([held.lease.token], LEASE_S),
    "finished": lambda store, held: store.finish(held, JobState.DONE, OK),
    "released": lambda store, held: store.release(held, "told to stop"),
    "attempt ended": lambda store, held: store.end_attempt(held, "its process died"),
    "cancelled": lambda store, held: store.cancel(KEY),
    "removed": lambda store, held: store.remove_jobs(KEY),
    "reaped by another": lambda store, held: Store.reap(store),
    "ended by another program": lambda store, held: store.jobs.update_one({}, {"$set": {"state": 2}}),
    "taken over, with the same end": taken_over_by_a_clock_that_is_behind,
}


@pytest.mark.parametrize("what", BETWEEN)
def test_what_comes_in_between_wins(store: Store, what: str) -> None:
    clocked = ClockedStore(store)
    clocked.insert_jobs([job(0, slot=0, attempt=0, max_attempts=3)])
    held = claim(clocked, lease_s=LEASE_S)
    clocked.advance(int(LEASE_S * 1000))
    after: list[dict[str, Any]] = []

    def is_due(_: dict[str, Any]) -> bool:
        BETWEEN[what](clocked, held)
        after.extend(clocked.jobs.find())
        return True

    assert clocked.reap(is_due) == []
    assert list(clocked.jobs.find()) == after
