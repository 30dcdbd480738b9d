"""Waiting for a MongoDB that is away: patient, bounded, and only for what may be repeated."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from hyperfarm.errors import DatabaseError, DatabaseUnavailable, LeaseLost, OutcomeUnknown
from hyperfarm.retry import FIRST_PAUSE_S, LONGEST_PAUSE_S, patiently


class Time:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now, self.pauses = 1000.0, []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


def failing(*errors: Exception, then: str = "done") -> Callable[[], str]:
    left = list(errors)

    def call() -> str:
        if left:
            raise left.pop(0)
        return then

    return call


def test_it_goes_on_until_the_call_works() -> None:
    time = Time()
    away = [DatabaseUnavailable("away"), OutcomeUnknown("cut")] * 4
    assert patiently(failing(*away), clock=time.clock, sleep=time.sleep) == "done"
    assert time.pauses[0] == FIRST_PAUSE_S
    assert time.pauses == sorted(time.pauses)
    assert time.pauses[-1] == LONGEST_PAUSE_S
    assert len(time.pauses) == 8


@pytest.mark.parametrize("error", [DatabaseError("refused"), LeaseLost("gone"), ValueError("bug")])
def test_other_errors_come_through_at_once(error: Exception) -> None:
    time = Time()
    with pytest.raises(type(error)) as caught:
        patiently(failing(error), clock=time.clock, sleep=time.sleep)
    assert caught.value is error
    assert time.pauses == []


def test_the_error_comes_through_when_patience_ends() -> None:
    time = Time()

    def away() -> None:
        raise DatabaseUnavailable("away")

    with pytest.raises(DatabaseUnavailable, match="away"):
        patiently(away, patience_s=60, clock=time.clock, sleep=time.sleep)
    assert 60 <= sum(time.pauses) <= 60 + LONGEST_PAUSE_S


def test_the_error_comes_through_when_told_to_stop() -> None:
    time = Time()
    away = [DatabaseUnavailable(str(number)) for number in range(10)]
    with pytest.raises(DatabaseUnavailable, match="3"):
        patiently(failing(*away), stop=lambda: len(time.pauses) == 3, clock=time.clock, sleep=time.sleep)


def test_a_long_wait_is_told_once_and_its_end_too(caplog: pytest.LogCaptureFixture) -> None:
    time = Time()
    caplog.set_level(logging.WARNING, "hyperfarm")
    away = [DatabaseUnavailable("no server")] * 12
    patiently(failing(*away), clock=time.clock, sleep=time.sleep)
    assert [record.getMessage() for record in caplog.records] == [
        "waiting for MongoDB (up to 600 s): no server",
        "MongoDB is back",
    ]


def test_a_short_wait_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    time = Time()
    patiently(failing(*[OutcomeUnknown("cut")] * 3), clock=time.clock, sleep=time.sleep)
    assert caplog.records == []
