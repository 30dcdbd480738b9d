"""What lies in GridFS: whole or not there, byte for byte, and gone when its experiment is removed."""

from __future__ import annotations

import datetime as dt
import hashlib
import io
import os
from pathlib import Path
from typing import Any

import bson
import pytest

from hyperfarm import removal
from hyperfarm.blobs import MAX_INLINE_BINARY, MAX_INLINE_RESULT, REF, Blobs, blob_ids, load_result
from hyperfarm.errors import DatabaseError, UsageError
from hyperfarm.jobs import Claim, JobState
from hyperfarm.removal import remove
from hyperfarm.store import Store
from hyperfarm.values import encode_keys
from tests.making import KEY, claim, queue


@pytest.fixture
def blobs(store: Store) -> Blobs:
    return Blobs(store.database)


def deliver(store: Store, blobs: Blobs, held: Claim, result: dict[str, Any]) -> dict[str, Any]:
    """Store a result as a slot does; return the job as a reader gets it."""
    fields = {"result": encode_keys(blobs.externalise(result, held))}
    store.finish(held, JobState.DONE, fields)
    doc = store.job(KEY, held.tid)
    assert doc is not None
    return doc


def leftovers(store: Store) -> dict[str, int]:
    """How many documents each collection of the farm holds, without the counter of ids and empty ones."""
    counts = {
        name: store.database[name].count_documents({}) for name in store.database.list_collection_names()
    }
    return {name: count for name, count in counts.items() if count and name not in ("job_ids", "news")}


def test_40_mb_in_a_result_come_back_byte_for_byte(store: Store, blobs: Blobs, mongo_url: str) -> None:
    queue(store)
    data = os.urandom(40 << 20)
    result = {"status": "ok", "loss": 0.5, "weights": data, "small": b"abc"}
    doc = deliver(store, blobs, claim(store), result)
    assert len(bson.encode(doc)) < 10_000
    assert doc["result"]["weights"]["size"] == len(data)
    assert doc["result"]["small"] == b"abc"
    assert load_result(doc, mongo_url) == result
    raw = store.jobs.find_one({"tid": doc["tid"]})
    assert raw is not None
    assert load_result(raw, mongo_url) == result


def test_a_result_too_big_for_a_document_comes_back_by_itself(
    store: Store, blobs: Blobs, mongo_url: str
) -> None:
    queue(store)
    moment = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.timezone.utc)
    result = {
        "status": "ok",
        "loss": 0.25,
        "accuracy": 0.9,
        "log": {"text": "x" * (17 << 20), "a.b": {"$c": 1, "nul\0": 2, "%2E": 3}},
        "weights": [os.urandom(MAX_INLINE_BINARY + 1)],
        "at": moment,
    }
    doc = deliver(store, blobs, claim(store), result)
    kept = doc["result"]
    assert (kept["status"], kept["loss"], kept["accuracy"]) == ("ok", 0.25, 0.9)
    assert REF in kept
    assert "log" not in kept
    assert store.best_job(KEY)["tid"] == doc["tid"]
    assert load_result(doc, mongo_url) == result


def test_many_small_parts_that_are_too_big_together(store: Store, blobs: Blobs) -> None:
    queue(store)
    result = {"status": "ok", "loss": 1.0, "parts": [os.urandom(MAX_INLINE_BINARY) for _ in range(9)]}
    assert 9 * MAX_INLINE_BINARY > MAX_INLINE_RESULT
    doc = deliver(store, blobs, claim(store), result)
    assert "parts" not in doc["result"]
    assert blobs.internalise(doc["result"]) == result
    assert len(blob_ids(doc["result"])) == 1


def test_what_fits_stays_in_the_document(store: Store, blobs: Blobs) -> None:
    queue(store)
    result = {"status": "ok", "loss": 1.0, "curve": [0.1] * 1000, "raw": b"x" * MAX_INLINE_BINARY}
    doc = deliver(store, blobs, claim(store), result)
    assert doc["result"] == result
    assert blob_ids(doc["result"]) == []
    assert load_result(doc) == result, "no database is asked for a result that is whole"
    assert "farm.files" not in leftovers(store)


@pytest.mark.parametrize("harm", ["altered", "shortened", "chunk gone", "blob gone", "other length"])
def test_a_damaged_blob_is_never_handed_out(store: Store, blobs: Blobs, harm: str, tmp_path: Path) -> None:
    ref = blobs.put(b"0123456789" * 300_000, "model.keras", exp_key=KEY)
    assert blobs.read(ref) == b"0123456789" * 300_000
    chunk = {"files_id": ref["blob"], "n": 1}
    chunks, files = store.database["farm.chunks"], store.database["farm.files"]
    data = chunks.find_one(chunk)["data"]
    if harm == "altered":
        chunks.update_one(chunk, {"$set": {"data": b"!" + data[1:]}})
    elif harm == "shortened":
        chunks.update_one(chunk, {"$set": {"data": data[:-1]}})
    elif harm == "chunk gone":
        chunks.delete_one(chunk)
    elif harm == "blob gone":
        blobs.delete([ref["blob"]])
    else:
        files.update_one({"_id": ref["blob"]}, {"$set": {"length": 10}})
    with pytest.raises(DatabaseError, match=r"model\.keras"):
        blobs.read(ref)
    with pytest.raises(DatabaseError):
        blobs.save(ref, tmp_path / "model.keras")
    assert list(tmp_path.iterdir()) == []


