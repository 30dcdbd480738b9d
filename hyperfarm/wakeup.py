"""Being woken when the database has news, without asking it over and over.

On a replica set one change stream does it; on a standalone server the waiter simply looks every `poll_s`.
News is only ever a hint to look: correctness never depends on it.
"""

from __future__ import annotations

import random
import threading
import time

from hyperfarm.errors import DatabaseError
from hyperfarm.store import Store

AWAIT_S = 30.0
REOPEN_PAUSE_S = 2.0


class Wakeup:
    """Counts news. Read `generation`, look at the database, then `wait` for a later generation."""

    def __init__(self, store: Store, *, queue_only: bool, poll_s: float) -> None:
        self._store, self._queue_only, self._poll_s = store, queue_only, poll_s
        self._condition = threading.Condition()
        self._generation = 0
        self._closed = False
        self._streams = False
        if store.has_change_streams:
            threading.Thread(target=self._follow, daemon=True, name="change stream").start()

    @property
    def generation(self) -> int:
        with self._condition:
            return self._generation

    def notify(self) -> None:
        """Wake everybody, as if there were news."""
        with self._condition:
            self._generation += 1
            self._condition.notify_all()

    def wait(self, seen: int, timeout_s: float) -> None:
        """Return when the generation is not `seen` any more, after `timeout_s`, or when it is time to poll."""
        with self._condition:
            if not self._streams:
                timeout_s = min(timeout_s, self._poll_s * random.uniform(0.75, 1.25))
            deadline = time.monotonic() + timeout_s
            while self._generation == seen and not self._closed:
                left = deadline - time.monotonic()
                if left <= 0:
                    return
                self._condition.wait(left)

    def close(self) -> None:
        """Let every waiter go, now and from now on."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()

    def _is_closed(self) -> bool:
        with self._condition:
            return self._closed

    def _follow(self) -> None:
        while not self._is_closed():
            try:
                for _ in self._store.watch(queue_only=self._queue_only, await_s=AWAIT_S):
                    if self._is_closed():
                        return
                    self._streams = True
                    self.notify()
            except DatabaseError:
                pass  # The stream is opened anew; until then the waiters poll.
            self._streams = False
            self.notify()
            time.sleep(REOPEN_PAUSE_S)
