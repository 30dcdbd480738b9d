"""Every MongoDB statement about jobs of hyperopt's own programs, which know nothing of leases and budgets.

Its workers claim a job without a lease and write its result on condition that `version` is still the same; its
`fmin` queues jobs without a slot of the budget.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence
from datetime import datetime, timedelta

from pymongo import ASCENDING
from pymongo.errors import DuplicateKeyError

from hyperfarm.jobs import (
    DEFAULT_MAX_ATTEMPTS,
    KEPT_HISTORY,
    PARKED_OWNER,
    STUDY_OWNER,
    Event,
    JobDoc,
    JobState,
    after_lost_attempt,
    backoff_s,
    next_state,
)
from hyperfarm.mongo import Document, translated
from hyperfarm.queries import JobQueries


class ForeignJobs(JobQueries):
    """What `Store` does with the jobs of hyperopt's own programs."""

    def adopt(self, exp_key: str | None) -> int:
        """Give slots of the budget to the jobs that hyperopt's own `fmin` has made, but not to failed ones.

        They count, as they do for hyperopt. `version` stays: whoever runs one may go on. Index `view`.
        """
        counted = [int(state) for state in (JobState.NEW, JobState.RUNNING, JobState.DONE)]
        query = {"exp_key": exp_key, "slot": {"$exists": False}, "state": {"$in": counted}}
        adopted = 0
        with translated("taking over jobs"):
            foreign = [doc["_id"] for doc in self.jobs.find(query, {"_id": 1}).sort("tid", ASCENDING)]
            if not foreign:
                return 0
            own = self.jobs.find({"exp_key": exp_key, "slot": {"$exists": True}}, {"slot": 1})
            taken = {doc["slot"] for doc in own}
            free = (slot for slot in itertools.count() if slot not in taken)
            for job_id in foreign:
                with contextlib.suppress(DuplicateKeyError):  # Another controller does the same.
                    still = {"_id": job_id, "slot": {"$exists": False}}
                    adopted += self.jobs.update_one(still, {"$set": {"slot": next(free)}}).modified_count
        return adopted

    def unpark(self, unclaimed_s: float) -> int:
        """Free the parked jobs that nobody has claimed for so long after their back-off; index `queue`.

        hyperopt's own workers claim jobs without an owner only, and may be the only ones that are left.
        """
        with translated("freeing parked jobs"):
            due = {"$lte": self.now() - timedelta(seconds=unclaimed_s)}
            query = {"state": int(JobState.NEW), "owner": PARKED_OWNER, "not_before": due}
            free: Document = {"$set": {"owner": None}, "$unset": {"not_before": ""}, "$inc": {"version": 1}}
            return self.jobs.update_many(query, free, hint="queue").modified_count

    def without_lease(self) -> list[JobDoc]:
        """The running jobs that hyperopt's own workers have claimed; index `lease_expiry`."""
        query = {"state": int(JobState.RUNNING), "lease.expires": None}
        fields = dict.fromkeys(("exp_key", "tid", "owner", "refresh_time"), 1)
        with translated("looking for jobs without a lease"):
            return self._with_indexes(lambda: list(self.jobs.find(query, fields).hint("lease_expiry")))

    def take_back(self, ids: Sequence[object], grace_s: float) -> list[tuple[JobDoc, Event]]:
        """Take back those of the jobs without a lease whose worker has said nothing for `grace_s` seconds.

        When it was heard last is told by its own clock. From now on `version` is another: a result that still
        comes is refused. The job is not parked, so that hyperopt's own workers can have it again.
        """
        taken = []
        with translated("taking back jobs without a lease"):
            now = self.now()
            due = {"$lte": now - timedelta(seconds=grace_s)}
            query = {"_id": {"$in": list(ids)}, "state": int(JobState.RUNNING), "lease.expires": None}
            for doc in self.jobs.find({**query, "refresh_time": due}):
                tried = {**doc, "attempt": doc.get("attempt", 0) + 1}
                attempts = doc.get("max_attempts", DEFAULT_MAX_ATTEMPTS)
                event = after_lost_attempt(tried["attempt"], attempts)
                story = f"no sign of life from {doc.get('owner')} for {grace_s / 3600:.3g} h"
                update = end_of_attempt(tried, event, story, str(doc.get("owner")), now)
                update["$set"] |= {"owner": None, "attempt": tried["attempt"]}
                update["$set"].pop("not_before", None)
                same = {"_id": doc["_id"], "state": int(JobState.RUNNING), "version": doc.get("version")}
                if self.jobs.update_one({**same, "refresh_time": doc["refresh_time"]}, update).modified_count:
                    taken.append((tried, event))
        return taken

    def delete_jobs(self, query: Document) -> list[JobDoc]:
        """Delete the jobs that match, and return them; running workers lose their leases."""
        with translated("deleting jobs"):
            docs = list(self.jobs.find(query))
            self.jobs.delete_many({"_id": {"$in": [doc["_id"] for doc in docs]}})
            for doc in docs:
                self.reports_.delete_many({"exp_key": doc.get("exp_key"), "tid": doc["tid"]})
        return docs


def end_of_attempt(doc: JobDoc, event: Event, story: str, worker: str, now: datetime) -> Document:
    """The update that ends an attempt without a result: back to the queue, or an error with the whole story.

    A release may be claimed at once; after a lost attempt the job waits out a back-off. A study's job goes back to
    those who ask, without one: it was a person's process that died, not a host of the farm.
    """
    attempt = doc.get("attempt", 1)
    entry = {"attempt": attempt, "worker": worker, "event": event.value, "reason": story, "at": now}
    entry["token"] = (doc.get("lease") or {}).get("token")
    state = next_state(JobState.RUNNING, event, doc.get("history", ()))
    fields: Document = {"state": int(state), "owner": None}
    if event is not Event.GIVE_UP:
        fields["result"] = {"status": "new"}  # Of a partial result, the blobs are gone or another's.
    if event is Event.REQUEUE:
        fields |= {"owner": PARKED_OWNER, "not_before": now + timedelta(seconds=backoff_s(attempt))}
    if doc.get("ask_and_tell") and event is not Event.GIVE_UP:
        fields["owner"] = STUDY_OWNER
        fields.pop("not_before", None)
    if event is Event.GIVE_UP:
        told = [*doc.get("history", ()), entry]
        text = "; ".join(f"attempt {one['attempt']}: {one['reason']}" for one in told)
        fields |= {"error": ["AttemptsExhausted", text], "result": {"status": "fail"}}
    # Of a trial that is over nobody resumes.
    over = {"checkpoint": ""} if event is Event.GIVE_UP else {}
    return {
        "$set": fields,
        "$unset": {"lease": "", **over},
        "$inc": {"version": 1},
        "$push": {"history": {"$each": [entry], "$slice": -KEPT_HISTORY}},
        "$currentDate": {"refresh_time": True},
    }
