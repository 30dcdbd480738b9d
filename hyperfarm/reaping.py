"""Taking back the jobs of workers that fell silent, but not of those that MongoDB itself kept silent.

After an outage of the database every lease may have expired though every worker lives. So a lease is only
taken back when this observer has seen it expired, and not renewed, for a while during which the database
answered: time enough for a living worker to renew.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from hyperfarm.jobs import Event, JobDoc
from hyperfarm.store import Store

SECOND_LOOK_S = 8.0
"""More than a living worker pauses between two tries to renew (retry.LONGEST_PAUSE_S), and a round trip."""


class Reaper:
    """One observer of expired leases. Not thread-safe."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.monotonic) -> None:
        self._store, self._clock = store, clock
        self._first_seen: dict[tuple[str, object], float] = {}

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
        return reaped
