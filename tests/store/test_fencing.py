"""Rules 2, 5 and 6: what a worker writes counts only while the job is its own, and counts once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from hyperfarm.errors import LeaseLost
from hyperfarm.jobs import PARKED_OWNER, Claim, Event, JobState
from hyperfarm.store import Store
from tests.making import KEY, OK, claim, expire, queue, stored

LATE = {"result": {"status": "ok", "loss": -99.0}}


def reaped(store: Store, held: Claim) -> None:
    expire(store, held)
    assert len(store.reap()) == 1


def taken_over(store: Store, held: Claim) -> None:
    reaped(store, held)
    assert claim(store, worker="w2").job_id == held.job_id


def finished_by_another(store: Store, held: Claim) -> None:
    reaped(store, held)
    store.finish(claim(store, worker="w2"), JobState.DONE, OK)


def cut_off_for_the_last_time(store: Store, held: Claim) -> None:
    store.jobs.update_one({"_id": held.job_id}, {"$set": {"max_attempts": 1}})
    reaped(store, held)


WAYS_TO_LOSE: dict[str, Callable[[Store, Claim], Any]] = {
    "reaped": reaped,
    "taken over": taken_over,
    "finished by another": finished_by_another,
    "out of attempts": cut_off_for_the_last_time,
    "released": lambda store, held: store.release(held, "told to stop"),
    "attempt ended": lambda store, held: store.end_attempt(held, "the child died"),
    "cancelled": lambda store, held: store.cancel(KEY),
    "removed": lambda store, held: store.remove_jobs(KEY),
    "ended by another program": lambda store, held: store.jobs.update_one({}, {"$set": {"state": 2}}),
}


@pytest.mark.parametrize("way", WAYS_TO_LOSE)
def test_the_old_holder_changes_nothing(store: Store, way: str) -> None:
    queue(store)
    held = claim(store)
    WAYS_TO_LOSE[way](store, held)
    before = stored(store, held)
    for write in (
        lambda: store.finish(held, JobState.DONE, LATE),
        lambda: store.finish(held, JobState.ERROR, {"error": ["E", "late"], **LATE}),
        lambda: store.checkpoint(held, LATE["result"]),
        lambda: store.add_reports(held, [{"loss": -99.0}]),
    ):
        with pytest.raises(LeaseLost, match=f"trial {held.tid} "):
            write()
    assert store.renew([held.lease.token], 60) == {held.lease.token}
    assert store.release(held, "late") is False
    assert store.end_attempt(held, "late", {"log": None}) is None
    assert store.claimed(held.lease.token) is None
    assert stored(store, held) == before
    assert store.reports_.count_documents({}) == 0


def test_a_zombie_does_not_disturb_the_one_who_took_over(store: Store) -> None:
    queue(store)
    zombie = claim(store)
    reaped(store, zombie)
    heir = claim(store, worker="w2")
    with pytest.raises(LeaseLost):
        store.finish(zombie, JobState.DONE, LATE)
    store.add_reports(heir, [{"step": 1}])
    store.finish(heir, JobState.DONE, OK)
    with pytest.raises(LeaseLost):
        store.finish(zombie, JobState.DONE, LATE)
    doc = store.job(KEY, heir.tid)
    assert doc is not None
    assert doc["result"] == OK["result"]
    assert doc["accepted"] == {"token": heir.lease.token, "worker": "w2"}
    assert "lease" not in doc


def test_a_result_sent_twice_is_accepted_once_and_silently(store: Store) -> None:
    queue(store)
    held = claim(store)
    store.finish(held, JobState.DONE, OK)
    once = stored(store, held)
    store.finish(held, JobState.DONE, LATE)
    assert stored(store, held) == once
    assert once is not None
    assert once["state"] == JobState.DONE


def test_an_error_is_stored_in_one_piece(store: Store) -> None:
    queue(store)
    held = claim(store)
    fields = {"error": ["ValueError", "no"], "traceback": "...", "result": {"status": "fail"}}
    store.finish(held, JobState.ERROR, fields)
    doc = stored(store, held)
    assert doc is not None
    assert doc["state"] == JobState.ERROR
    assert {key: doc[key] for key in fields} == fields


def test_every_write_that_a_reader_can_see_counts_up_the_version(store: Store) -> None:
    queue(store)
    steps: list[tuple[str, int]] = []
    held = claim(store)

    def note(what: str) -> None:
        doc = stored(store, held)
        assert doc is not None
        steps.append((what, doc["version"]))

    note("claim")
    store.renew([held.lease.token], 60)
    note("renew")
    store.add_reports(held, [{"loss": 1.0}])
    note("report")
    store.checkpoint(held, {"status": "running"})
    note("checkpoint")
    store.release(held, "why not")
    note("release")
    held = claim(store)
    store.end_attempt(held, "it died")
    note("end of attempt")
    held = claim(store)
    expire(store, held)
    store.reap()
    note("reap")
    held = claim(store)
    store.finish(held, JobState.DONE, OK)
    note("finish")
    assert steps == [
        ("claim", 1),
        ("renew", 1),
        ("report", 1),
        ("checkpoint", 2),
        ("release", 3),
        ("end of attempt", 5),
        ("reap", 7),
        ("finish", 9),
    ]
    other = queue(store, first_slot=1)[0]
    store.cancel(KEY)
    cancelled = store.job(KEY, other)
    assert cancelled is not None
    assert cancelled["version"] == 1


def test_a_worker_of_hyperopt_is_fenced_by_the_version(store: Store) -> None:
    """hyperopt's MongoJobs.update writes only where `version` and `owner` are still those it knows."""
    queue(store)
    held = claim(store)
    for lose in (reaped, WAYS_TO_LOSE["released"], WAYS_TO_LOSE["attempt ended"]):
        known = {key: held.doc[key] for key in ("_id", "version", "owner")}
        lose(store, held)
        assert store.jobs.count_documents(known) == 0
        doc = stored(store, held)
        assert doc is not None
        # hyperopt's workers claim jobs without an owner only: one that waits out a back-off has one of ours.
        assert doc["owner"] == (None if lose is WAYS_TO_LOSE["released"] else PARKED_OWNER)
        assert "lease" not in doc
        held = claim(store)


