"""What gc must leave alone, made on purpose."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any

from bson import ObjectId

from hyperfarm.blobs import REF, Blobs
from hyperfarm.store import Store
from tests.garbage_making import BIG, age, finish, next_claim, put
from tests.making import KEY, claim, expire, queue


def running(store: Store, blobs: Blobs) -> None:
    held = next_claim(store)
    put(blobs, held)
    put(blobs, held, "log", "log")
    blobs.put_attachment(held, "a", b"x")
    store.keep_checkpoint(held, put(blobs, held, "checkpoint", "checkpoint"))
    store.checkpoint(held, blobs.externalise(BIG, held))
    store.add_reports(held, [{"loss": 1.0}])


def running_with_an_expired_lease(store: Store, blobs: Blobs) -> None:
    """Until somebody takes it back, its worker may still deliver."""
    held = next_claim(store)
    put(blobs, held)
    expire(store, held)


def finished(store: Store, blobs: Blobs) -> None:
    held = next_claim(store)
    store.add_reports(held, [{"loss": 1.0}])
    attached = [list(blobs.put_attachment(held, "a", b"x"))]
    result = blobs.externalise({**BIG, "text": "short"}, held)
    artifacts = [put(blobs, held), put(blobs, held, "file.csv", "artifact")]
    log = put(blobs, held, "log", "log")
    finish(store, held, result=result, artifacts=artifacts, log=log, _attachments=attached)


def finished_with_a_big_result(store: Store, blobs: Blobs) -> None:
    """The job refers to the result, which is a blob and alone refers to another one."""
    held = next_claim(store)
    result = blobs.externalise({**BIG, "nested": {"list": [BIG["raw"]]}}, held)
    assert result.keys() == {"status", "loss", "parts", REF, "size", "sha256", "holds"}
    finish(store, held, result=result)


def waits_with_a_checkpoint(store: Store, blobs: Blobs) -> None:
    held = next_claim(store)
    store.keep_checkpoint(held, put(blobs, held, "checkpoint", "checkpoint"))
    store.end_attempt(held, "it died", {"log": put(blobs, held, "log", "log")})


def resumed_with_a_checkpoint(store: Store, blobs: Blobs) -> None:
    waits_with_a_checkpoint(store, blobs)
    claim(store)


def code(store: Store, blobs: Blobs) -> None:
    bundles = [blobs.put(text, "bundle", exp_key=KEY, kind="bundle") for text in (b"v1", b"v2")]
    store.create_experiment({"_id": KEY, "bundles": bundles})
    age(store, 9999)


def hyperopts_attachments(store: Store, blobs: Blobs) -> None:
    for metadata in (None, {}, {"exp_key": KEY}, {"tid": 3}, {"mine": 1}):
        blobs._attachments.upload_from_stream("FMinIter_Domain", b"x", metadata=metadata)
    age(store, 9999, "fs")


def attachment_of_a_running_job_without_a_token(store: Store, blobs: Blobs) -> None:
    held = next_claim(store)
    blobs._attachments.upload_from_stream("a", b"x", metadata={"exp_key": KEY, "tid": held.tid})
    age(store, 9999, "fs")


def a_copy_of_the_job(store: Store, blobs: Blobs) -> None:
    """Somebody began a search with another one's trials."""
    held = next_claim(store)
    finish(store, held, result=blobs.externalise(BIG, held), artifacts=[put(blobs, held)])
    (doc,) = store.jobs.find({"_id": held.job_id})
    (tid,) = store.new_tids(1)
    store.jobs.insert_one({**doc, "_id": ObjectId(), "exp_key": "copy", "tid": tid})
    store.jobs.delete_one({"_id": held.job_id})


def workers(store: Store, _: Blobs) -> None:
    store.heartbeat("w1", {})
    store.heartbeat("w2", {})
    almost = store.now() - dt.timedelta(hours=23.9)
    store.workers_.update_one({"_id": "w2"}, {"$set": {"heartbeat": almost}})


IN_USE: dict[str, Callable[[Store, Blobs], Any]] = {
    "running": running,
    "running, expired": running_with_an_expired_lease,
    "finished": finished,
    "big result": finished_with_a_big_result,
    "checkpoint": waits_with_a_checkpoint,
    "resumed": resumed_with_a_checkpoint,
    "code": code,
    "hyperopt's attachments": hyperopts_attachments,
    "attachment without a token": attachment_of_a_running_job_without_a_token,
    "a copy": a_copy_of_the_job,
    "workers": workers,
}


def everything_in_use(store: Store, blobs: Blobs) -> None:
    """Something of all that must stay."""
    queue(store, 1, "kept")
    held = claim(store, "kept")
    attached = [list(blobs.put_attachment(held, "a", b"x"))]
    store.add_reports(held, [{"loss": 1.0}])
    result = blobs.externalise(BIG, held)
    finish(store, held, result=result, artifacts=[put(blobs, held)], _attachments=attached)
    store.heartbeat("alive", {})


def assert_whole(store: Store, blobs: Blobs) -> None:
    """Every reference leads to a blob that can be read."""
    for doc in store.jobs.find():
        refs = [*doc.get("artifacts", ()), *filter(None, [doc.get("log"), doc.get("checkpoint")])]
        for ref in refs:
            blobs.read(ref)
        blobs.internalise(doc["result"])
        for name, _ in doc.get("_attachments", ()):
            blobs.read_attachment(doc, name)
    for doc in store.experiments():
        for ref in doc.get("bundles", ()):
            blobs.read(ref)
