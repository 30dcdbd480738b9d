"""Being woken when the database has news, without asking it over and over.

On a replica set one change stream does it; on a standalone server, and while no stream stands, the waiters of
a process look by turns, less and less often while nothing is found. News is only ever a hint to look:
correctness never depends on it.

What that costs the server (measured, 6.0): an open stream costs 60 microseconds for every write of anybody to
that server, whether it is news or not; to open one costs 1 ms; every look a command. So a worker with nothing
to claim for holds no stream, and one whom the news keep waking for nothing (the jobs are another's, or 200
others were faster) hears of them later and later, and in the end leaves the stream for a while and polls.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable

from hyperfarm.errors import DatabaseError
from hyperfarm.store import Store

Uniform = Callable[[float, float], float]

AWAIT_S = 30.0
REOPEN_PAUSE_S = 2.0
LOOK_S = 0.5
"""Who has not come back from a look by then has found something."""
POLL_GROWTH, MOST_POLLS = 1.25, 5.0
"""By what the pause between polls grows after each that found nothing, and to how many times the first."""
FREE_WAKES, FIRST_PAUSE_S = 3, 0.05
"""So many wakes for nothing are borne before the next news have to wait, and for how long at first."""
MOST_WAKES, LEAVE_S = 8, 10.0
"""After so many wakes for nothing (the last ones 0.8 s apart) a worker does without the stream for a while."""
WORTH = 4
QUIET_S = 2.0
"""After so long without news the next are passed on at once again."""
UNUSED_S = 5.0
"""A stream is closed when nobody has been waiting for so long."""
SAME_BATCH_S = 30e-6
"""News that come quicker than any round trip lay in the answer that brought the ones before."""


class Looks:
    """What came of the looks at the database: each begins with `begin` and ends with `end` if it found nothing.

    Who begins another look without having ended the last one, or stays away for LOOK_S, has found something.
    """

    def __init__(self) -> None:
        self.found = False
        self._since: dict[int, float] = {}
        self._away: set[int] = set()

    def begin(self, who: int, now: float) -> bool:
        """Begin a look; True when the one before it has found something."""
        found = who in self._since or who in self._away
        self._away.discard(who)
        self._since[who] = now
        self.found |= found
        return found

    def end(self, who: int) -> None:
        self._since.pop(who, None)
        self._away.discard(who)

    def verdict(self, now: float) -> bool | None:
        """Whether anything was found since the last verdict; None while somebody is still looking."""
        away = {who for who, since in self._since.items() if now - since >= LOOK_S}
        for who in away:
            del self._since[who]
        self._away |= away
        found, self.found = self.found or bool(away), False
        return None if self._since and not found else found


class Pace:
    """How long news have to wait, by how often they came to nothing.

    As a find makes up for WORTH wakes for nothing, about that many of any number of competing hosts answer at
    once, and the others less and less.
    """

    def __init__(self, uniform: Uniform = random.uniform) -> None:
        self._uniform = uniform
        self._in_vain = 0

    def news(self, found: bool | None, waited_s: float) -> None:
        """Take note of news that came after `waited_s` seconds, and of what the last ones had led to."""
        if waited_s >= QUIET_S:
            self._in_vain = 0
        elif found is not None:
            self._in_vain = max(0, self._in_vain - WORTH) if found else min(self._in_vain + 1, MOST_WAKES)

    @property
    def pause_s(self) -> float:
        """How long to leave the stream alone now."""
        if self._in_vain < FREE_WAKES:
            return 0.0
        return FIRST_PAUSE_S * 2.0 ** (self._in_vain - FREE_WAKES) * self._uniform(0.5, 1.5)

    @property
    def hopeless(self) -> bool:
        """True when it is better to close the stream and to poll for a while."""
        return self._in_vain == MOST_WAKES


class Polls:
    """Whose turn it is to look at the database when nothing else tells of news.

    One waiter at a time is sent, its scout. If the scout stays away it has found something, and all may look.
    """

    def __init__(self, first_s: float, longest_s: float, uniform: Uniform = random.uniform) -> None:
        self._first_s, self._longest_s, self._uniform = first_s, longest_s, uniform
        self._pause_s = first_s
        self._due: float | None = None
        self._scout: int | None = None

    def came(self, who: int, now: float) -> None:
        """Somebody begins to wait; the scout's coming back means that it found nothing."""
        if who == self._scout:
            self._scout, self._due = None, None
            self._pause_s = min(self._pause_s * POLL_GROWTH, self._longest_s)
        if self._due is None or (self._due <= now and self._scout is None):
            self._due = self._in(self._pause_s, now)

    def restart(self, now: float) -> None:
        """Work was found, or there is no stream any more: begin with short pauses."""
        self._pause_s, self._scout, self._due = self._first_s, None, self._in(self._first_s, now)

    def due(self, now: float) -> float:
        """When the next turn comes."""
        return now if self._due is None else self._due

    def turn(self, who: int, now: float) -> bool:
        """Say, when it is due, whether `who` alone goes as the scout, else everybody."""
        if self._scout is not None and self._scout != who:
            self.restart(now)
            return False
        self._scout, self._due = who, now + LOOK_S
        return True

    def _in(self, seconds: float, now: float) -> float:
        return now + seconds * self._uniform(0.75, 1.25)