def test_all_leases_of_a_host_are_renewed_together(store: Store) -> None:
    queue(store, 4)
    held = [claim(store, lease_s=30) for _ in range(4)]
    expire(store, held[0])
    store.finish(held[3], JobState.DONE, OK)
    assert store.renew([one.lease.token for one in held[:3]], 90) == set()
    for one in held[:3]:
        doc = stored(store, one)
        assert doc is not None
        assert 80 < (doc["lease"]["expires"] - store.now()).total_seconds() <= 90
    assert store.renew([one.lease.token for one in held] + ["x"], 90) == {held[3].lease.token, "x"}
    assert store.renew([], 90) == set()


def test_readers_see_the_reports_of_the_last_holder_in_order(store: Store) -> None:
    tid = queue(store)[0]
    first = claim(store)
    store.add_reports(first, [{"step": 0, "loss": 9.0}])
    reaped(store, first)
    # What a zombie slips in between the check and the insert.
    common = {"exp_key": KEY, "tid": tid, "token": first.lease.token}
    store.reports_.insert_one({"step": 1, "loss": 8.0, **common})
    second = claim(store, worker="w2")
    store.add_reports(second, [{"step": 1, "val.acc": 0.5}, {"step": 2, "$x": 1}])
    store.add_reports(second, [{"step": 3}])

    def shown() -> list[dict[str, Any]]:
        doc = store.job(KEY, tid)
        assert doc is not None
        hidden = {"_id", *common}
        return [{k: v for k, v in one.items() if k not in hidden} for one in store.reports(doc)]

    expected = [{"step": 1, "val.acc": 0.5}, {"step": 2, "$x": 1}, {"step": 3}]
    assert shown() == expected
    store.finish(second, JobState.DONE, OK)
    assert shown() == expected


def test_reports_of_unknown_outcome_sent_again_are_stored_once(store: Store) -> None:
    queue(store)
    held = claim(store)
    reports = [{"step": 1}, {"step": 2}]
    store.add_reports(held, reports)
    store.add_reports(held, reports)
    store.add_reports(held, [])
    assert [one["step"] for one in store.reports_.find()] == [1, 2]


def test_an_end_of_an_attempt_sent_twice_is_recorded_once(store: Store) -> None:
    queue(store)
    held = claim(store)
    assert store.end_attempt(held, "killed by SIGSEGV") is Event.REQUEUE
    once = stored(store, held)
    assert store.end_attempt(held, "killed by SIGSEGV") is Event.REQUEUE
    assert stored(store, held) == once


def test_an_attempt_that_ends_keeps_its_log(store: Store) -> None:
    queue(store)
    held = claim(store)
    assert store.end_attempt(held, "killed by SIGSEGV", {"log": {"blob": 1}}) is Event.REQUEUE
    doc = stored(store, held)
    assert doc is not None
    assert (doc["state"], doc["log"]) == (JobState.NEW, {"blob": 1})
    assert [one["reason"] for one in doc["history"]] == ["killed by SIGSEGV"]
