"""A local copy of an experiment's jobs, brought up to date at a cost that grows with what changed.

Finished jobs do not change by themselves, so an ordinary refresh asks only about the jobs that were
unfinished and about higher trial ids. What that cannot see (jobs deleted, retried, or inserted late by
another controller) is found by a comparison of all (tid, version), from an index alone, every few seconds.
No clock of any worker takes part.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Iterable
from typing import Any

from hyperfarm.jobs import JobDoc, JobState, is_failed, is_ok
from hyperfarm.queries import Scope
from hyperfarm.store import Store
from hyperfarm.values import is_number

COMPARE_EVERY_S = 10.0
COMPARE_SHARE = 0.02
"""At most this share of the time goes into comparisons, however many jobs there are."""


class View:
    """The jobs of one experiment by tid, with what a search asks at every step.

    exp_key None: the jobs of all experiments; NO_KEY: those that have no key.
    All but a full refresh costs as much as what changed. Not thread-safe.
    """

    def __init__(self, store: Store, exp_key: Scope, clock: Callable[[], float] = time.monotonic) -> None:
        self._store, self._clock = store, clock
        self.exp_key = exp_key
        self._jobs: dict[Any, JobDoc] = {}
        self._sorted: list[JobDoc] = []
        self._unfinished: set[int] = set()
        self._failed: set[int] = set()
        self._slots: dict[int, set[int]] = {}
        self._low_water = 0
        self._best: JobDoc | None = None
        self._last_tid = -1
        self._next_compare = 0.0

    def jobs(self) -> list[JobDoc]:
        """All jobs, ordered by tid. The list is ours: do not change it."""
        return self._sorted

    def unfinished(self) -> list[JobDoc]:
        """The jobs that wait or run."""
        return [self._jobs[tid] for tid in self._unfinished]

    def slots(self) -> dict[int, set[int]]:
        """The slots of the budget that have a job, with its tid. The dict is ours: do not change it.

        Two tids share a slot while a job of ours is not inserted and another controller was faster.
        """
        return self._slots

    def free_slots(self, count: int, budget: int) -> list[int]:
        """The lowest slots below `budget` that have no job, at most `count` of them."""
        free: list[int] = []
        # Below this mark all are taken, unless one was freed; then the search begins anew.
        slot = self._low_water if self._low_water <= len(self._slots) else 0
        while len(free) < count and slot < budget:
            if slot not in self._slots:
                free.append(slot)
            slot += 1
        self._low_water = free[0] if free else slot
        return free

    def count_failed(self) -> int:
        """How many finished jobs of the budget have no usable result."""
        return len(self._failed)

    def best(self) -> JobDoc | None:
        """The successful job with the lowest loss, NaN apart; of equals the one with the lowest tid."""
        return self._best

    def refresh(self, *, full: bool = False) -> list[JobDoc]:
        """Bring the copy up to date; return the jobs that are new or changed.

        `full` compares every job, so that on return nothing is missed that was there before the call.
        """
        started = self._clock()
        if full or started >= self._next_compare:
            seen = list(self._store.job_versions(self.exp_key))
            gone = self._jobs.keys() - {tid for tid, _, _ in seen}
            changed = self._update(seen, gone)
            ended = self._clock()
            self._next_compare = ended + max(COMPARE_EVERY_S, (ended - started) / COMPARE_SHARE)
            return changed
        seen = list(self._store.changed_jobs(self.exp_key, list(self._unfinished), self._last_tid))
        return self._update(seen, self._unfinished - {tid for tid, _, _ in seen})

    def _update(self, seen: Iterable[tuple[int, int, int]], gone: Iterable[int]) -> list[JobDoc]:
        self.forget(list(gone))
        stale = [tid for tid, version, state in seen if not self._is_current(tid, version, state)]
        changed = self._store.jobs_by_tid(self.exp_key, stale) if stale else []
        self.put(changed)
        return changed

    def _is_current(self, tid: int, version: int, state: int) -> bool:
        known = self._jobs.get(tid)
        return known is not None and known.get("version", 0) == version and known["state"] == state

    def put(self, docs: Iterable[JobDoc]) -> None:
        """Take in documents: those just read, or just made by ourselves."""
        for doc in docs:
            tid = doc["tid"]
            if tid in self._jobs:
                self._drop_marks(tid)
                self._sorted[self._position(tid)] = doc
            elif _place(tid) > _place(self._last_tid):
                self._sorted.append(doc)
            else:
                self._sorted.insert(self._position(tid), doc)
            self._jobs[tid] = doc
            self._last_tid = max(self._last_tid, tid, key=_place)
            self._mark(tid, doc)

    def forget(self, tids: Iterable[int]) -> None:
        """Drop jobs that are not in the database (any more)."""
        for tid in tids:
            if tid in self._jobs:
                self._drop_marks(tid)
                del self._sorted[self._position(tid)]
                del self._jobs[tid]

    def _position(self, tid: int) -> int:
        return bisect_left(self._sorted, _place(tid), key=lambda doc: _place(doc["tid"]))

    def _mark(self, tid: int, doc: JobDoc) -> None:
        if "slot" in doc:
            self._slots.setdefault(doc["slot"], set()).add(tid)
        if not JobState(doc["state"]).is_finished:
            self._unfinished.add(tid)
        elif is_failed(doc):
            if "slot" in doc:
                self._failed.add(tid)
        elif _has_loss(doc):
            self._best = doc if self._best is None else min(self._best, doc, key=_rank)

    def _drop_marks(self, tid: int) -> None:
        before = self._jobs[tid]
        self._unfinished.discard(tid)
        self._failed.discard(tid)
        if "slot" in before:
            self._slots[before["slot"]].discard(tid)
            if not self._slots[before["slot"]]:
                del self._slots[before["slot"]]
        if self._best is not None and self._best["tid"] == tid:
            others = [doc for doc in self._sorted if doc["tid"] != tid and _has_loss(doc)]
            self._best = min(others, key=_rank, default=None)


class WholeView(View):
    """The jobs of a whole database, by `_id` and not by tid.

    Programs that number their trials themselves may use a tid in every experiment. A refresh costs as much as all
    jobs' versions, and the documents that changed.
    """

    def __init__(self, store: Store) -> None:
        super().__init__(store, None)

    def best(self) -> JobDoc | None:
        return min(filter(_has_loss, self._sorted), key=_rank, default=None)

    def unfinished(self) -> list[JobDoc]:
        return [doc for doc in self._sorted if not JobState(doc["state"]).is_finished]

    def refresh(self, *, full: bool = True) -> list[JobDoc]:
        """Bring the copy up to date; return the jobs that are new or changed."""
        there = self._store.all_versions()
        self._jobs = {key: doc for key, doc in self._jobs.items() if key in there}
        stale = [key for key, mark in there.items() if _mark_of(self._jobs.get(key)) != mark]
        changed = self._store.jobs_by_id(stale) if stale else []
        self.put(changed)
        return changed

    def put(self, docs: Iterable[JobDoc]) -> None:
        """Take in documents: those just read, or just inserted."""
        self._jobs.update((doc["_id"], doc) for doc in docs)
        self._sorted = sorted(self._jobs.values(), key=lambda doc: _place(doc["tid"]))

    def forget(self, tids: Iterable[int]) -> None:
        gone = set(tids)
        self._jobs = {key: doc for key, doc in self._jobs.items() if doc["tid"] not in gone}
        self.put(())


def _has_loss(doc: JobDoc) -> bool:
    return is_ok(doc) and is_number(doc["result"].get("loss"))


def _mark_of(doc: JobDoc | None) -> tuple[int, int] | None:
    return None if doc is None else (doc.get("version", 0), doc["state"])


def _place(tid: Any) -> tuple[bool, Any]:
    """Where a trial stands in the order of tids: numbers first, as in MongoDB; hyperopt takes any other kind too."""
    return isinstance(tid, str), tid


def _rank(doc: JobDoc) -> tuple[float, int]:
    return doc["result"]["loss"], doc["tid"]