def test_a_failing_upload_leaves_nothing(store: Store, blobs: Blobs) -> None:
    class Failing(io.BytesIO):
        sent = 0

        def read(self, size: int | None = -1) -> bytes:
            if self.sent == 60:  # pymongo sends chunks 48 MB at a time: some are in the database by now.
                assert store.database["farm.chunks"].estimated_document_count() > 0
                raise OSError("the disk is gone")
            self.sent += 1
            return bytes(1 << 20)

    source = Failing()
    with pytest.raises(OSError, match="the disk is gone"):
        blobs.put(source, "model", exp_key=KEY)
    assert leftovers(store) == {}
    assert source.closed


def test_bytes_files_and_paths_are_stored_alike(store: Store, blobs: Blobs, tmp_path: Path) -> None:
    data = os.urandom(3 << 20)
    path = tmp_path / "model"
    path.write_bytes(data)
    queue(store)
    held = claim(store)
    for source in (data, io.BytesIO(data), path):
        ref = blobs.put_for(held, source, "model", "artifact")
        assert (ref["name"], ref["kind"], ref["size"]) == ("model", "artifact", len(data))
        assert ref["sha256"] == hashlib.sha256(data).hexdigest()
        assert blobs.read(ref) == data
        file = store.database["farm.files"].find_one({"_id": ref["blob"]})
        assert file["metadata"]["token"] == held.lease.token
        blobs.save(ref, tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == data
    empty = blobs.put(b"", "empty")
    assert blobs.read(empty) == b""
    with pytest.raises(UsageError, match="cannot write"):
        blobs.save(empty, tmp_path / "no folder" / "copy")


def test_attachments_are_hyperopts(store: Store, blobs: Blobs) -> None:
    queue(store)
    held = claim(store)
    pair = blobs.put_attachment(held, "notes.txt", b"hello")
    store.finish(held, JobState.DONE, {"result": {"status": "ok", "loss": 1.0}, "_attachments": [list(pair)]})
    doc = store.job(KEY, held.tid)
    assert doc is not None
    assert blobs.read_attachment(doc, "notes.txt") == b"hello"
    with pytest.raises(KeyError, match="other"):
        blobs.read_attachment(doc, "other")
    assert store.database["fs.files"].find_one({})["filename"] == "notes.txt"


def fill(store: Store, blobs: Blobs, exp_key: str | None) -> None:
    """An experiment with a job of every state, and everything that may belong to it."""
    store.create_experiment({"_id": exp_key, "state": "open"})
    blobs.put(b"code", "bundle", exp_key=exp_key, kind="bundle")
    queue(store, 4, exp_key)
    done, died, _ = (claim(store, exp_key) for _ in range(3))
    store.add_reports(done, [{"loss": 2.0}])
    store.add_reports(died, [{"loss": 3.0}])
    fields: dict[str, Any] = {"_attachments": [list(blobs.put_attachment(done, "a", b"x" * 300_000))]}
    big = {"status": "ok", "loss": 1.0, "text": "y" * (9 << 20), "raw": bytes(2 << 20)}
    fields["result"] = blobs.externalise(big, done)
    fields["artifacts"] = [blobs.put_for(done, b"model", "model", "artifact")]
    store.finish(done, JobState.DONE, fields)
    blobs.put_for(died, b"an orphan", "model", "artifact")
    blobs.put_attachment(died, "an orphan", b"x")


@pytest.mark.parametrize("exp_key", [KEY, None])
def test_removal_leaves_nothing_of_one_and_all_of_the_other(
    store: Store, blobs: Blobs, exp_key: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(removal, "SWEEP_AGAIN_S", 0.01)
    fill(store, blobs, "other")
    foreign = blobs._attachments.upload_from_stream("FMinIter_Domain", b"hyperopt's own, without metadata")
    others = leftovers(store)
    fill(store, blobs, exp_key)
    assert leftovers(store) != others
    assert remove(store, blobs, exp_key) == 4
    assert leftovers(store) == others
    assert blobs._attachments.open_download_stream(foreign).read().startswith(b"hyperopt")
    assert remove(store, blobs, "other") == 4
    assert leftovers(store) == {"fs.files": 1, "fs.chunks": 1}
