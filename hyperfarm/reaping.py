"""Taking back the jobs of workers that fell silent, but not of those that MongoDB itself kept silent.

After an outage of the database every lease may have expired though every worker lives. So a lease is only
taken back when this observer has seen it expired, and not renewed, for a while during which the database
answered: time enough for a living worker to renew.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable

from hyperfarm import settings
from hyperfarm.jobs import Event, JobDoc
from hyperfarm.store import Store

log = logging.getLogger("hyperfarm")
FOREIGN_EVERY_S = 60.0
"""Jobs that hyperopt's own programs have a part in are looked at this often: their times are long ones."""

SECOND_LOOK_S = 8.0
"""More than a living worker pauses between two tries to renew (retry.LONGEST_PAUSE_S), and a round trip."""


class Reaper:
    """One observer of expired leases. Not thread-safe.

    `legacy_grace_s`: for so long a worker of hyperopt's own, which has no lease, may be silent.
    """

    def __init__(
        self,
        store: Store,
        clock: Callable[[], float] = time.monotonic,
        *,
        legacy_grace_s: float | None = None,
    ) -> None:
        self._store, self._clock = store, clock
        self._legacy_grace_s = settings.legacy_grace_s() if legacy_grace_s is None else legacy_grace_s
        self._first_seen: dict[tuple[str, object], float] = {}
        self._without_lease: set[object] = set()
        self._next_foreign = -math.inf

    def look(self) -> list[tuple[JobDoc, Event]]:
        """Reap the jobs whose lease was expired, and is still the same, for SECOND_LOOK_S.

        Returns them with what became of each. After an error all is seen as for the first time.
        """
        before, self._first_seen = self._first_seen, {}
        seen: dict[tuple[str, object], float] = {}
        now = self._clock()

        def is_due(doc: JobDoc) -> bool:
            key = doc["lease"]["token"], doc["lease"]["expires"]
            seen[key] = before.get(key, now)
            return now - seen[key] >= SECOND_LOOK_S

        reaped = self._store.reap(is_due)
        self._first_seen = seen
        return reaped + (self._look_at_foreign() if now >= self._next_foreign else [])

    def _look_at_foreign(self) -> list[tuple[JobDoc, Event]]:
        """Take back what hyperopt's own workers have held in silence for too long; warn of each job once.

        They cannot claim a job that is parked: one that nobody has taken is given free.
        """
        self._next_foreign = self._clock() + min(FOREIGN_EVERY_S, self._legacy_grace_s / 4)
        self._store.unpark(FOREIGN_EVERY_S)
        jobs = {doc["_id"]: doc for doc in self._store.without_lease()}
        for job_id in jobs.keys() - self._without_lease:
            log.warning(
                "trial %s of %s is run by %s, which is no worker of hyperfarm's: should it die, the trial is "
                "taken back only after %.3g h (HYPERFARM_LEGACY_GRACE)",
                *(jobs[job_id].get(name) for name in ("tid", "exp_key", "owner")),
                self._legacy_grace_s / 3600,
            )
        self._without_lease = set(jobs)
        return self._store.take_back(list(jobs), self._legacy_grace_s) if jobs else []
