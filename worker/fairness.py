"""Which experiment a free slot serves next, when several have jobs waiting. Pure.

Each experiment is charged the slot time that this host gave it (start-time fair queueing: the one that was
charged least goes first). Staying with the code that a slot's process has loaded is worth a head start, so
that a slow import is not paid at every trial.
"""

from __future__ import annotations

from collections.abc import Iterable

STAY_FACTOR = 10.0
"""A slot stays with its experiment until another is behind by this many start-ups of a child ..."""
MIN_STAY_S = 1.0
"""... and by at least this many seconds."""

Key = str | None


class FairShare:
    """Slot seconds that each experiment got from this host. Not thread-safe."""

    def __init__(self) -> None:
        self._charged: dict[Key, float] = {}
        self._turn: dict[Key, int] = {}
        self._turns = 0
        self._level = 0.0
        self._longest_stay = 0.0

    def order(self, waiting: Iterable[Key], *, loaded: Key, startup_s: float) -> list[Key]:
        """Return the experiments that wait, the one to be served first at the front.

        `loaded` is the experiment whose code the slot holds, `startup_s` what its child took to start.
        """
        keys = list(waiting)
        stay = max(MIN_STAY_S, STAY_FACTOR * startup_s)
        self._longest_stay = max(self._longest_stay, stay)
        self._admit(keys)

        def rank(key: Key) -> tuple[float, int]:
            head_start = stay if key == loaded else 0.0
            return self._charged[key] - head_start, self._turn.get(key, 0)

        return sorted(keys, key=rank)

    def begin(self, key: Key) -> None:
        """Note that a slot begins to serve `key`: among equals the one served longest ago goes first."""
        self._turns += 1
        self._turn[key] = self._turns
        self._level = max(self._level, self._charged.get(key, 0.0))

    def charge(self, key: Key, seconds: float) -> None:
        """Charge `seconds` of slot time to `key`."""
        self._charged[key] = self._charged.get(key, 0.0) + seconds

    def _admit(self, keys: list[Key]) -> None:
        """Nobody has a claim on the past.

        A newcomer starts level with the least served. Who had nothing waiting for a while comes back no
        further behind the one served last than those who waited all the time can be: by a head start.
        """
        known = [self._charged[key] for key in keys if key in self._charged]
        level = min(known, default=self._level)
        for key in keys:
            charged = self._charged.get(key, level)
            self._charged[key] = max(charged, self._level - self._longest_stay)
