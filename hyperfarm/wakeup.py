"""Being woken when the database has news, without asking it over and over.

A worker waits for somebody to ring (`Store.watch_queue`), a controller for jobs to change (`Store.watch`, on
a replica set). While nothing stands that would tell, the waiter looks every now and then. News is only ever a
hint to look: correctness never depends on it.

A worker whom the news wake in vain (the jobs are another's, or two hundred others were faster) asks for the
next ones less and less often.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable

from hyperfarm.errors import DatabaseError
from hyperfarm.store import Store

AWAIT_S = 30.0
REOPEN_PAUSE_S = 2.0
POLL_GROWTH, MOST_POLLS = 1.25, 5.0
"""By what the pause between polls grows after each in vain, and to how many times the first."""
FREE_WAKES, FIRST_PAUSE_S, LONGEST_PAUSE_S = 3, 0.05, 2.0
"""So many wakes in vain are borne before the next news have to wait, for how long at first and at most."""
QUIET_S = 2.0
"""News after so long a quiet are passed on at once, whatever became of those before."""


def poll_pause_s(poll_s: float, in_vain: int) -> float:
    """How long to wait before looking without news, after `in_vain` looks in a row that found nothing."""
    return poll_s * min(POLL_GROWTH ** min(in_vain, 100), MOST_POLLS)


def stream_pause_s(in_vain: int) -> float:
    """How long to leave the stream alone after `in_vain` looks in a row that found nothing."""
    if in_vain <= FREE_WAKES:
        return 0.0
    return min(FIRST_PAUSE_S * 2.0 ** min(in_vain - FREE_WAKES - 1, 20), LONGEST_PAUSE_S)


class Wakeup:
    """Counts news. Read `generation`, look at the database, then `wait` for a later generation.

    With `queue_only` for a worker: it calls `found` when a look has found a job; to wait again without
    that is to say that the look was in vain.
    """

    def __init__(
        self,
        store: Store,
        *,
        queue_only: bool,
        poll_s: float,
        clock: Callable[[], float] = time.monotonic,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._store, self._queue_only, self._poll_s = store, queue_only, poll_s
        self._clock, self._uniform = clock, uniform
        self._condition = threading.Condition()
        self._generation = 0
        self._closed = self._streams = False
        self._waiting = 0
        self._in_vain = 0
        if queue_only or store.has_change_streams:
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

    def found(self) -> None:
        """The last look has found something: the next news are worth having at once."""
        with self._condition:
            self._in_vain = 0
            self._condition.notify_all()

    def wait(self, seen: int, timeout_s: float) -> None:
        """Return when the generation is not `seen` any more, after `timeout_s`, or when it is time to poll."""
        with self._condition:
            self._in_vain += self._queue_only
            began = self._clock()
            poll_s = poll_pause_s(self._poll_s, self._in_vain) * self._uniform(0.75, 1.25)
            self._waiting += 1
            self._condition.notify_all()
            while self._generation == seen and not self._closed:
                until = began + (timeout_s if self._streams else min(timeout_s, poll_s))
                left = until - self._clock()
                if left <= 0:
                    break
                self._condition.wait(left)
            self._waiting -= 1

    def close(self) -> None:
        """Let every waiter go, now and from now on."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()

    # ---- the news ----------------------------------------------------------------------------------

    def _follow(self) -> None:
        while not self._closed:
            with contextlib.suppress(DatabaseError):  # It begins anew; until then the waiters poll.
                self._follow_one()
            with self._condition:
                self._streams = False
                self._condition.notify_all()
                self._condition.wait_for(lambda: self._closed, REOPEN_PAUSE_S)

    def _follow_one(self) -> None:
        """Pass on what one cursor tells, until it breaks or nobody wants it any more."""
        watch = self._store.watch_queue if self._queue_only else self._store.watch
        asked = self._clock()
        for is_news in watch(await_s=AWAIT_S):
            with self._condition:
                self._streams = True
                if is_news:
                    self._pass_on(quiet=self._clock() - asked >= QUIET_S)
                # A host whose slots are all busy need not know.
                self._condition.wait_for(lambda: self._closed or not self._queue_only or self._waiting > 0)
                if self._closed:
                    return
            asked = self._clock()

    def _pass_on(self, *, quiet: bool) -> None:
        if quiet:
            self._in_vain = 0
        self._generation += 1
        self._condition.notify_all()
        pause_s = stream_pause_s(self._in_vain) * self._uniform(0.5, 1.5)
        self._condition.wait_for(lambda: self._closed or self._in_vain == 0, pause_s)
