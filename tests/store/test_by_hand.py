"""Jobs that people have a hand in: points they queued, and those of studies, which no worker may have."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hyperfarm.jobs import STUDY_OWNER, Claim
from hyperfarm.queries import NO_KEY
from hyperfarm.store import Store, new_token
from hyperfarm.view import View
from tests.making import KEY, claim, expire, job, queue, stored, watched


def ask(store: Store) -> Claim | None:
    return store.claim(KEY, worker="me", owner="me:1", token=new_token(), lease_s=60.0, of_study=True)


def study_job(tid: int, **fields: object) -> dict:
    return job(tid, slot=tid, attempt=0, max_attempts=2, ask_and_tell=True, owner=STUDY_OWNER, **fields)


def test_what_a_person_has_queued_is_not_withdrawn_but_can_be_cancelled(store: Store) -> None:
    queue(store, 2)
    store.insert_jobs([job(100, slot=5, attempt=0, enqueued=True)])
    assert store.withdraw_queued(KEY) == 2
    assert [doc["tid"] for doc in store.find_jobs(KEY)] == [100]
    assert store.cancel(KEY) == 1
    assert "slot" not in store.job(KEY, 100)


def lost(store: Store, held: Claim) -> None:
    expire(store, held)
    store.reap()


def released(store: Store, held: Claim) -> None:
    assert store.release(held, "its study was closed")


@pytest.mark.parametrize(("end", "attempt"), [(lost, 2), (released, 1)])
def test_a_studys_job_is_claimed_by_those_who_ask_alone_however_it_came_back(
    store: Store, end: Callable[[Store, Claim], None], attempt: int
) -> None:
    store.insert_jobs([study_job(0)])
    for _ in range(2):
        assert store.waiting().exp_keys == []
        assert store.first_waiting(KEY) is None
        assert store.claim(KEY, worker="w", owner="w:1", token=new_token(), lease_s=60.0) is None
        assert store.unpark(0.0) == 0
        held = ask(store)
        assert held is not None
        assert store.running_count() == 0, "it takes no slot of a worker"
        if held.attempt == 1:
            end(store, held)
            assert stored(store, held)["owner"] == STUDY_OWNER
            assert "not_before" not in stored(store, held)
        if attempt == 1:
            break
    assert held.attempt == attempt
    if attempt == 2:
        lost(store, held)
        after = stored(store, held)
        assert (after["state"], after["owner"], after["error"][0]) == (3, None, "AttemptsExhausted")


def test_who_asks_does_not_get_a_workers_job(store: Store) -> None:
    queue(store, 1)
    assert ask(store) is None
    assert claim(store).attempt == 1


def test_asking_uses_the_index_of_the_queue(store: Store) -> None:
    store.insert_jobs([study_job(tid) for tid in range(30)])
    with watched(store) as seen:
        assert ask(store) is not None
    (statement,) = [one for one in seen if one["command"].get("findAndModify") == "jobs"]
    assert statement["planSummary"] == "IXSCAN { exp_key: 1, tid: 1 }"  # The index `queue`.
    assert statement["docsExamined"] == 1


def test_the_lowest_free_slots_are_found_also_after_one_is_freed(store: Store) -> None:
    view = View(store, KEY)
    store.insert_jobs([job(tid, slot=slot) for tid, slot in enumerate([0, 1, 3, 7])])
    view.refresh()
    assert view.free_slots(3, 10) == [2, 4, 5]
    assert view.free_slots(9, 5) == [2, 4]
    store.insert_jobs([job(10, slot=2), job(11, slot=4)])
    view.refresh()
    assert view.free_slots(9, 5) == []
    assert view.free_slots(2, 7) == [5, 6]
    store.remove_jobs(KEY)
    view.refresh(full=True)
    assert view.free_slots(2, 7) == [0, 1]
    assert View(store, NO_KEY).free_slots(1, 0) == []
