"""Every MongoDB statement that only reads jobs and their reports, each with the index that serves it.

store.py holds those that write, and what a worker or controller needs to know beside a write.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import TypeVar

from bson import MinKey
from pymongo import ASCENDING
from pymongo.database import Database
from pymongo.errors import OperationFailure
from pymongo.read_concern import ReadConcern

from hyperfarm.indexes import ensure_indexes
from hyperfarm.jobs import PARKED_OWNER, JobDoc, JobState
from hyperfarm.mongo import Document, translated
from hyperfarm.values import decode_keys, encode_keys

T = TypeVar("T")

BAD_VALUE = 2
_KEPT_LOCALLY: Document = {"traceback": 0, "history": 0, "notes": 0}
CLAIMABLE: Document = {"$in": [None, PARKED_OWNER]}
_BRIEF: Document = {"_id": 0, "tid": 1, "version": 1, "state": 1}


class NoKey:
    """For readers who want only the jobs that have no exp_key."""


NO_KEY = NoKey()
Scope = str | NoKey | None


class JobQueries:
    """The reading half of `Store`."""

    clock: object = "$$NOW"
    """The clock that decides about leases, as an expression: the database's own, and no other."""

    def __init__(self, database: Database[Document]) -> None:
        self.database = database
        self.jobs = database["jobs"]
        # A controller takes a finished job for finished for good, so it must not see what an election may undo.
        self._settled_jobs = database.get_collection("jobs", read_concern=ReadConcern("majority"))
        self.reports_ = database["reports"]

    def _with_indexes(self, read: Callable[[], T]) -> T:
        """Read by an index that the statement names; make the indexes anew if somebody dropped them."""
        try:
            return read()
        except OperationFailure as error:
            if error.code != BAD_VALUE:
                raise
            ensure_indexes(self.database)
            return read()

    def now(self) -> datetime:
        """The database's clock, which alone decides about leases and heartbeats."""
        with translated("asking for the time"):
            hello = self.database.command("hello", codec_options=self.database.codec_options)
            time: datetime = hello["localTime"]
            return time

    def job_versions(self, exp_key: Scope) -> Iterator[tuple[int, int, int]]:
        """(tid, version, state) of every job of the experiment, from the index `view` alone."""
        with translated("comparing jobs"):
            query = _scope(exp_key)
            docs = self._with_indexes(lambda: list(self._settled_jobs.find(query, _BRIEF, hint="view")))
            for doc in docs:
                yield doc["tid"], doc.get("version", 0), doc["state"]

    def changed_jobs(
        self, exp_key: Scope, unfinished: Sequence[int], last_tid: int
    ) -> Iterator[tuple[int, int, int]]:
        """(tid, version, state) of the named jobs and of those with a higher tid; index `view`.

        A named job that is missing from the answer was deleted.
        """
        newer = [{"tid": {"$in": list(unfinished)}}, {"tid": {"$gt": last_tid}}]
        query = {**_scope(exp_key), "$or": newer}
        with translated("looking for changes"):
            for doc in self._settled_jobs.find(query, _BRIEF):
                yield doc["tid"], doc.get("version", 0), doc["state"]

    def jobs_by_tid(self, exp_key: Scope, tids: Iterable[int]) -> list[JobDoc]:
        """Job documents without what only a reader of one trial wants; index `view`."""
        with translated("reading jobs"):
            query = {**_scope(exp_key), "tid": {"$in": list(tids)}}
            docs = self._settled_jobs.find(query, _KEPT_LOCALLY)
            return [decode_job(doc) for doc in docs]

    def all_versions(self) -> dict[object, tuple[int, int]]:
        """(version, state) of every job of the database by `_id`; reads them all."""
        with translated("comparing jobs"):
            docs = self._settled_jobs.find({"tid": {"$exists": True}}, {"version": 1, "state": 1})
            return {doc["_id"]: (doc.get("version", 0), doc["state"]) for doc in docs}

    def jobs_by_id(self, ids: Sequence[object]) -> list[JobDoc]:
        """Job documents without what only a reader of one trial wants; index `_id_`."""
        with translated("reading jobs"):
            return [decode_job(doc) for doc in self._settled_jobs.find({"_id": {"$in": ids}}, _KEPT_LOCALLY)]

    def find_jobs(
        self, exp_key: str | None, states: Sequence[JobState] = tuple(JobState), *, hide: Sequence[str] = ()
    ) -> list[JobDoc]:
        """All jobs of the experiment in these states, by tid, without the fields `hide`; index `view`."""
        query = {**_scope(exp_key), "state": {"$in": [int(state) for state in states]}}
        with translated("reading jobs"):
            shown: Document = dict.fromkeys(hide, 0)
            found = self.jobs.find(query, shown or None).sort("tid", ASCENDING)
            return [decode_job(doc) for doc in found]

    def job(self, exp_key: str | None, tid: int) -> JobDoc | None:
        """One job of the experiment with all that it holds, None when it has no such tid; index `view`."""
        with translated("reading a job"):
            doc = self.jobs.find_one({"exp_key": exp_key, "tid": tid})
        return None if doc is None else decode_job(doc)

    def first_waiting(self, exp_key: str | None) -> JobDoc | None:
        """The job of exactly this exp_key that would be claimed next, None without any; index `queue`."""
        with translated("looking at the queue"):
            query = {"exp_key": exp_key, "state": int(JobState.NEW), "owner": CLAIMABLE}
            doc = self.jobs.find_one(query, sort=[("tid", ASCENDING)])
        return None if doc is None else decode_job(doc)

    def job_rows(self, exp_key: str | None, fields: Iterable[str]) -> list[JobDoc]:
        """All jobs of exactly this exp_key, by tid, with only `fields` (names as stored); index `view`."""
        with translated("reading jobs"):
            shown: Document = {"_id": 0, "tid": 1, **dict.fromkeys(fields, 1)}
            found = self.jobs.find({"exp_key": exp_key}, shown).sort("tid", ASCENDING)
            return [decode_job(doc) for doc in found]

    def best_job(self, exp_key: str | None) -> JobDoc | None:
        """The successful job with the lowest loss (the earliest of equals), NaN apart; index `best`."""
        query: Document = {"exp_key": exp_key, "result.status": "ok", "state": int(JobState.DONE)}
        query["result.loss"] = {"$gte": float("-inf")}
        with translated("looking for the best job"):
            doc = self.jobs.find_one(query, sort=[("result.loss", ASCENDING), ("tid", ASCENDING)])
        return None if doc is None else decode_job(doc)

    def count_jobs(self, exp_key: Scope, states: Sequence[JobState]) -> int:
        """How many jobs are in one of these states; index `view`."""
        with translated("counting jobs"):
            query = {**_scope(exp_key), "state": {"$in": [int(state) for state in states]}}
            return self.jobs.count_documents(query)

    def changed_lately(self, exp_key: str | None, within_s: float) -> bool:
        """True when a job of exactly this exp_key has changed within these seconds; index `view`."""
        with translated("looking at an experiment"):
            since = self.now() - timedelta(seconds=within_s)
            return (
                self.jobs.find_one({"exp_key": exp_key, "refresh_time": {"$gte": since}}, {"_id": 1})
                is not None
            )

    def count_all(self) -> int:
        """How many jobs the database holds."""
        with translated("counting jobs"):
            return self.jobs.count_documents({})

    def running_count(self) -> int:
        """How many jobs of all experiments run on workers with a live lease; index `lease_expiry`."""
        with translated("counting running jobs"):
            query = {"state": int(JobState.RUNNING), "lease.expires": {"$gt": self.now()}}
            query["ask_and_tell"] = {"$exists": False}
            return self.jobs.count_documents(query)

    def running_jobs(self) -> list[JobDoc]:
        """Key, tid, attempt and lease of all jobs that run under a lease; index `lease_expiry`."""
        query = {"state": int(JobState.RUNNING), "lease.expires": {"$type": "date"}}
        fields = dict.fromkeys(("exp_key", "tid", "attempt", "lease"), 1)
        with translated("looking at running jobs"):
            return self._with_indexes(lambda: list(self.jobs.find(query, fields).hint("lease_expiry")))

    def summaries(self) -> list[Document]:
        """One row per exp_key that has jobs: counts by state, failures, best loss, first and last moment."""
        ok = {"$and": [{"$eq": ["$state", 2]}, {"$eq": ["$result.status", "ok"]}]}
        failed = {"$or": [{"$eq": ["$state", 3]}, {"$and": [{"$eq": ["$state", 2]}, {"$not": [ok]}]}]}
        group: Document = {"_id": "$exp_key", "total": {"$sum": 1}, "last": {"$max": "$refresh_time"}}
        for state in JobState:
            group[state.label] = {"$sum": {"$cond": [{"$eq": ["$state", int(state)]}, 1, 0]}}
        group["ok"] = {"$sum": {"$cond": [ok, 1, 0]}}
        group["failed"] = {"$sum": {"$cond": [failed, 1, 0]}}
        # NaN sorts below every number in MongoDB.
        number = {"$and": [ok, {"$gte": ["$result.loss", float("-inf")]}]}
        group["best"] = {"$min": {"$cond": [number, "$result.loss", None]}}
        with translated("counting jobs"):
            return list(self.jobs.aggregate([{"$group": group}]))

    def reports(self, job: JobDoc) -> list[Document]:
        """The reports of a job's last attempt in order of their arrival; index `trial`."""
        holder = (job.get("lease") or job.get("accepted") or {}).get("token")
        query = {"exp_key": job["exp_key"], "tid": job["tid"], "token": holder}
        with translated("reading reports"):
            return [decode_keys(doc) for doc in self.reports_.find(query).sort("_id", ASCENDING)]


def _scope(exp_key: Scope) -> Document:
    """For readers: exp_key None means the jobs of all experiments, as hyperopt has it.

    A condition that every key meets, rather than none, lets the index `view` serve these too.
    """
    if isinstance(exp_key, NoKey):
        return {"exp_key": None}
    return {"exp_key": {"$gte": MinKey()} if exp_key is None else exp_key}


def encode_job(doc: JobDoc) -> JobDoc:
    """Make labels and result keys fit for MongoDB's field names."""
    return {**doc, "misc": encode_keys(doc["misc"]), "result": encode_keys(doc["result"])}


def decode_job(doc: JobDoc) -> JobDoc:
    """Undo `encode_job`, also for documents that were read without some fields."""
    return {key: decode_keys(value) if key in ("misc", "result") else value for key, value in doc.items()}