class Wakeup:
    """Counts news. Read `generation`, look at the database, then `wait` for a later generation.

    With `queue_only` for workers, who are to leave the stream when it is of no use to them: to wait after a
    look is taken to say that the look found nothing.
    """

    def __init__(
        self, store: Store, *, queue_only: bool, poll_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store, self._queue_only, self._clock = store, queue_only, clock
        lock = threading.Lock()
        self._news, self._wish = threading.Condition(lock), threading.Condition(lock)
        self._generation = 0
        self._closed = self._streams = False
        self._waiting: set[int] = set()
        self._looks, self._pace = Looks(), Pace()
        self._polls = Polls(poll_s, poll_s * MOST_POLLS if queue_only else poll_s)
        if store.has_change_streams:
            threading.Thread(target=self._follow, daemon=True, name="change stream").start()

    @property
    def generation(self) -> int:
        """What to give to `wait`; reading it begins a look."""
        with self._news:
            now = self._clock()
            if self._looks.begin(threading.get_ident(), now):
                self._polls.restart(now)
                self._wish.notify_all()
            return self._generation

    def notify(self) -> None:
        """Wake everybody, as if there were news."""
        with self._news:
            self._tell()

    def wait(self, seen: int, timeout_s: float) -> None:
        """Return when the generation is not `seen` any more, after `timeout_s`, or when it is time to poll."""
        me = threading.get_ident()
        with self._news:
            now = self._clock()
            deadline = now + timeout_s
            self._looks.end(me)
            self._polls.came(me, now)
            while self._generation == seen and not self._closed:
                now = self._clock()
                if now >= deadline:
                    break
                until = deadline
                if not self._streams:
                    due = self._polls.due(now)
                    if due <= now:
                        if self._polls.turn(me, now):
                            break
                        self._tell()
                        continue
                    until = min(until, due)
                if me not in self._waiting:
                    self._waiting.add(me)
                    self._wish.notify_all()
                self._news.wait(until - now)
            self._waiting.discard(me)

    def close(self) -> None:
        """Let every waiter go, now and from now on."""
        with self._news:
            self._closed = True
            self._news.notify_all()
            self._wish.notify_all()

    def _tell(self) -> None:
        self._generation += 1
        self._waiting.clear()
        self._news.notify_all()

    def _follow(self) -> None:
        """Have a stream whenever it is of use, until closed."""
        while not self._closed:
            pause_s = REOPEN_PAUSE_S
            with contextlib.suppress(DatabaseError):  # Until it is opened anew the waiters poll.
                pause_s = self._follow_one()
            with self._news:
                self._streams = False
                self._polls.restart(self._clock())
                self._news.notify_all()
                self._wish.wait_for(lambda: self._closed or self._looks.found, pause_s)
                self._wish.wait_for(lambda: self._closed or not self._queue_only or self._waiting)

    def _follow_one(self) -> float:
        """Pass on what one stream tells; return for how long to do without when it is of no use just now."""
        asked = self._clock()
        for _ in self._store.watch(queue_only=self._queue_only, await_s=AWAIT_S):
            with self._news:
                stood, self._streams = self._streams, True
                waited_s = self._clock() - asked
                if not (self._queue_only and stood):
                    self._tell()
                elif waited_s > SAME_BATCH_S:
                    self._pace.news(self._looks.verdict(self._clock()), waited_s)
                    self._tell()
                    if self._pace.hopeless:
                        return LEAVE_S * random.uniform(0.75, 1.25)
                    self._wish.wait_for(lambda: self._closed or self._looks.found, self._pace.pause_s)
                    wanted = self._wish.wait_for(lambda: self._closed or self._waiting, UNUSED_S)
                    if not wanted:
                        return 0.0
                if self._closed:
                    return 0.0
            asked = self._clock()
        return REOPEN_PAUSE_S
