"""The rules of a job's life once more, as plain Python over dictionaries: what the store is compared with.

Nothing of hyperfarm's own arithmetic is used here: back-offs, attempts and transitions are written out.
Each method returns what the store's method of the same name has to return, or raises LeaseLost.
"""

from __future__ import annotations

import copy
import datetime as dt
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hyperfarm.errors import LeaseLost

NEW, RUNNING, DONE, ERROR, CANCELLED = range(5)
PARKED = "hyperfarm:parked"
BACKOFFS_S = {1: 2, 2: 8, 3: 32}
UNPARKED_AFTER = dt.timedelta(seconds=60)
LONGEST_BACKOFF_S = 120
USUAL_ATTEMPTS = 3
LONGEST_HISTORY = 10
Doc = dict[str, Any]


@dataclass(frozen=True)
class Held:
    """A claim that somebody once got, and may still believe in."""

    job: Any
    tid: int
    exp_key: str | None
    token: str
    worker: str
    attempt: int
    max_attempts: int
    history: list[Doc]


class Model:
    """All jobs and reports as they have to lie in the database, but for the field refresh_time."""

    def __init__(self, now: dt.datetime) -> None:
        self.now = now
        self.jobs: dict[Any, Doc] = {}
        self.reports: dict[Any, Doc] = {}
        self.given: dict[str, Held] = {}

    # ---- what it is asked --------------------------------------------------------------------------

    def holder(self, job: Doc) -> str | None:
        return job["lease"]["token"] if job["state"] == RUNNING and "lease" in job else None

    def is_held(self, token: str) -> bool:
        return any(self.holder(job) == token for job in self.jobs.values())

    def given_job(self, token: str) -> Doc:
        """The job that was once claimed with this token."""
        return self.jobs[self.given[token].job]

    def boundaries(self) -> list[dt.datetime]:
        """The moments at which something will be allowed that is not allowed now, or the other way round."""
        ends = [job["lease"]["expires"] for job in self.jobs.values() if self.holder(job)]
        ready = [job["not_before"] for job in self.jobs.values() if "not_before" in job]
        ends += [*ready, *(moment + UNPARKED_AFTER for moment in ready)]
        return sorted({end for end in ends if end >= self.now})

    def _waits(self, job: Doc) -> bool:
        return job["state"] == NEW and job["owner"] in (None, PARKED)

    def _is_ready(self, job: Doc) -> bool:
        return self._waits(job) and not ("not_before" in job and job["not_before"] > self.now)

    def waiting(self) -> tuple[set[str | None], float | None]:
        ready = {job["exp_key"] for job in self.jobs.values() if self._is_ready(job)}
        later = [job for job in self.jobs.values() if self._waits(job) and not self._is_ready(job)]
        pauses = [(job["not_before"] - self.now) // dt.timedelta(milliseconds=1) for job in later]
        return ready, min(pauses) / 1000 if pauses else None

    def running_count(self) -> int:
        return sum(
            self.holder(job) is not None and job["lease"]["expires"] > self.now for job in self.jobs.values()
        )

    def visible_reports(self, job: Doc) -> list[Any]:
        last = self.holder(job) or (job.get("accepted") or {}).get("token")
        mine = [one for one in self.reports.values() if one["tid"] == job["tid"] and one["token"] == last]
        return sorted(one["_id"] for one in mine)

    # ---- the controller's side ---------------------------------------------------------------------

    def insert_jobs(self, docs: Sequence[Doc]) -> set[int]:
        inserted = set()
        for doc in docs:
            taken = {(job["exp_key"], job["slot"]) for job in self.jobs.values() if "slot" in job}
            if doc["_id"] not in self.jobs:
                if "slot" in doc and (doc["exp_key"], doc["slot"]) in taken:
                    continue
                self.jobs[doc["_id"]] = copy.deepcopy(doc)
            inserted.add(doc["tid"])
        return inserted

    def _of(self, exp_key: str | None, *states: int) -> list[Doc]:
        return [job for job in self.jobs.values() if job["exp_key"] == exp_key and job["state"] in states]

    def _delete(self, jobs: list[Doc]) -> int:
        for job in jobs:
            del self.jobs[job["_id"]]
        return len(jobs)

    def withdraw_queued(self, exp_key: str | None) -> int:
        untried = [job for job in self._of(exp_key, NEW) if "slot" in job and job["attempt"] == 0]
        return self._delete(untried)

    def remove_jobs(self, exp_key: str | None) -> tuple[int, int]:
        unfinished = self._delete(self._of(exp_key, NEW, RUNNING))
        finished = self._delete(self._of(exp_key, DONE, ERROR, CANCELLED))
        self.reports = {key: one for key, one in self.reports.items() if one["exp_key"] != exp_key}
        return unfinished + finished, unfinished

    def cancel(self, exp_key: str | None) -> int:
        jobs = self._of(exp_key, NEW, RUNNING)
        for job in jobs:
            job.update(state=CANCELLED, owner=None, version=job["version"] + 1)
            for field in ("lease", "slot", "checkpoint"):
                job.pop(field, None)
        return len(jobs)

    def prune_models(self, exp_key: str | None, keep: int) -> list[Any]:
        def loss(job: Doc) -> float:
            value = job["result"].get("loss")
            return math.nan if value is None or job["result"]["status"] != "ok" else value

        def models(job: Doc) -> list[Any]:
            return [one["blob"] for one in job.get("artifacts", ()) if one["kind"] == "model"]

        ranked = [job for job in self._of(exp_key, DONE) if models(job) and not math.isnan(loss(job))]
        ranked.sort(key=lambda job: (loss(job), job["tid"]))
        pruned: list[Any] = []
        for job in ranked[keep:]:
            pruned += models(job)
            job["artifacts"] = [one for one in job["artifacts"] if one["kind"] != "model"]
            job.update(models_removed=True, version=job["version"] + 1)
        return pruned

    def unpark(self) -> None:
        for job in [job for job in self.jobs.values() if job["state"] == NEW]:
            if job["owner"] == PARKED and job["not_before"] + UNPARKED_AFTER <= self.now:
                del job["not_before"]
                job.update(owner=None, version=job["version"] + 1)

    def reap(self, is_due: Callable[[Doc], bool] = lambda _: True) -> list[tuple[int, str]]:
        reaped = []
        for job in list(self.jobs.values()):
            if self.holder(job) and job["lease"]["expires"] <= self.now and is_due(job):
                worker = job["lease"]["worker"]
                story = f"no sign of life from worker {worker}; its lease expired"
                reaped.append((job["tid"], self._cut_off(job, self.given[job["lease"]["token"]], story)))
        return reaped

    # ---- the worker's side -------------------------------------------------------------------------

    def claim(self, exp_key: str | None, worker: str, owner: str, token: str, lease_s: float) -> Doc | None:
        ready = [job for job in self._of(exp_key, NEW) if self._is_ready(job)]
        if not ready:
            return None
        job = min(ready, key=lambda job: job["tid"])
        expires = self.now + dt.timedelta(seconds=lease_s)
        job.update(
            state=RUNNING,
            owner=owner,
            lease={"token": token, "worker": worker, "expires": expires},
            attempt=job.get("attempt", 0) + 1,
            version=job["version"] + 1,
            book_time=self.now,
        )
        job.pop("not_before", None)
        assert token not in self.given, "every claim has a token of its own"
        self.given[token] = Held(
            job["_id"],
            job["tid"],
            exp_key,
            token,
            worker,
            job["attempt"],
            job.get("max_attempts", USUAL_ATTEMPTS),
            list(job.get("history", ())),
        )
        return job

    def renew(self, tokens: Sequence[str], lease_s: float) -> set[str]:
        lost = set(tokens)
        for job in self.jobs.values():
            if self.holder(job) in tokens:
                lost.discard(job["lease"]["token"])
                job["lease"]["expires"] = self.now + dt.timedelta(seconds=lease_s)
        return lost

    def _mine(self, held: Held) -> Doc | None:
        job = self.jobs.get(held.job)
        return job if job is not None and self.holder(job) == held.token else None

    def finish(self, held: Held, state: int, fields: Doc) -> None:
        if job := self._mine(held):
            accepted = {"token": held.token, "worker": held.worker}
            job.update(**fields, state=int(state), accepted=accepted, version=job["version"] + 1)
            del job["lease"]
            job.pop("checkpoint", None)
        elif self.jobs.get(held.job, {}).get("accepted", {}).get("token") != held.token:
            raise LeaseLost

    def checkpoint(self, held: Held, result: Doc) -> None:
        job = self._mine(held)
        if job is None:
            raise LeaseLost
        job.update(result=result, version=job["version"] + 1)

    def keep_checkpoint(self, held: Held, ref: Doc) -> None:
        if job := self._mine(held):
            kept = {**ref, "attempt": held.attempt, "at": self.now}
            job.update(checkpoint=kept, version=job["version"] + 1)
        elif self.jobs.get(held.job, {}).get("checkpoint", {}).get("blob") != ref["blob"]:
            raise LeaseLost

    def add_reports(self, held: Held, reports: Sequence[Doc]) -> None:
        if self._mine(held) is None:
            raise LeaseLost
        marks = {"exp_key": held.exp_key, "tid": held.tid, "token": held.token}
        for one in reports:
            self.reports.setdefault(one["_id"], {**one, **marks})

    def release(self, held: Held, reason: str) -> bool:
        job = self._mine(held)
        if job is None:
            return False
        self._leave(job, held, "release", reason)
        job.update(state=NEW, owner=None, attempt=job["attempt"] - 1, result={"status": "new"})
        return True

    def end_attempt(self, held: Held, reason: str, fields: Doc | None = None) -> str | None:
        if job := self._mine(held):
            job.update(fields or {})
            return self._cut_off(job, held, reason)
        for entry in self.jobs.get(held.job, {}).get("history", ()):
            if (entry["token"], entry["reason"]) == (held.token, reason) and entry["event"] != "release":
                return str(entry["event"])
        return None

    def _cut_off(self, job: Doc, held: Held, reason: str) -> str:
        """An attempt was lost: back to the queue after a pause, or an error with the story of every attempt."""
        if held.attempt < held.max_attempts:
            self._leave(job, held, "requeue", reason)
            pause = dt.timedelta(seconds=BACKOFFS_S.get(held.attempt, LONGEST_BACKOFF_S))
            job.update(state=NEW, owner=PARKED, not_before=self.now + pause, result={"status": "new"})
            return "requeue"
        self._leave(job, held, "give up", reason)
        job.pop("checkpoint", None)
        told = [(one["attempt"], one["reason"]) for one in held.history] + [(held.attempt, reason)]
        story = "; ".join(f"attempt {attempt}: {why}" for attempt, why in told)
        job.update(state=ERROR, owner=None, result={"status": "fail"}, error=["AttemptsExhausted", story])
        return "give up"

    def _leave(self, job: Doc, held: Held, event: str, reason: str) -> None:
        entry = {"attempt": held.attempt, "worker": held.worker, "event": event, "reason": reason}
        entry |= {"at": self.now, "token": held.token}
        job["history"] = [*job.get("history", ()), entry][-LONGEST_HISTORY:]
        job["version"] += 1
        del job["lease"]
