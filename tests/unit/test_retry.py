"""Waiting for a MongoDB that is away: patient, bounded, and only for what may be repeated."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from typing import Any

import pytest

from hyperfarm.errors import DatabaseError, DatabaseUnavailable, LeaseLost, OutcomeUnknown
from hyperfarm.retry import FIRST_PAUSE_S, LONGEST_PAUSE_S, patiently

SLICE_S = 0.15
"""A pause may be a little longer than it should be."""


class Time:
    """A clock that only sleeping moves; it notes when calls were made."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.calls: list[float] = []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds

    def failing(self, *errors: Exception) -> Callable[[], str]:
        """A call that raises these one after the other, then works."""
        left = list(errors)

        def call() -> str:
            self.calls.append(self.now)
            if left:
                raise left.pop(0)
            return "done"

        return call

    def patiently(self, call: Callable[[], str], **options: Any) -> str:
        return patiently(call, clock=self.clock, sleep=self.sleep, **options)

    @property
    def pauses(self) -> list[float]:
        return [after - before for before, after in itertools.pairwise(self.calls)]


def away(times: int) -> list[Exception]:
    return [DatabaseUnavailable("away") if n % 2 else OutcomeUnknown("cut") for n in range(times)]


def test_it_goes_on_with_growing_pauses_until_the_call_works() -> None:
    time = Time()
    assert time.patiently(time.failing(*away(9))) == "done"
    expected = [min(FIRST_PAUSE_S * 2**n, LONGEST_PAUSE_S) for n in range(9)]
    assert len(time.pauses) == 9
    for pause, wanted in zip(time.pauses, expected, strict=True):
        assert wanted - 1e-6 <= pause <= wanted + SLICE_S


@pytest.mark.parametrize("error", [DatabaseError("refused"), LeaseLost("gone"), ValueError("bug")])
def test_other_errors_come_through_at_once(error: Exception) -> None:
    time = Time()
    with pytest.raises(type(error)) as caught:
        time.patiently(time.failing(error))
    assert caught.value is error
    assert time.calls == [1000.0]


def test_the_error_comes_through_when_patience_ends() -> None:
    time = Time()
    with pytest.raises((DatabaseUnavailable, OutcomeUnknown)):
        time.patiently(time.failing(*away(1000)), patience_s=60)
    assert 1060 <= time.now <= 1060 + LONGEST_PAUSE_S + SLICE_S


def test_the_error_comes_through_when_told_to_stop() -> None:
    time = Time()
    with pytest.raises((DatabaseUnavailable, OutcomeUnknown)):
        time.patiently(time.failing(*away(1000)), stop=lambda: time.now >= 1050)
    assert 1050 <= time.now <= 1050 + LONGEST_PAUSE_S + SLICE_S
    with pytest.raises(OutcomeUnknown):
        time.patiently(time.failing(*away(3)), stop=lambda: True)
    assert time.patiently(time.failing(), stop=lambda: True) == "done", "what works is not stopped"


def test_a_long_wait_is_told_once_and_its_end_too(caplog: pytest.LogCaptureFixture) -> None:
    time = Time()
    caplog.set_level(logging.WARNING, "hyperfarm")
    time.patiently(time.failing(*[DatabaseUnavailable("no server")] * 12))
    assert [record.getMessage() for record in caplog.records] == [
        "waiting for MongoDB (up to 600 s): no server",
        "MongoDB is back",
    ]


def test_a_short_wait_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    time = Time()
    time.patiently(time.failing(*away(3)))
    assert caplog.records == []
