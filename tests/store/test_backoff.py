"""After a lost attempt a job waits out a back-off, by the database's clock, before anybody may claim it again."""

from __future__ import annotations

import time

from hyperfarm.jobs import PARKED_OWNER, backoff_s
from hyperfarm.store import Store, new_token
from tests.making import KEY, claim, queue, stored


def try_to_claim(store: Store) -> int | None:
    claimed = store.claim(KEY, worker="w", owner="w:1", token=new_token(), lease_s=60)
    return None if claimed is None else claimed.tid


def test_a_lost_attempt_is_followed_by_a_back_off_and_other_jobs_go_first(store: Store) -> None:
    first, second = queue(store, 2)
    held = claim(store)
    assert held.tid == first
    store.end_attempt(held, "its process died")
    doc = stored(store, held)
    assert doc is not None
    assert doc["owner"] == PARKED_OWNER
    assert 0 < (doc["not_before"] - store.now()).total_seconds() <= backoff_s(1)
    assert try_to_claim(store) == second
    assert try_to_claim(store) is None


def test_the_queue_tells_when_the_next_back_off_ends(store: Store) -> None:
    queue(store)
    assert store.waiting().next_s is None
    store.end_attempt(claim(store), "its process died")
    found = store.waiting()
    assert found.exp_keys == []
    assert found.next_s is not None
    assert 0 < found.next_s <= backoff_s(1)


def test_the_job_may_be_claimed_at_the_end_of_its_back_off_and_not_before(store: Store) -> None:
    queue(store)
    held = claim(store)
    store.end_attempt(held, "its process died")
    doc = stored(store, held)
    assert doc is not None
    deadline = time.monotonic() + 20
    while True:
        ready = store.waiting().exp_keys == [KEY]
        before = store.now()
        tid = try_to_claim(store)
        if tid is not None:
            assert store.now() >= doc["not_before"]
            break
        assert not ready, "waiting() said that it may be claimed"
        assert before < doc["not_before"], "not claimable although the back-off had ended"
        assert time.monotonic() < deadline
    after = stored(store, held)
    assert after is not None
    assert "not_before" not in after


def test_a_released_job_may_be_claimed_at_once(store: Store) -> None:
    queue(store)
    held = claim(store)
    store.release(held, "its worker was stopped")
    assert try_to_claim(store) == held.tid


def test_back_offs_grow_and_are_bounded() -> None:
    assert [backoff_s(attempt) for attempt in (1, 2, 3, 4, 5, 1000)] == [2, 8, 32, 120, 120, 120]
