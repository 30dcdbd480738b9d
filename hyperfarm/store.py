"""Every MongoDB statement about jobs, experiments, reports and workers, each with its filter, effect and index.

The rules of a lease, written once and relied on everywhere:

* `claim` is one statement: it makes a new job running and gives it a lease with a fresh token, which
  expires by the database's clock. A token holds one job at most.
* Every later write of a worker names the job, the state `running` and its token (`_fence`). If nothing
  matches, the lease is lost: `LeaseLost`, and nothing that the worker did is kept.
* Every write that a reader can see increments `version`; a renewal is no such write.
* A write whose outcome is unknown may be sent again with the same token: it takes effect at most once.
  Whether it had taken effect is asked by a write too (`_was_stored`): only a write waits until a majority
  of the replica set has it, so that no election can take back what was confirmed.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence

from bson import ObjectId
from pymongo import ASCENDING, CursorType, ReturnDocument
from pymongo.database import Database
from pymongo.errors import BulkWriteError, DuplicateKeyError, PyMongoError

from hyperfarm.errors import DatabaseError, LeaseLost, OutcomeUnknown
from hyperfarm.foreign_jobs import ForeignJobs, end_of_attempt
from hyperfarm.indexes import NEWS, ensure_indexes
from hyperfarm.jobs import (
    DEFAULT_MAX_ATTEMPTS,
    STUDY_OWNER,
    Claim,
    Event,
    JobDoc,
    JobState,
    Lease,
    Waiting,
    after_lost_attempt,
    next_state,
)
from hyperfarm.mongo import Document, connect, translated, within
from hyperfarm.queries import CLAIMABLE, decode_job, encode_job
from hyperfarm.values import encode_keys

OLDEST_SERVER = (5, 0)
LIVE_AFTER_S = 100.0
"""A worker counts as alive for this long after a heartbeat (three heartbeats and some)."""
DUPLICATE_KEY = 11000
CLOSE_S = 0.5
SHORTEST_RENEWAL_S = 2.0


class Store(ForeignJobs):
    """The collections of one farm.

    Methods raise `DatabaseUnavailable` (no effect), `OutcomeUnknown` (maybe an effect; send it again)
    or `DatabaseError` (refused).
    """

    def __init__(self, database: Database[Document]) -> None:
        super().__init__(database)
        self.experiments_ = database["experiments"]
        self.workers_ = database["workers"]
        self.job_ids = database["job_ids"]
        self.news = database[NEWS]
        self.has_change_streams = False
        self._close: Callable[[], object] = database.client.close

    @classmethod
    def open(cls, url: str, *, app: str = "hyperfarm") -> Store:
        """Connect, check the server, make the indexes that are missing. Raises what `connect` raises."""
        store = cls.of(connect(url, app=app))
        # A script that drops its MongoTrials need not close anything.
        store._close = weakref.finalize(store.database, store._close)
        return store

    @classmethod
    def of(cls, database: Database[Document]) -> Store:
        """The farm in a database that somebody else has connected to; checked and prepared as by `open`."""
        store = cls(database)
        with translated("preparing the database"):
            hello = store.database.command("hello")
            version = tuple(store.database.client.server_info()["versionArray"][:2])
            if version < OLDEST_SERVER:
                raise DatabaseError(f"MongoDB {version[0]}.{version[1]} is too old: 5.0 or newer is needed")
            store.has_change_streams = "setName" in hello or hello.get("msg") == "isdbgrid"
            ensure_indexes(store.database)
        return store

    def close(self) -> None:
        """Close the connections; takes at most CLOSE_S, also with the server away."""
        goodbye = threading.Thread(target=self._close, daemon=True)
        goodbye.start()
        goodbye.join(CLOSE_S)

    def _after(self, seconds: float) -> Document:
        return {"$add": [self.clock, int(seconds * 1000)]}

    # ---- experiments -------------------------------------------------------------------------------

    def create_experiment(self, doc: Document) -> bool:
        """Insert an experiment (`_id` is its exp_key); False when there is one already."""
        try:
            with translated("creating the experiment"):
                ensure_indexes(self.database)  # Somebody may have dropped the database since `open`.
                self.experiments_.insert_one({**doc, "created": self.now()})
        except DatabaseError as error:
            if isinstance(error.__cause__, DuplicateKeyError):
                return False
            raise
        return True

    def experiment(self, exp_key: str | None) -> Document | None:
        with translated("reading the experiment"):
            return self.experiments_.find_one({"_id": exp_key})

    def experiments(self, exp_keys: Sequence[str | None] | None = None) -> list[Document]:
        """Experiments with these keys, or all of them, oldest first."""
        query = {} if exp_keys is None else {"_id": {"$in": list(exp_keys)}}
        with translated("listing experiments"):
            return list(self.experiments_.find(query).sort("created", ASCENDING))

    def update_experiment(
        self, exp_key: str | None, fields: Document, *, only_if: Document | None = None
    ) -> bool:
        """Set `fields`, if the experiment is there and matches `only_if`; True when it matched."""
        with translated("updating the experiment"):
            query = {"_id": exp_key, **(only_if or {})}
            return self.experiments_.update_one(query, {"$set": fields}).matched_count == 1

    def remove_jobs(self, exp_key: str | None) -> tuple[int, int]:
        """Delete all jobs and reports of the experiment; running workers lose their leases.

        Returns how many jobs there were, and how many of them had not ended.
        """
        unfinished = {"exp_key": exp_key, "state": {"$in": [int(JobState.NEW), int(JobState.RUNNING)]}}
        with translated("removing the experiment"):
            open_jobs = self.jobs.delete_many(unfinished).deleted_count
            finished = self.jobs.delete_many({"exp_key": exp_key}).deleted_count
            self.reports_.delete_many({"exp_key": exp_key})
        return open_jobs + finished, open_jobs

    def remove_experiment(self, exp_key: str | None) -> bool:
        with translated("removing the experiment"):
            return self.experiments_.delete_one({"_id": exp_key}).deleted_count == 1

    # ---- the queue: controller's side --------------------------------------------------------------

    def new_tids(self, count: int) -> list[int]:
        """Reserve `count` trial ids, unique in the whole database (hyperopt's counter, hyperopt's way)."""
        while True:
            try:
                with translated("reserving trial ids"):
                    after = self.job_ids.find_one_and_update(
                        {"a": 0},
                        {"$inc": {"last_id": count}},
                        upsert=True,
                        return_document=ReturnDocument.AFTER,
                    )
                last: int = after["last_id"]  # type: ignore[index]
                return list(range(last - count, last))
            except DatabaseError as error:
                if not isinstance(error.__cause__, DuplicateKeyError):
                    raise  # Two first upserts met at the unique index: the loser simply asks again.

    def insert_jobs(self, docs: Sequence[JobDoc]) -> set[int]:
        """Insert jobs; return the tids of those that got their slot of the budget.

        A job whose `slot` another controller has taken is not inserted (unique index `slot`). Safe to
        send again: a document that is there already counts as inserted.
        """
        if not docs:
            return set()
        for doc in docs:
            doc.setdefault("_id", ObjectId())
        lost: set[int] = set()
        with translated("queueing jobs"):
            try:
                self.jobs.insert_many([encode_job(doc) for doc in docs], ordered=False)
            except BulkWriteError as error:
                for problem in duplicates(error):
                    if "_id" not in problem.get("keyPattern", {}):
                        lost.add(docs[problem["index"]]["tid"])
        self.ring()
        return {doc["tid"] for doc in docs} - lost

    def inject(self, claim: Claim, docs: Sequence[JobDoc]) -> None:
        """Insert finished jobs that a running one has brought along (hyperopt's `inject_results`).

        They are of its experiment and outside its budget. Safe to send again: `docs` get their `_id` here at the
        first time. Raises LeaseLost.
        """
        for doc in docs:
            doc.update(exp_key=claim.exp_key, state=int(JobState.DONE))
        with translated("storing injected results"):
            if not self.jobs.find_one(_fence(claim), {"_id": 1}):
                raise LeaseLost(f"trial {claim.tid} is no longer this worker's")
        self.insert_jobs(docs)

    def withdraw_queued(self, exp_key: str | None) -> int:
        """Delete the jobs with a slot that nobody has begun; their slots are free again. Index `queue`.

        Points that somebody has put into the queue by hand (`enqueued`) stay.
        """
        with translated("withdrawing queued jobs"):
            query = {"exp_key": exp_key, "state": int(JobState.NEW), "slot": {"$exists": True}, "attempt": 0}
            query["enqueued"] = {"$exists": False}
            return self.jobs.delete_many(query).deleted_count

    def cancel(self, exp_key: str | None) -> int:
        """Cancel every job that waits or runs; workers stop theirs when they next renew."""
        with translated("cancelling jobs"):
            return self.jobs.update_many(
                {"exp_key": exp_key, "state": {"$in": [int(JobState.NEW), int(JobState.RUNNING)]}},
                {
                    "$set": {"state": int(JobState.CANCELLED), "owner": None},
                    "$unset": {"lease": "", "slot": "", "checkpoint": ""},
                    "$inc": {"version": 1},
                    "$currentDate": {"refresh_time": True},
                },
            ).modified_count

    def reap(self, is_due: Callable[[JobDoc], bool] = lambda _: True) -> list[tuple[JobDoc, Event]]:
        """Take back every job whose lease has expired and that `is_due` agrees to; index `lease_expiry`.

        Each goes back to the queue while attempts remain, else it ends as an error. The update names the
        very expiry that was seen, so a renewal that came in between wins.
        """
        reaped = []
        with translated("looking for expired leases"):
            now = self.now()
            query = {
                "state": int(JobState.RUNNING),
                "lease.expires": {"$type": "date", "$lte": now},
                "lease.token": {"$type": "string"},
            }
            for doc in self.jobs.find(query):
                if not is_due(doc):
                    continue
                lease = doc["lease"]
                worker = str(lease.get("worker"))
                story = f"no sign of life from worker {worker}; its lease expired"
                event = after_lost_attempt(
                    doc.get("attempt", 1), doc.get("max_attempts", DEFAULT_MAX_ATTEMPTS)
                )
                fence = {"_id": doc["_id"], "state": int(JobState.RUNNING)}
                fence |= {"lease.token": lease["token"], "lease.expires": lease["expires"]}
                update = end_of_attempt(doc, event, story, worker, now)
                if self.jobs.update_one(fence, update).modified_count:
                    reaped.append((doc, event))
        if reaped:
            self.ring()
        return reaped

    # ---- the queue: worker's side ------------------------------------------------------------------

    def waiting(self) -> Waiting:
        """What waits in the queue, by the database's clock; index `queue`."""
        due = {"$subtract": ["$not_before", self.clock]}
        ready = {"$lte": ["$not_before", self.clock]}  # A missing field is lower than any date.
        pipeline: list[Document] = [
            {"$match": {"state": int(JobState.NEW), "owner": CLAIMABLE}},
            {
                "$group": {
                    "_id": "$exp_key",
                    "ready": {"$max": ready},
                    "next_ms": {"$min": {"$cond": [ready, None, due]}},
                }
            },
        ]
        with translated("looking for work"):
            rows = self._with_indexes(lambda: list(self.jobs.aggregate(pipeline, hint="queue")))
        pauses = [row["next_ms"] / 1000 for row in rows if row["next_ms"] is not None]
        keys = [row["_id"] for row in rows if row["ready"]]
        return Waiting(exp_keys=keys, next_s=min(pauses, default=None))

    def claim(
        self,
        exp_key: str | None,
        *,
        worker: str,
        owner: object,
        token: str,
        lease_s: float,
        of_study: bool = False,
    ) -> Claim | None:
        """Claim the oldest job of the experiment that may be claimed; None when there is none. Index `queue`.

        `of_study`: a job that waits for somebody to ask for it, which no worker may claim. One statement. After
        `OutcomeUnknown` call `claimed(token)` before claiming again. Should the first sending be carried out after
        all, the second one is refused, or the other way round: no token holds two jobs (unique index `lease_token`).
        """
        fields = {
            "state": int(JobState.RUNNING),
            "owner": {"$literal": owner},
            "lease": {
                "token": {"$literal": token},
                "worker": {"$literal": worker},
                "expires": self._after(lease_s),
            },
            "attempt": {"$add": [_number("$attempt"), 1]},
            "version": {"$add": [_number("$version"), 1]},
            "book_time": self.clock,
            "refresh_time": self.clock,
        }
        waits: object = STUDY_OWNER if of_study else CLAIMABLE
        query = {"exp_key": exp_key, "state": int(JobState.NEW), "owner": waits}
        try:
            with translated("claiming a job"):
                doc = self.jobs.find_one_and_update(
                    {**query, "$expr": {"$lte": ["$not_before", self.clock]}},
                    [{"$set": fields}, {"$unset": "not_before"}],
                    sort=[("tid", ASCENDING)],
                    return_document=ReturnDocument.AFTER,
                )
        except DatabaseError as error:
            if isinstance(error.__cause__, DuplicateKeyError):
                raise OutcomeUnknown("a claim took effect that had been given up") from error
            raise
        return None if doc is None else _claim_of(doc)

    def claimed(self, token: str) -> Claim | None:
        """The job that holds this lease token, if a claim of unknown outcome took effect. Index `lease_token`."""
        with translated("looking up a claim"):
            doc = self.jobs.find_one({"lease.token": token, "state": int(JobState.RUNNING)})
        return None if doc is None else _claim_of(doc)

    def renew(self, tokens: Sequence[str], lease_s: float) -> set[str]:
        """Renew all leases of a host in one statement; return the tokens that are lost. Index `lease_token`."""
        if not tokens:
            return set()
        query = {"lease.token": {"$in": list(tokens)}, "state": int(JobState.RUNNING)}
        # A connection that hangs must not use up the lease: then it is better to try another one.
        with translated("renewing leases"), within(max(lease_s / 3, SHORTEST_RENEWAL_S)):
            renewed = self.jobs.update_many(query, [{"$set": {"lease.expires": self._after(lease_s)}}])
            if renewed.matched_count == len(tokens):
                return set()
            held = {doc["lease"]["token"] for doc in self.jobs.find(query, {"lease.token": 1})}
        return set(tokens) - held

    def finish(self, claim: Claim, state: JobState, fields: Document) -> None:
        """Write the outcome of a job: state and `fields` (result, error, artifacts ...) in one statement.

        Its blobs must be in GridFS before; the reference to its checkpoint goes. Raises LeaseLost when the
        job is no longer the claim's.
        """
        event = Event.FINISH if state is JobState.DONE else Event.FAIL
        update = {
            "$set": {
                **fields,
                "state": int(next_state(JobState.RUNNING, event)),
                "accepted": {"token": claim.lease.token, "worker": claim.lease.worker},
            },
            "$unset": {"lease": "", "checkpoint": ""},
            "$inc": {"version": 1},
            "$currentDate": {"refresh_time": True},
        }
        with translated("storing a result"):
            if self.jobs.update_one(_fence(claim), update).matched_count:
                return
            if self._was_stored(claim, {"accepted.token": claim.lease.token}):
                return
        raise LeaseLost(f"trial {claim.tid} is no longer this worker's; its result is not kept")

    def checkpoint(self, claim: Claim, result: Document) -> None:
        """Store a partial result of a running job (hyperopt's `ctrl.checkpoint`). Raises LeaseLost."""
        update = {
            "$set": {"result": result},
            "$inc": {"version": 1},
            "$currentDate": {"refresh_time": True},
        }
        with translated("storing a partial result"):
            if not self.jobs.update_one(_fence(claim), update).matched_count:
                raise LeaseLost(f"trial {claim.tid} is no longer this worker's")

    def keep_checkpoint(self, claim: Claim, ref: Document) -> None:
        """Make the blob `ref` the one that the next attempt resumes from. Raises LeaseLost.

        Safe to send again. The blob that it replaces is no longer referred to, and may be deleted.
        """
        kept = {**ref, "attempt": claim.attempt, "at": self.now()}
        update = {"$set": {"checkpoint": kept}, "$inc": {"version": 1}}
        with translated("storing a checkpoint"):
            if self.jobs.update_one(_fence(claim), update).matched_count:
                return
            # It may have been stored before the lease was lost: then it is the next holder's to resume from.
            if self._was_stored(claim, {"checkpoint.blob": ref["blob"]}):
                return
        raise LeaseLost(f"trial {claim.tid} is no longer this worker's; its checkpoint is not kept")

    def _was_stored(self, claim: Claim, mark: Document) -> bool:
        """Say whether the job bears the mark of an earlier sending of the same write, and bears it for good."""
        query = {"_id": claim.job_id, **mark}
        return self.jobs.update_one(query, {"$set": {"_id": claim.job_id}}).matched_count == 1

    def prune_models(self, exp_key: str | None, keep: int) -> list[ObjectId]:
        """Take the models away from all but the best `keep` trials; return their blobs, now to be deleted.

        The set of finished trials only grows and their losses stay, so what is not among the best now never
        will be: any number of workers may do this at once. Index `models`.
        """
        query: Document = {"exp_key": exp_key, "artifacts.kind": "model", "state": int(JobState.DONE)}
        query |= {"result.status": "ok", "result.loss": {"$gte": float("-inf")}}
        update = {
            "$pull": {"artifacts": {"kind": "model"}},
            "$set": {"models_removed": True},
            "$inc": {"version": 1},
        }
        pruned = []
        with translated("removing models"):
            ranked = [("result.loss", ASCENDING), ("tid", ASCENDING)]
            for doc in self.jobs.find(query, {"artifacts": 1}).sort(ranked).skip(keep).hint("models"):
                still = {"_id": doc["_id"], "state": int(JobState.DONE), "artifacts.kind": "model"}
                if self.jobs.update_one(still, update).modified_count:
                    pruned += [one["blob"] for one in doc["artifacts"] if one["kind"] == "model"]
        return pruned

    def release(self, claim: Claim, reason: str) -> bool:
        """Give a job back to the queue as if it had not been tried; False when it was not ours any more."""
        update = end_of_attempt(claim.doc, Event.RELEASE, reason, claim.lease.worker, self.now())
        update["$inc"]["attempt"] = -1
        with translated("releasing a job"):
            released = self.jobs.update_one(_fence(claim), update).matched_count == 1
        if released:
            self.ring()
        return released

    def end_attempt(self, claim: Claim, reason: str, fields: Document | None = None) -> Event | None:
        """Record that an attempt was cut off (the child died); None when the job was not ours any more.

        `fields` (its log, for one) are stored with the job in the same statement.
        """
        event = after_lost_attempt(claim.attempt, claim.max_attempts)
        update = end_of_attempt(claim.doc, event, reason, claim.lease.worker, self.now())
        update["$set"] |= fields or {}
        with translated("recording a lost attempt"):
            if self.jobs.update_one(_fence(claim), update).matched_count:
                self.ring()
                return event
            # Not the token alone: whoever reaped the job wrote it down as well.
            mine = {"token": claim.lease.token, "event": event.value, "reason": reason}
            return event if self._was_stored(claim, {"history": {"$elemMatch": mine}}) else None

    # ---- reports -----------------------------------------------------------------------------------

    def add_reports(self, claim: Claim, reports: Sequence[Document]) -> None:
        """Append intermediate values of a running job. Raises LeaseLost.

        Reports carry the attempt's token; readers see those of the last holder only, so what a zombie
        slipped in between the check and the insert stays invisible. Safe to send again: each report gets its
        `_id` here at the first time.
        """
        if not reports:
            return
        for report in reports:
            report.setdefault("_id", ObjectId())
        with translated("storing reports"):
            if not self.jobs.find_one(_fence(claim), {"_id": 1}):
                raise LeaseLost(f"trial {claim.tid} is no longer this worker's")
            common = {"exp_key": claim.exp_key, "tid": claim.tid, "token": claim.lease.token}
            try:
                docs = [{**encode_keys(report), **common} for report in reports]
                self.reports_.insert_many(docs, ordered=False)
            except BulkWriteError as error:
                duplicates(error)

    # ---- workers -----------------------------------------------------------------------------------

    def heartbeat(self, worker: str, fields: Document) -> None:
        """Register the worker, or say that it is alive; its time is the database's."""
        update = {"$set": fields, "$currentDate": {"heartbeat": True}}
        with translated("sending a heartbeat"):
            self.workers_.update_one({"_id": worker}, update, upsert=True)

    def unregister(self, worker: str) -> None:
        with translated("unregistering"):
            self.workers_.delete_one({"_id": worker})

    def live_workers(self) -> list[Document]:
        """Workers whose last heartbeat is younger than LIVE_AFTER_S by the database's clock."""
        born = {"$subtract": ["$$NOW", int(LIVE_AFTER_S * 1000)]}
        with translated("listing workers"):
            return list(self.workers_.find({"$expr": {"$gt": ["$heartbeat", born]}}))

    # ---- waking up ---------------------------------------------------------------------------------

    def ring(self) -> None:
        """Tell the idle workers that there is something to claim, or will be after a back-off.

        Only a hint: they look at the queue every now and then without it, and an error here is no matter.
        """
        with contextlib.suppress(DatabaseError), translated("waking idle workers"):
            self.news.insert_one({})

    def watch_queue(self, *, await_s: float) -> Iterator[bool]:
        """Yield True after every `ring`, once for all that came together, and False after `await_s` without.

        Yields True as soon as it stands. A cursor at the end of the small capped collection `news` costs
        the server nothing until somebody rings; a change stream would cost it something at every write.
        """
        with translated("waiting for work"):
            rings = self.news.find_raw_batches({}, {"_id": 1}, cursor_type=CursorType.TAILABLE_AWAIT)
            with rings.max_await_time_ms(int(await_s * 1000)):
                while rings.alive:
                    try:
                        next(rings)
                    except StopIteration:
                        yield False
                    else:
                        yield True
        raise DatabaseError("the news of the queue ended")

    def watch(self, *, await_s: float) -> Iterator[bool]:
        """Yield True whenever jobs changed in a way that a reader can see.

        Yields also as soon as the stream stands, and False every `await_s` seconds without news. Needs a replica
        set (`has_change_streams`).
        """
        wanted: list[Document] = [
            {"operationType": {"$in": ["insert", "delete", "replace"]}},
            {"updateDescription.updatedFields.version": {"$exists": True}},
        ]
        pipeline: list[Document] = [{"$match": {"$or": wanted}}, {"$project": {"_id": 1}}]
        try:
            with self.jobs.watch(pipeline, max_await_time_ms=int(await_s * 1000)) as stream:
                yield True
                while stream.alive:
                    yield stream.try_next() is not None
        except PyMongoError as error:
            raise DatabaseError(f"the change stream ended: {error}") from error


def duplicates(error: BulkWriteError) -> list[Document]:
    """The refusals of a bulk insert, all of them for a key that is there already; else raise the error.

    Raises OutcomeUnknown when the server could not promise that the inserts last.
    """
    details = error.details or {}
    problems: list[Document] = details.get("writeErrors", [])
    if any(problem["code"] != DUPLICATE_KEY for problem in problems):
        raise error
    if details.get("writeConcernErrors"):
        raise OutcomeUnknown(
            f"MongoDB was going away while inserting: {details['writeConcernErrors']}"
        ) from error
    return problems


def new_token() -> str:
    """A fresh lease token: 128 random bits."""
    return secrets.token_hex(16)


def _claim_of(doc: JobDoc) -> Claim:
    lease = doc["lease"]
    held = Lease(token=lease["token"], worker=lease["worker"], expires=lease["expires"])
    return Claim(doc=decode_job(doc), lease=held)


def _number(field: str) -> Document:
    """The value of a field, 0 if it holds no number: one odd document must not keep a claim from all others."""
    return {"$cond": [{"$isNumber": field}, field, 0]}


def _fence(claim: Claim) -> Document:
    """The condition of everything that a worker writes about a job."""
    return {"_id": claim.job_id, "state": int(JobState.RUNNING), "lease.token": claim.lease.token}
