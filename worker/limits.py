"""What a trial may take, watched while it runs; and how long a slot rests whose processes keep crashing."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from hyperfarm.jobs import TrialLimits

MEMORY = "TrialMemoryExceeded"
MEMORY_LOOK_S = 0.5
LONGEST_WAIT_S = 3600.0
"""More than some weeks is more than the system can be asked to wait."""
FREE_CRASHES = 1
"""So many crashes in a row cost no rest: any trial may kill its process."""
FIRST_REST_S = 1.0
LONGEST_REST_S = 300.0


class LimitExceeded(Exception):
    """The trial took more than it may; `kind` names the limit, the message tells by how much."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class HasMemory(Protocol):
    """A group of processes."""

    def resident_bytes(self, more_than: int) -> int: ...


class Watch:
    """The limits of one attempt, which begins now."""

    def __init__(self, limits: TrialLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits, self._clock = limits, clock
        self._began = clock()
        self._memory_due = self._began + MEMORY_LOOK_S

    def wait_s(self) -> float | None:
        """Seconds until `check` wants to be called again; None when there is no limit."""
        due = []
        if self._limits.timeout_s is not None:
            due.append(self._began + self._limits.timeout_s)
        if self._limits.memory is not None:
            due.append(self._memory_due)
        return min(max(0.0, min(due) - self._clock()), LONGEST_WAIT_S) if due else None

    def check(self, processes: HasMemory) -> None:
        """Raise LimitExceeded when the attempt has taken too long or too much."""
        now, timeout_s, memory = self._clock(), self._limits.timeout_s, self._limits.memory
        if timeout_s is not None and now - self._began >= timeout_s:
            raise LimitExceeded("TrialTimeout", f"the trial ran longer than {timeout_s:g} s and was stopped")
        if memory is not None and now >= self._memory_due:
            self._memory_due = now + MEMORY_LOOK_S
            resident = processes.resident_bytes(memory)
            if resident:
                raise LimitExceeded(
                    MEMORY,
                    f"the trial's processes held {resident / 1e6:.0f} MB of memory, more than the "
                    f"{memory / 1e6:.0f} MB that it may, and were stopped",
                )


def rest_s(crashes: int) -> float:
    """Return how long a slot rests after `crashes` crashes in a row, in seconds: 0, then 1, 2, 4 ... 300."""
    if crashes <= FREE_CRASHES:
        return 0.0
    return float(min(FIRST_REST_S * 2.0 ** min(crashes - FREE_CRASHES - 1, 20), LONGEST_REST_S))
