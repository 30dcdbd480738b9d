"""A local copy of an experiment's jobs, brought up to date at a cost that grows with what changed.

Finished jobs do not change by themselves, so an ordinary refresh asks only about the jobs that were
unfinished and about higher trial ids. What that cannot see (jobs deleted, retried, or inserted late by
another controller) is found by a comparison of all (tid, version), from an index alone, every few seconds.
No clock of any worker takes part.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from hyperfarm.jobs import JobDoc, JobState
from hyperfarm.store import Store

COMPARE_EVERY_S = 10.0
COMPARE_SHARE = 0.02
"""At most this share of the time goes into comparisons, however many jobs there are."""


class View:
    """The jobs of one experiment (exp_key None: of all) by tid. Not thread-safe."""

    def __init__(
        self, store: Store, exp_key: str | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store, self._exp_key, self._clock = store, exp_key, clock
        self._jobs: dict[int, JobDoc] = {}
        self._unfinished: set[int] = set()
        self._sorted: list[JobDoc] | None = []
        self._last_tid = -1
        self._next_compare = 0.0

    def jobs(self) -> list[JobDoc]:
        """All jobs, ordered by tid. The list is ours: do not change it."""
        if self._sorted is None:
            self._sorted = [self._jobs[tid] for tid in sorted(self._jobs)]
        return self._sorted

    def refresh(self, *, full: bool = False) -> list[JobDoc]:
        """Bring the copy up to date; return the jobs that are new or changed.

        `full` compares every job, so that on return nothing is missed that was there before the call.
        """
        started = self._clock()
        if full or started >= self._next_compare:
            seen = list(self._store.job_versions(self._exp_key))
            gone = self._jobs.keys() - {tid for tid, _, _ in seen}
            changed = self._update(seen, gone)
            ended = self._clock()
            self._next_compare = ended + max(COMPARE_EVERY_S, (ended - started) / COMPARE_SHARE)
            return changed
        seen = list(self._store.changed_jobs(self._exp_key, list(self._unfinished), self._last_tid))
        return self._update(seen, self._unfinished - {tid for tid, _, _ in seen})

    def _update(self, seen: Iterable[tuple[int, int, int]], gone: Iterable[int]) -> list[JobDoc]:
        for tid in list(gone):
            self._forget(tid)
        stale = [tid for tid, version, state in seen if not self._is_current(tid, version, state)]
        changed = self._store.jobs_by_tid(self._exp_key, stale) if stale else []
        self.put(changed)
        return changed

    def _is_current(self, tid: int, version: int, state: int) -> bool:
        known = self._jobs.get(tid)
        return known is not None and known.get("version", 0) == version and known["state"] == state

    def put(self, docs: Iterable[JobDoc]) -> None:
        """Take in documents: those just read, or just inserted by ourselves."""
        for doc in docs:
            tid = doc["tid"]
            in_order = self._sorted is not None and tid not in self._jobs and tid > self._last_tid
            self._jobs[tid] = doc
            self._last_tid = max(self._last_tid, tid)
            if in_order and self._sorted is not None:
                self._sorted.append(doc)
            else:
                self._sorted = None
            if JobState(doc["state"]).is_finished:
                self._unfinished.discard(tid)
            else:
                self._unfinished.add(tid)

    def _forget(self, tid: int) -> None:
        self._jobs.pop(tid, None)
        self._unfinished.discard(tid)
        self._sorted = None
