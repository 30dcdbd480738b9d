"""Checkpoints are fenced like results and outlive the attempt; only the models of the best trials are kept."""

from __future__ import annotations

import math
from typing import Any

import pytest
from bson import ObjectId

from hyperfarm.errors import LeaseLost
from hyperfarm.jobs import Claim, Event, JobState
from hyperfarm.store import Store
from tests.making import KEY, OK, claim, expire, job, queue, stored


def lost(store: Store, held: Claim) -> None:
    expire(store, held)
    assert len(store.reap()) == 1


def document(store: Store, held: Claim) -> dict[str, Any]:
    doc = stored(store, held)
    assert doc is not None
    return doc


def test_a_checkpoint_goes_to_the_next_attempt_and_away_with_the_result(store: Store) -> None:
    queue(store)
    first = claim(store)
    for blob in (1, 2):
        before = document(store, first)["version"]
        store.keep_checkpoint(first, {"blob": blob, "size": 7})
        assert document(store, first)["version"] == before + 1
    lost(store, first)
    second = claim(store, worker="w2")
    kept = second.doc["checkpoint"]
    assert {name: kept[name] for name in ("blob", "size", "attempt")} == {"blob": 2, "size": 7, "attempt": 1}
    store.finish(second, JobState.DONE, OK)
    assert "checkpoint" not in document(store, second)


@pytest.mark.parametrize("heir", [False, True], ids=["waiting", "taken over"])
def test_a_zombies_checkpoint_is_not_kept(store: Store, heir: bool) -> None:
    queue(store)
    zombie = claim(store)
    store.keep_checkpoint(zombie, {"blob": 1})
    lost(store, zombie)
    if heir:
        store.keep_checkpoint(claim(store, worker="w2"), {"blob": 2})
    before = document(store, zombie)
    with pytest.raises(LeaseLost, match=f"trial {zombie.tid} "):
        store.keep_checkpoint(zombie, {"blob": 3})
    assert document(store, zombie) == before


def test_a_checkpoint_sent_again_after_the_lease_was_lost_had_been_stored(store: Store) -> None:
    """Its blob is the one that the next holder resumes from: the sender must not delete it."""
    queue(store)
    held = claim(store)
    store.keep_checkpoint(held, {"blob": 1})
    lost(store, held)
    before = document(store, held)
    store.keep_checkpoint(held, {"blob": 1})
    assert document(store, held) == before


def test_an_end_of_an_attempt_sent_again_after_the_job_went_on_was_recorded(store: Store) -> None:
    queue(store)
    held = claim(store)
    assert store.end_attempt(held, "its process died") is Event.REQUEUE
    heir = claim(store, worker="w2")
    assert store.end_attempt(held, "its process died") is Event.REQUEUE
    store.finish(heir, JobState.DONE, OK)
    before = document(store, held)
    assert store.end_attempt(held, "its process died") is Event.REQUEUE
    assert store.end_attempt(held, "something else") is None
    assert document(store, held) == before


def test_a_zombies_release_takes_nothing_from_the_heir(store: Store) -> None:
    queue(store)
    zombie = claim(store)
    lost(store, zombie)
    heir = claim(store, worker="w2")
    before = document(store, heir)
    assert store.release(zombie, "told to stop") is False
    assert store.end_attempt(zombie, "its process died") is None
    with pytest.raises(LeaseLost):
        store.checkpoint(zombie, {"loss": -99.0})
    with pytest.raises(LeaseLost):
        store.add_reports(zombie, [{"loss": -99.0}])
    assert document(store, heir) == before
    assert store.reports_.count_documents({}) == 0
    assert store.renew([heir.lease.token], 60) == set()


LOSSES = [3.0, 1.0, math.nan, 2.0, math.inf, 1.0, -math.inf]
RANKED = [6, 1, 5, 3, 0, 4]
"""Their tids from the best on; of equals the earlier one, and NaN is not ranked."""


def finished(tid: int, loss: float, status: str = "ok", state: int = JobState.DONE, **more: Any) -> Any:
    blobs = [{"kind": "model", "blob": ObjectId()}, {"kind": "plot", "blob": ObjectId()}]
    result = {"status": status, "loss": loss}
    return job(tid, state=int(state), result=result, artifacts=blobs, version=5, **more)


@pytest.mark.parametrize("keep", range(len(RANKED) + 2))
def test_exactly_the_best_models_are_kept(store: Store, keep: int) -> None:
    docs = [finished(tid, loss) for tid, loss in enumerate(LOSSES)]
    docs += [finished(10, -9.0, "fail"), finished(11, -9.0, state=JobState.ERROR)]
    docs += [finished(12, -9.0, state=JobState.RUNNING), finished(13, -9.0, exp_key="other")]
    store.insert_jobs(docs)
    losers = RANKED[keep:]
    assert store.prune_models(KEY, keep) == [docs[tid]["artifacts"][0]["blob"] for tid in losers]
    for doc in docs:
        after = store.jobs.find_one({"_id": doc["_id"]})
        assert after is not None
        if doc["tid"] in losers:
            assert after["artifacts"] == doc["artifacts"][1:]
            assert (after["models_removed"], after["version"]) == (True, 6)
        else:
            assert after["artifacts"] == doc["artifacts"]
            assert ("models_removed" in after, after["version"]) == (False, 5)
    assert store.prune_models(KEY, keep) == []
