"""Jobs and claims for tests of the store, and a look at what the database did."""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Iterator
from typing import Any

from hyperfarm.jobs import PARKED_OWNER, Claim
from hyperfarm.store import Store, new_token

KEY = "exp"
OK = {"result": {"status": "ok", "loss": 1.0}}


def job(tid: int, exp_key: str | None = KEY, **fields: Any) -> dict[str, Any]:
    """A job as hyperopt's `Trials.new_trial_docs` makes it, with `fields` (slot, attempt ...) on top."""
    misc = {"tid": tid, "cmd": ["domain_attachment", "FMinIter_Domain"], "workdir": None}
    return {
        "state": 0,
        "tid": tid,
        "spec": None,
        "result": {"status": "new"},
        "misc": {**misc, "idxs": {"x": [tid]}, "vals": {"x": [0.5]}},
        "exp_key": exp_key,
        "owner": None,
        "version": 0,
        "book_time": None,
        "refresh_time": None,
        **fields,
    }


def queue(store: Store, count: int = 1, exp_key: str | None = KEY, first_slot: int = 0) -> list[int]:
    """Queue jobs with slots of the budget, as our controller does; return their tids."""
    tids = store.new_tids(count)
    docs = [
        job(tid, exp_key, slot=first_slot + number, attempt=0, max_attempts=3)
        for number, tid in enumerate(tids)
    ]
    assert store.insert_jobs(docs) == set(tids)
    return tids


def claim(store: Store, exp_key: str | None = KEY, *, worker: str = "w1", lease_s: float = 60.0) -> Claim:
    """Claim the next job; it must be there. One that waits out a back-off need not wait here."""
    asked = {"worker": worker, "owner": f"{worker}:1", "token": new_token(), "lease_s": lease_s}
    claimed = store.claim(exp_key, **asked)
    if claimed is None:
        query = {"exp_key": exp_key, "owner": PARKED_OWNER}
        store.jobs.find_one_and_update(query, {"$unset": {"not_before": ""}}, sort=[("tid", 1)])
        claimed = store.claim(exp_key, **asked)
    assert claimed is not None
    return claimed


def expire(store: Store, held: Claim) -> None:
    """Put the end of a lease into the past."""
    past = store.now() - dt.timedelta(seconds=1)
    store.jobs.update_one({"_id": held.job_id}, {"$set": {"lease.expires": past}})


def stored(store: Store, held: Claim) -> dict[str, Any] | None:
    """The job's document as it lies in the database."""
    return store.jobs.find_one({"_id": held.job_id})


@contextlib.contextmanager
def watched(store: Store) -> Iterator[list[dict[str, Any]]]:
    """Collect what the database's own profiler says of every statement in the block, when the block is left."""
    seen: list[dict[str, Any]] = []
    store.database.command("profile", 2)
    try:
        yield seen
    finally:
        store.database.command("profile", 0)
    names = {name: f"{store.database.name}.{name}" for name in store.database.list_collection_names()}
    wanted = [full for name, full in names.items() if name != "system.profile"]
    # hyperfarm's own statements alone, without those that switch the profiler.
    seen += store.database["system.profile"].find({"ns": {"$in": wanted}, "op": {"$ne": "insert"}}).sort("ts")
    store.database.drop_collection("system.profile")
