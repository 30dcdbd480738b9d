"""What gc must find, made on purpose; and looking at what is there."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Callable
from typing import Any

import pytest
from bson import ObjectId

from hyperfarm.blobs import MAX_INLINE_BINARY, Blobs
from hyperfarm.errors import LeaseLost
from hyperfarm.garbage import collecting
from hyperfarm.garbage_kinds import UNFENCED_S, Garbage
from hyperfarm.jobs import Claim, JobState
from hyperfarm.store import Store
from tests.making import KEY, OK, claim, expire, queue

BIG = {"status": "ok", "loss": 1.0, "text": "y" * (9 << 20), "raw": bytes(MAX_INLINE_BINARY + 1)}
"""A result that is moved out whole, with a binary of its own that is moved out of it before."""


def look(store: Store, older_than_s: float = 0, **options: Any) -> Garbage:
    with collecting(store, older_than_s=older_than_s, **options) as collector:
        return collector.look()


def collect(store: Store, older_than_s: float = 0, **options: Any) -> Garbage:
    """Look and remove, without the pause between two looks at a young upload."""
    options = {"sleep": lambda _: None, **options}
    with collecting(store, older_than_s=older_than_s, **options) as collector:
        return collector.remove(collector.look())


def told(garbage: Garbage) -> dict[str, int]:
    return {row.what: row.number for row in garbage.rows()}


def contents(store: Store) -> dict[str, list[Any]]:
    """The `_id`s of all that the farm holds."""
    names = sorted(store.database.list_collection_names())
    found = {name: sorted(map(str, store.database[name].distinct("_id"))) for name in names}
    return {name: ids for name, ids in found.items() if ids}


def next_claim(store: Store) -> Claim:
    queue(store, 1, first_slot=store.jobs.count_documents({}))
    return claim(store)


def age(store: Store, seconds: float, bucket: str = "farm") -> None:
    """Move all files of a bucket into the past."""
    past = store.now() - dt.timedelta(seconds=seconds)
    store.database[f"{bucket}.files"].update_many({}, {"$set": {"uploadDate": past}})


def id_made(store: Store, seconds_ago: float) -> ObjectId:
    """A fresh ObjectId as of then; its time is rounded down to a second."""
    moment = store.now() - dt.timedelta(seconds=seconds_ago)
    return ObjectId(int(moment.timestamp()).to_bytes(4, "big") + os.urandom(8))


def broken_upload(store: Store, *ages_s: float, bucket: str = "farm") -> ObjectId:
    """Chunks of these ages, and no file."""
    files_id = ObjectId()
    chunks = [
        {"_id": id_made(store, age_s), "files_id": files_id, "n": n, "data": b"x" * 1000}
        for n, age_s in enumerate(ages_s)
    ]
    store.database[f"{bucket}.chunks"].insert_many(chunks)
    return files_id


def finish(store: Store, held: Claim, **fields: Any) -> None:
    store.finish(held, JobState.DONE, {**OK, **fields})


def put(blobs: Blobs, held: Claim, name: str = "model", kind: str = "model") -> dict[str, Any]:
    return blobs.put_for(held, b"x" * 3000, name, kind)


def file_of(store: Store, tid: int, token: str) -> dict[str, Any]:
    """A document of `farm.files`, of an empty model."""
    metadata = {"exp_key": KEY, "tid": tid, "token": token, "kind": "model"}
    return {"_id": ObjectId(), "length": 0, "uploadDate": store.now(), "metadata": metadata}


# ---- what is garbage -----------------------------------------------------------------------------------------


def cut_off_attempt(store: Store, blobs: Blobs) -> None:
    held = next_claim(store)
    put(blobs, held)
    store.add_reports(held, [{"loss": 1.0}, {"loss": 2.0}])
    blobs.put_attachment(held, "a", b"x")
    store.end_attempt(held, "it died")


def reaped_attempt_with_another_running(store: Store, blobs: Blobs) -> None:
    held = next_claim(store)
    put(blobs, held)
    store.add_reports(held, [{"loss": 1.0}])
    expire(store, held)
    assert store.reap()
    assert claim(store).tid == held.tid


def cancelled(store: Store, blobs: Blobs) -> None:
    held = next_claim(store)
    put(blobs, held, "file.csv", "artifact")
    store.add_reports(held, [{"loss": 1.0}])
    store.cancel(KEY)


def job_gone(store: Store, blobs: Blobs) -> None:
    held = next_claim(store)
    store.add_reports(held, [{"loss": 1.0}])
    reference = blobs.externalise(BIG, held)
    finish(store, held, result=reference, artifacts=[put(blobs, held)], log=put(blobs, held, "log", "log"))
    store.jobs.delete_one({"_id": held.job_id})


def zombie(store: Store, blobs: Blobs) -> None:
    held = next_claim(store)
    expire(store, held)
    assert store.reap()
    finish(store, claim(store))
    put(blobs, held)
    with pytest.raises(LeaseLost):
        finish(store, held)


def log_of_the_attempt_before(store: Store, blobs: Blobs) -> None:
    held = next_claim(store)
    store.end_attempt(held, "it died", {"log": put(blobs, held, "log", "log")})
    again = claim(store)
    finish(store, again, log=put(blobs, again, "log", "log"))


def replaced_checkpoints(store: Store, blobs: Blobs) -> None:
    held = next_claim(store)
    for _ in range(3):
        store.keep_checkpoint(held, put(blobs, held, "checkpoint", "checkpoint"))
    store.end_attempt(held, "it died")


def pruned_models(store: Store, blobs: Blobs) -> None:
    for loss in (1.0, 2.0, 3.0):
        held = next_claim(store)
        finish(store, held, result={"status": "ok", "loss": loss}, artifacts=[put(blobs, held)])
    assert len(store.prune_models(KEY, 1)) == 2


def partial_result_replaced(store: Store, blobs: Blobs) -> None:
    held = next_claim(store)
    store.checkpoint(held, blobs.externalise(BIG, held))
    finish(store, held)


def code_of_nobody(store: Store, blobs: Blobs) -> None:
    store.create_experiment({"_id": KEY, "bundles": [blobs.put(b"v1", "bundle", exp_key=KEY, kind="bundle")]})
    blobs.put(b"v2", "bundle", exp_key=KEY, kind="bundle")
    age(store, UNFENCED_S + 5)


def old_attachment_of_a_finished_job(store: Store, blobs: Blobs) -> None:
    """As it was stored before attachments bore a token."""
    held = next_claim(store)
    blobs._attachments.upload_from_stream("a", b"x" * 10, metadata={"exp_key": KEY, "tid": held.tid})
    finish(store, held)
    age(store, UNFENCED_S + 5, "fs")


def silent_workers(store: Store, _: Blobs) -> None:
    for name in ("long gone", "gone", "alive"):
        store.heartbeat(name, {"host": name})
    for name, days in {"long gone": 9, "gone": 1.01}.items():
        beat = store.now() - dt.timedelta(days=days)
        store.workers_.update_one({"_id": name}, {"$set": {"heartbeat": beat}})


GARBAGE: dict[str, tuple[Callable[[Store, Blobs], Any], dict[str, int]]] = {
    "cut off": (cut_off_attempt, {"model": 1, "attachment": 1, "report": 2}),
    "reaped": (reaped_attempt_with_another_running, {"model": 1, "report": 1}),
    "cancelled": (cancelled, {"artifact": 1, "report": 1}),
    "job gone": (job_gone, {"model": 1, "log": 1, "result": 1, "value": 1, "report": 1}),
    "zombie": (zombie, {"model": 1}),
    "log": (log_of_the_attempt_before, {"log": 1}),
    "checkpoints": (replaced_checkpoints, {"checkpoint": 2}),
    "pruned": (pruned_models, {"model": 2}),
    "partial result": (partial_result_replaced, {"result": 1, "value": 1}),
    "code": (code_of_nobody, {"bundle": 1}),
    "old attachment": (old_attachment_of_a_finished_job, {"attachment": 1}),
    "broken upload": (lambda s, _: broken_upload(s, 30, 20), {"upload": 1}),
    "broken attachment": (lambda s, _: broken_upload(s, 30, 20, bucket="fs"), {"upload": 1}),
    "workers": (silent_workers, {"worker": 2}),
}
