"""When a worker stops by itself: hyperopt-mongo-worker's limits. Not thread-safe by itself; one thread decides."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from hyperfarm.jobs import JobState


@dataclass(frozen=True, kw_only=True)
class StopLimits:
    """`reserve_timeout_s` without a job count as one failure; after `max_failures` in a row the worker stops.

    `last_job_timeout_s` after its start it claims no more. `max_jobs_in_db`: it claims none while the database
    holds so many.
    """

    reserve_timeout_s: float = math.inf
    max_failures: float = math.inf
    last_job_timeout_s: float = math.inf
    max_jobs_in_db: int | None = None


class StopRules:
    """Follows one worker, and says when it should claim no more, and why."""

    def __init__(self, limits: StopLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits, self._clock = limits, clock
        self._lock = threading.Lock()
        self._began = self._idle_since = clock()
        self.failures = 0
        self.waited_in_vain = False
        """True when the last failure was a time-out without a job."""

    def ended(self, outcome: JobState | None, *, in_vain: bool = False) -> None:
        """A trial came to its end (None: an attempt that did not; `in_vain`: there was none)."""
        with self._lock:
            self.failures = 0 if outcome is JobState.DONE else self.failures + 1
            self.waited_in_vain = in_vain
            self._idle_since = self._clock()

    def reached(self, busy: bool) -> str | None:
        """Why the worker should stop now, None while it should not."""
        limits, now = self.limits, self._clock()
        with self._lock:
            if busy:
                self._idle_since = now
            elif now - self._idle_since > limits.reserve_timeout_s:
                self.failures += 1
                self.waited_in_vain = True
                self._idle_since = now
            if now - self._began > limits.last_job_timeout_s:
                return f"{limits.last_job_timeout_s:g} s have passed (--last-job-timeout)"
            if self.failures >= limits.max_failures:
                return f"{self.failures} failures in a row (--max-consecutive-failures)"
        return None

    def full(self, jobs_in_db: Callable[[], int]) -> str | None:
        """Why no job should be claimed, None if one may; asks the database only if there is such a limit."""
        most = self.limits.max_jobs_in_db
        if most is None or (there := jobs_in_db()) < most:
            return None
        return f"the database holds {there} jobs, the limit is {most} (--max-jobs-in-db)"
