"""News of the queue: passed on at once while it is worth it, asked for less and less while it is in vain."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from hyperfarm.errors import DatabaseError
from hyperfarm.wakeup import (
    FREE_WAKES,
    LONGEST_PAUSE_S,
    MOST_POLLS,
    Wakeup,
    poll_pause_s,
    stream_pause_s,
)
from tests.support import eventually


class FakeStore:
    """A store that tells what the test puts in: True for news, False for none in time, an error to break."""

    def __init__(self, streams: bool) -> None:
        self.has_change_streams = streams
        self.news: queue.Queue[Exception | bool] = queue.Queue()
        self.asked: list[str] = []

    def watch(self, **_: Any) -> Iterator[bool]:
        self.asked.append("jobs")
        yield from self._tell()

    def watch_queue(self, **_: Any) -> Iterator[bool]:
        self.asked.append("queue")
        yield from self._tell()

    def _tell(self) -> Iterator[bool]:
        yield True
        while True:
            said = self.news.get()
            if isinstance(said, Exception):
                raise said
            yield said


def made(
    streams: bool = True, *, queue_only: bool = True, poll_s: float = 3600.0
) -> tuple[Wakeup, FakeStore]:
    store = FakeStore(streams)
    return Wakeup(store, queue_only=queue_only, poll_s=poll_s, uniform=lambda low, high: 1.0), store  # type: ignore[arg-type]


class Waiter(threading.Thread):
    """Waits again and again, as an idle slot does, and counts how often it was woken."""

    def __init__(self, wakeup: Wakeup, *, finds: bool = False) -> None:
        super().__init__(daemon=True)
        self.wakeup, self.finds, self.woken, self.left = wakeup, finds, 0, threading.Event()
        self.seen = -1
        self.start()

    def run(self) -> None:
        while not self.left.is_set():
            self.seen = self.wakeup.generation
            self.wakeup.wait(self.seen, 3600)
            self.woken += 1
            if self.finds:
                self.wakeup.found()

    def leave(self) -> None:
        self.left.set()
        self.wakeup.close()
        self.join(10)
        assert not self.is_alive()


def test_workers_wait_for_a_ring_and_controllers_for_changed_jobs() -> None:
    for streams, queue_only, asked in (
        (True, True, ["queue"]),
        (False, True, ["queue"]),
        (True, False, ["jobs"]),
        (False, False, []),
    ):
        wakeup, store = made(streams, queue_only=queue_only)
        eventually(lambda store=store, asked=asked: store.asked == asked, "asked", 10)
        wakeup.close()
        store.news.put(True)


def test_while_nobody_waits_no_news_are_taken() -> None:
    wakeup, store = made()
    for _ in range(5):
        store.news.put(True)
    before = wakeup.generation
    waiter = Waiter(wakeup, finds=True)
    eventually(store.news.empty, "taken when somebody waits", 10)
    assert before <= 1
    waiter.leave()
    store.news.put(True)


def test_no_news_in_time_wake_nobody() -> None:
    wakeup, store = made(queue_only=False)
    eventually(lambda: wakeup.generation == 1, "it stands", 10)
    store.news.put(False)
    store.news.put(True)
    eventually(store.news.empty, "taken", 10)
    eventually(lambda: wakeup.generation == 2, "one piece of news", 10)
    wakeup.close()
    store.news.put(True)


def test_news_wake_whoever_waits() -> None:
    wakeup, store = made()
    waiter = Waiter(wakeup, finds=True)
    for count in range(1, 12):  # The first is that the stream stands.
        eventually(lambda count=count: waiter.seen == count, "somebody looks after the news", 10)
        store.news.put(True)
    waiter.leave()
    store.news.put(True)


def test_news_before_the_wait_are_not_slept_over() -> None:
    wakeup, _ = made(streams=False, queue_only=False)
    seen = wakeup.generation
    wakeup.notify()
    wakeup.wait(seen, 3600)


def test_what_breaks_is_begun_anew() -> None:
    wakeup, store = made()
    waiter = Waiter(wakeup)
    eventually(lambda: len(store.asked) == 1, "it stands", 10)
    store.news.put(DatabaseError("the primary stepped down"))
    eventually(lambda: len(store.asked) == 2, "asked again", 10)
    waiter.leave()
    store.news.put(True)


def test_where_nothing_tells_the_waiter_polls() -> None:
    wakeup, _ = made(streams=False, queue_only=False, poll_s=0.01)
    waiter = Waiter(wakeup)
    eventually(lambda: waiter.woken > 5, "looks without news", 10)
    waiter.leave()


def test_close_lets_everybody_go() -> None:
    wakeup, _ = made(streams=False)
    waiters = [Waiter(wakeup) for _ in range(3)]
    for waiter in waiters:
        waiter.left.set()
    wakeup.close()
    for waiter in waiters:
        waiter.leave()


@pytest.mark.parametrize(("in_vain", "seconds"), [(0, 1.0), (1, 1.25), (2, 1.5625), (50, 5.0), (10**6, 5.0)])
def test_the_pause_between_polls_grows_to_a_limit(in_vain: int, seconds: float) -> None:
    assert poll_pause_s(1.0, in_vain) == pytest.approx(seconds)
    assert poll_pause_s(1.0, in_vain) <= MOST_POLLS


def test_news_wait_only_after_some_were_in_vain_and_never_long() -> None:
    assert [stream_pause_s(count) for count in range(FREE_WAKES + 1)] == [0.0] * (FREE_WAKES + 1)
    pauses = [stream_pause_s(count) for count in range(FREE_WAKES + 1, FREE_WAKES + 12)]
    assert pauses[:3] == [0.05, 0.1, 0.2]
    assert pauses == sorted(pauses)
    assert pauses[-1] == stream_pause_s(10**6) == LONGEST_PAUSE_S


def test_looks_in_vain_make_the_next_news_wait_and_a_find_ends_that() -> None:
    wakeup, _ = made(streams=False)
    for _ in range(FREE_WAKES + 3):
        seen = wakeup.generation
        wakeup.notify()
        wakeup.wait(seen, 3600)
    assert stream_pause_s(wakeup._in_vain) > 0
    wakeup.found()
    assert wakeup._in_vain == 0
