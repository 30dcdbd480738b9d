"""What nothing refers to any more: finding it and removing it, while workers and controllers go on.

Crashes leave blobs without a job, chunks without a file, reports that no reader sees. Nothing that is, or
can still come to be, referred to is ever removed, and this is why:

* A blob of a trial bears the token of the attempt that made it. A job comes to refer to it only by a write
  under the fence of that token (store.py), and a token that has lost its job never gets it back. So blobs
  are listed FIRST, and the jobs read AFTER: a job's document, read in one piece, either still runs under
  the token (then the blob is left alone) or bears every reference that will ever be made under it. A result
  that is stored in between is one of these two.
* Reports likewise: readers see those of the token that holds the job or whose outcome was accepted. Reports
  are listed first; a token that a job read later bears in neither place will be in neither for ever.
* The chunks of an upload are there before its file, and say nothing of who uploads. They are listed first,
  then the jobs are read, then the files: an upload without a file, while no trial runs, belongs to an attempt
  that is over. While a trial runs it may be that trial's: then only what has not grown for UNFENCED_S counts,
  which is more than a host's clock may be wrong by. An upload younger than that is looked at twice, SETTLE_S
  apart, before it goes: a controller, which no token fences, may be sending its code.
* The code of an experiment, once uploaded, is referred to by a write without a fence, a moment later. So a
  file without a token counts only when it is UNFENCED_S old, whatever age is asked for.
* Of the files in hyperopt's bucket only ours count, which their metadata tells.
* All reads are of the primary, of what a majority has, and in one causal session: an election in between
  cannot show an older state of a job than of its blobs. (A standalone server takes the same reads.)

A file is deleted before its chunks: what an interruption leaves is found the next time.

Ages are the time from an upload's end, or from the making of an ObjectId, to now by the database's clock;
the clock of whoever made it may have been wrong, hence the generous default. A new kind of reference must lie
in a job outside `misc` and `spec`, or in an experiment: any ObjectId there keeps its blob.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

import bson
from bson import ObjectId
from bson.codec_options import CodecOptions
from bson.raw_bson import RawBSONDocument
from pymongo.client_session import ClientSession
from pymongo.collection import Collection
from pymongo.cursor import Cursor
from pymongo.read_concern import ReadConcern
from pymongo.read_preferences import ReadPreference

from hyperfarm.blobs import REF, blob_ids
from hyperfarm.garbage_kinds import (
    OLDER_THAN_S,
    UNFENCED_S,
    Blob,
    Garbage,
    Reports,
    Running,
    Upload,
    batches,
)
from hyperfarm.jobs import JobState
from hyperfarm.mongo import Document, translated
from hyperfarm.store import Store

SETTLE_S = 2.0
SILENT_WORKER = timedelta(days=1)
BUCKETS = ("farm", "fs")
_HEAVY: Document = dict.fromkeys(("result", "misc", "spec", "traceback", "error", "notes"), 0)
_MARK = REF.encode() + b"\0"
_RAW: CodecOptions[RawBSONDocument] = CodecOptions(document_class=RawBSONDocument)


@contextmanager
def collecting(
    store: Store,
    *,
    older_than_s: float = OLDER_THAN_S,
    exp_keys: Sequence[str | None] | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Collector]:
    """A collector of what is at least `older_than_s` old (0: of any age); of these experiments, or of all.

    With `exp_keys`, uploads without a file and silent workers are left out: they name no experiment.
    """
    with store.database.client.start_session(causal_consistency=True) as session:
        yield Collector(store, session, older_than_s, exp_keys, sleep)


class Collector:
    """Looks for garbage, and removes what it found. Methods raise as those of `Store` do."""

    def __init__(
        self,
        store: Store,
        session: ClientSession,
        older_than_s: float,
        exp_keys: Sequence[str | None] | None,
        sleep: Callable[[float], None],
    ) -> None:
        self._database = store.database.with_options(
            read_concern=ReadConcern("majority"), read_preference=ReadPreference.PRIMARY
        )
        self._session, self._sleep = session, sleep
        self._older_than_s, self._exp_keys = older_than_s, exp_keys
        self._now = store.now()

    # ---- looking -----------------------------------------------------------------------------------

    def look(self) -> Garbage:
        """Find what may be removed. The order of these reads is what makes it safe: see above."""
        garbage = Garbage()
        with translated("looking for garbage"):
            named = self._exp_keys is not None
            broken = {} if named else {bucket: self._without_file(bucket) for bucket in BUCKETS}
            blobs = {blob.id: blob for blob in self._old_blobs()}
            reports = self._reports()
            running = self._drop_what_jobs_refer_to(blobs, reports)
            self._drop_what_experiments_refer_to(blobs)
            if any(blob.bucket == "farm" for blob in blobs.values()):
                self._drop_what_results_refer_to(blobs)
            for blob in blobs.values():
                if not running.may_refer_to(blob):
                    young = blob.token is None and blob.age_s < UNFENCED_S
                    (garbage.waiting if young else garbage.blobs).append(blob)
            for bucket, ids in broken.items():
                for upload in self._uploads(bucket, ids):
                    young = running.any and upload.age_s < UNFENCED_S
                    (garbage.waiting if young else garbage.uploads).append(upload)
            garbage.reports = list(self._old_reports(reports))
            garbage.workers = self._silent_workers()
        return garbage

    def _find(self, collection: str, query: Document, shown: Document | None = None) -> Cursor[Document]:
        return self._database[collection].find(query, shown, session=self._session)

    def _aggregate(self, collection: str, *stages: Document, **options: Any) -> Iterator[Document]:
        return self._database[collection].aggregate(list(stages), session=self._session, **options)

    def _age_s(self, made: Any) -> float:
        """Seconds since the moment, or since the making of an ObjectId; of anything else nothing is known."""
        moment = made.generation_time if isinstance(made, ObjectId) else made
        return (self._now - moment).total_seconds() if isinstance(moment, datetime) else float("-inf")

    def _is_old(self, age_s: float) -> bool:
        return not self._older_than_s or age_s >= self._older_than_s

    def _without_file(self, bucket: str) -> set[Any]:
        """The ids of which there are chunks and no file, by the indexes alone (`files_id_1_n_1`, `_id_`)."""
        ids = {row["_id"] for row in self._aggregate(f"{bucket}.chunks", {"$group": {"_id": "$files_id"}})}
        if ids:
            ids -= {file["_id"] for file in self._find(f"{bucket}.files", {}, {"_id": 1}).hint("_id_")}
        return ids

    def _old_blobs(self) -> Iterator[Blob]:
        """The files that are ours and old enough; index `owner` when experiments are named."""
        scope: Document = {} if self._exp_keys is None else {"$in": list(self._exp_keys)}
        ours = {"metadata.exp_key": {"$exists": True, **scope}}
        queries = {"farm": ours if scope else {}, "fs": {**ours, "metadata.tid": {"$exists": True}}}
        for bucket, query in queries.items():
            for file in self._find(f"{bucket}.files", query, {"metadata": 1, "uploadDate": 1, "length": 1}):
                made = file.get("metadata") or {}
                what = "attachment" if bucket == "fs" else made.get("kind", "file")
                owner = made.get("exp_key"), made.get("tid"), made.get("token")
                age_s = self._age_s(file.get("uploadDate"))
                if self._is_old(age_s):
                    yield Blob(bucket, file["_id"], what, *owner, age_s, file.get("length", 0))

    def _reports(self) -> dict[str, tuple[str | None, int]]:
        """The attempts that have reports, as {token: (exp_key, tid)}; index `trial`."""
        scope: Document = {} if self._exp_keys is None else {"exp_key": {"$in": list(self._exp_keys)}}
        of_attempt = {name: f"${name}" for name in ("exp_key", "tid", "token")}
        rows = self._aggregate("reports", {"$match": scope}, {"$group": {"_id": of_attempt}}, hint="trial")
        keys = [row["_id"] for row in rows]
        return {key["token"]: (key.get("exp_key"), key.get("tid")) for key in keys if key.get("token")}

    def _drop_what_jobs_refer_to(
        self, blobs: dict[Any, Blob], reports: dict[str, tuple[str | None, int]]
    ) -> Running:
        """Take out what a job refers to, all but results; return what runs.

        All jobs in the order in which they lie there: a scan by an index could pass over one that is changed.
        """
        running = Running()
        for doc in self._find("jobs", {}, _HEAVY):
            lease = doc.get("lease") or {}
            if doc["state"] == JobState.RUNNING:
                running.add(lease.get("token"), doc.get("exp_key"), doc.get("tid"))
            reports.pop((lease or doc.get("accepted") or {}).get("token", ""), None)
            _drop(blobs, _object_ids(doc))
        return running

    def _drop_what_experiments_refer_to(self, blobs: dict[Any, Blob]) -> None:
        for doc in self._find("experiments", {}, {"space": 0}):
            _drop(blobs, _object_ids(doc))

    def _drop_what_results_refer_to(self, blobs: dict[Any, Blob]) -> None:
        """Take out what a result refers to; a result without a reference is not even decoded."""
        jobs: Collection[Any] = self._database.get_collection("jobs", codec_options=_RAW)
        for doc in jobs.find({}, {"_id": 0, "result": 1}, session=self._session):
            if _MARK in doc.raw:
                _drop(blobs, blob_ids(bson.decode(doc.raw)))

    def _uploads(self, bucket: str, ids: set[Any]) -> Iterator[Upload]:
        """The old ones among the uploads that have, now, no file; index `files_id_1_n_1`."""
        for some in batches(ids):
            whole = {file["_id"] for file in self._find(f"{bucket}.files", _among(some), {"_id": 1})}
            sums = {"newest": {"$max": "$_id"}, "size": {"$sum": {"$binarySize": "$data"}}}
            match = {"$match": {"files_id": {"$in": [one for one in some if one not in whole]}}}
            for row in self._aggregate(f"{bucket}.chunks", match, {"$group": {"_id": "$files_id", **sums}}):
                age_s = self._age_s(row["newest"])
                if self._is_old(age_s):
                    yield Upload(bucket, row["_id"], row["newest"], age_s, row["size"])

    def _old_reports(self, unseen: dict[str, tuple[str | None, int]]) -> Iterator[Reports]:
        """The reports of these attempts, where the newest is old enough; index `trial`."""
        sums = {"newest": {"$max": "$_id"}, "count": {"$sum": 1}, "size": {"$sum": {"$bsonSize": "$$ROOT"}}}
        for some in batches((key, tid, token) for token, (key, tid) in unseen.items()):
            group = {"$group": {"_id": "$token", **sums}}
            for row in self._aggregate("reports", {"$match": _of_attempts(some)}, group):
                if self._is_old(self._age_s(row["newest"])):
                    yield Reports(*unseen[row["_id"]], row["_id"], row["count"], row["size"])

    def _silent_workers(self) -> list[Any]:
        if self._exp_keys is not None:
            return []
        return [doc["_id"] for doc in self._find("workers", self._silent(), {"_id": 1})]

    def _silent(self) -> Document:
        return {"heartbeat": {"$lt": self._now - SILENT_WORKER}}

    # ---- removing ----------------------------------------------------------------------------------

    def remove(self, garbage: Garbage) -> Garbage:
        """Remove what `look` has found; return what was removed. Safe to call again."""
        removed = Garbage(blobs=garbage.blobs, reports=garbage.reports, waiting=garbage.waiting)
        with translated("removing garbage"):
            for bucket in BUCKETS:
                self._delete_blobs(bucket, [blob for blob in garbage.blobs if blob.bucket == bucket])
            if any(upload.age_s < UNFENCED_S for upload in garbage.uploads):
                self._sleep(SETTLE_S)
            for bucket in BUCKETS:
                removed.uploads += self._delete_uploads(
                    bucket, {one.id: one.newest for one in garbage.uploads if one.bucket == bucket}
                )
            for attempts in batches((one.exp_key, one.tid, one.token) for one in garbage.reports):
                self._delete("reports", _of_attempts(attempts))
            if garbage.workers:
                # One that has come back to life in between is spared.
                self._delete("workers", {**_among(garbage.workers), **self._silent()})
                removed.workers = garbage.workers
        return removed

    def _delete_blobs(self, bucket: str, blobs: list[Blob]) -> None:
        """Index `files_id_1_n_1` for the chunks. What an interruption leaves is an upload without a file."""
        for some in batches(blobs, lambda blob: blob.size):
            ids = [blob.id for blob in some]
            self._delete(f"{bucket}.files", _among(ids))
            self._delete(f"{bucket}.chunks", {"files_id": {"$in": ids}})

    def _delete_uploads(self, bucket: str, newest: dict[Any, ObjectId]) -> list[Upload]:
        """Delete those that have neither grown nor become a file since their newest chunk was seen."""
        same = [one for one in self._uploads(bucket, set(newest)) if one.newest == newest[one.id]]
        for some in batches(same, lambda upload: upload.size):
            self._delete(f"{bucket}.chunks", {"files_id": {"$in": [upload.id for upload in some]}})
        return same

    def _delete(self, collection: str, query: Document) -> None:
        self._database[collection].delete_many(query, session=self._session)


def _drop(blobs: dict[Any, Blob], ids: Iterator[ObjectId] | list[ObjectId]) -> None:
    for one in ids:
        blobs.pop(one, None)


def _object_ids(value: Any) -> Iterator[ObjectId]:
    """Every ObjectId in a document, wherever it lies."""
    if isinstance(value, ObjectId):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _object_ids(item)
    elif isinstance(value, list):
        for item in value:
            yield from _object_ids(item)


def _among(ids: Sequence[Any]) -> Document:
    return {"_id": {"$in": list(ids)}}


def _of_attempts(attempts: Sequence[tuple[str | None, int, str]]) -> Document:
    """The reports of these attempts. A token belongs to one trial, so the crosswise matches are none."""
    keys, tids, tokens = zip(*attempts, strict=True)
    return {"exp_key": {"$in": _unique(keys)}, "tid": {"$in": _unique(tids)}, "token": {"$in": list(tokens)}}


def _unique(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))
