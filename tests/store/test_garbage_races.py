"""gc beside workers and controllers that go on: whatever comes in between, nothing is lost."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import pytest

from hyperfarm.blobs import Blobs
from hyperfarm.garbage import Collector
from hyperfarm.garbage_kinds import UNFENCED_S, Garbage
from hyperfarm.jobs import Claim, JobState
from hyperfarm.store import Store, new_token
from tests.garbage_in_use import assert_whole
from tests.garbage_making import (
    BIG,
    broken_upload,
    cancelled,
    collect,
    cut_off_attempt,
    finish,
    look,
    next_claim,
    put,
    told,
)
from tests.making import KEY, claim, queue


@pytest.fixture
def blobs(store: Store) -> Blobs:
    return Blobs(store.database)


STEPS = (
    "_without_file",
    "_old_blobs",
    "_reports",
    "_drop_what_jobs_refer_to",
    "_drop_what_experiments_refer_to",
    "_drop_what_results_refer_to",
    "_uploads",
    "remove",
)


@pytest.mark.parametrize("step", STEPS)
def test_a_result_that_is_stored_in_between_loses_nothing(
    store: Store, blobs: Blobs, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Just before each step of gc a trial finishes, and what it uploaded before is referred to from then on."""
    cut_off_attempt(store, blobs)
    held = claim(store)
    artifact, log = put(blobs, held), put(blobs, held, "log", "log")
    attachment = list(blobs.put_attachment(held, "a", b"x"))
    result = blobs.externalise(BIG, held)
    store.add_reports(held, [{"loss": 1.0}])
    hook(monkeypatch, step, lambda: finish(
        store, held, result=result, artifacts=[artifact], log=log, _attachments=[attachment]
    ))  # fmt: skip
    collect(store)
    assert store.job(KEY, held.tid)["state"] == JobState.DONE, "the step was taken"
    assert_whole(store, blobs)
    assert len(store.reports(store.job(KEY, held.tid))) == 1


@pytest.mark.parametrize("step", STEPS)
def test_an_upload_that_becomes_a_file_in_between_is_not_broken(
    store: Store, blobs: Blobs, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its chunks are there when gc begins; file and result come just before a step, and no trial runs then."""
    cancelled(store, blobs)
    held = next_claim(store)
    put(blobs, held)
    (file,) = store.database["farm.files"].find({"metadata.tid": held.tid})
    store.database["farm.files"].delete_one({"_id": file["_id"]})

    def complete() -> None:
        store.database["farm.files"].insert_one(file)
        ref = {"name": "model", "kind": "model", "blob": file["_id"], "size": 3000, "sha256": ""}
        finish(store, held, artifacts=[ref])

    hook(monkeypatch, step, complete)
    collect(store)
    assert store.job(KEY, held.tid)["state"] == JobState.DONE, "the step was taken"
    assert store.database["farm.chunks"].count_documents({"files_id": file["_id"]}) == 1
    assert store.database["farm.files"].count_documents({}) == 1


def hook(monkeypatch: pytest.MonkeyPatch, step: str, action: Callable[[], Any]) -> None:
    """Have `action` happen once, just before a step of the collector."""
    original = getattr(Collector, step)
    left = [action]

    def replacement(self: Collector, *args: Any) -> Any:
        if left:
            left.pop()()
        return original(self, *args)

    monkeypatch.setattr(Collector, step, replacement)


@pytest.mark.parametrize("comes", ["file", "chunk"])
def test_a_young_upload_is_looked_at_twice(store: Store, comes: str) -> None:
    """A controller that sends its code has no lease, and runs no trial."""
    upload = broken_upload(store, 3)
    chunks, files = store.database["farm.chunks"], store.database["farm.files"]
    pauses: list[float] = []

    def go_on(seconds: float) -> None:
        pauses.append(seconds)
        if comes == "file":
            files.insert_one({"_id": upload, "length": 1000, "uploadDate": store.now(), "metadata": {}})
        else:
            chunks.insert_one({"files_id": upload, "n": 1, "data": b"x"})

    assert told(look(store)) == {"upload": 1}
    assert told(collect(store, sleep=go_on)) == {}
    assert len(pauses) == 1
    assert chunks.count_documents({"files_id": upload, "n": 0}) == 1


def test_old_uploads_cost_no_pause(store: Store) -> None:
    broken_upload(store, UNFENCED_S + 5)
    pauses: list[float] = []
    collect(store, sleep=pauses.append)
    assert not pauses


def test_workers_and_a_restless_gc_at_once(store: Store, blobs: Blobs) -> None:
    """Trials that succeed, are cut off and leave garbage, while gc removes all that it may: nothing is lost."""
    queue(store, 24)
    ended = threading.Event()
    errors: list[Exception] = []
    given_back: set[int] = set()

    def gc() -> None:
        while not ended.is_set():
            collect(store)

    def work() -> None:
        while (held := attempt_claim(store)) is not None:
            blobs.put_for(held, os.urandom(100_000), "dropped", "artifact")
            refs = [blobs.put_for(held, os.urandom(100_000), "model", "model")]
            attached = [list(blobs.put_attachment(held, "a", b"x"))]
            result = blobs.externalise({"status": "ok", "loss": 1.0, "raw": bytes(2 << 20)}, held)
            store.add_reports(held, [{"loss": 1.0}])
            if held.tid % 3 or held.tid in given_back:
                finish(store, held, result=result, artifacts=refs, _attachments=attached)
            else:
                given_back.add(held.tid)
                store.release(held, "half way")

    def guarded(body: Callable[[], None]) -> None:
        try:
            body()
        except Exception as error:  # noqa: BLE001 - told by the test
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(body,), daemon=True) for body in (work, work, gc)]
    for thread in threads:
        thread.start()
    for thread in threads[:2]:
        thread.join(120)
    ended.set()
    threads[2].join(60)
    assert not errors
    collect(store)
    assert look(store) == Garbage()
    assert store.jobs.count_documents({"state": 2}) == 24
    assert_whole(store, blobs)
    for doc in store.find_jobs(KEY):
        assert len(store.reports(doc)) == 1
    assert store.database["farm.files"].count_documents({}) == 48
    assert store.database["fs.files"].count_documents({}) == 24


def attempt_claim(store: Store) -> Claim | None:
    return store.claim(KEY, worker="w", owner="w:1", token=new_token(), lease_s=60.0)
