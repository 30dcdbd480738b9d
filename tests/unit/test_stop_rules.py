"""When a worker stops by itself, on a clock of the test's own."""

from __future__ import annotations

import math

import pytest

from hyperfarm.jobs import JobState
from hyperfarm.worker.stop_rules import StopLimits, StopRules


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_without_limits_it_never_stops(clock: Clock) -> None:
    rules = StopRules(StopLimits(), clock)
    for _ in range(50):
        rules.ended(None)
    clock.now += 1e9
    assert rules.reached(busy=False) is None
    assert rules.full(lambda: pytest.fail("it asks for nothing")) is None


def test_failures_in_a_row(clock: Clock) -> None:
    rules = StopRules(StopLimits(max_failures=3), clock)
    for outcome in (JobState.ERROR, None, JobState.DONE, JobState.ERROR, JobState.CANCELLED):
        rules.ended(outcome)
        assert rules.reached(busy=False) is None
    rules.ended(None)
    assert "3 failures in a row" in str(rules.reached(busy=True))


def test_waiting_in_vain_is_a_failure_each_time(clock: Clock) -> None:
    rules = StopRules(StopLimits(reserve_timeout_s=10, max_failures=2), clock)
    clock.now += 10
    assert rules.reached(busy=False) is None
    assert not rules.waited_in_vain
    clock.now += 1
    assert rules.reached(busy=False) is None
    assert (rules.failures, rules.waited_in_vain) == (1, True)
    clock.now += 9
    assert rules.reached(busy=True) is None, "a job came"
    clock.now += 500
    assert rules.reached(busy=True) is None, "it takes its time"
    assert rules.failures == 1
    clock.now += 9
    rules.ended(JobState.DONE)
    assert (rules.failures, rules.waited_in_vain) == (0, False)
    for _ in range(2):
        assert rules.reached(busy=False) is None
        clock.now += 11
        reason = rules.reached(busy=False)
    assert "2 failures in a row" in str(reason)
    assert rules.waited_in_vain


def test_the_last_job_timeout_counts_from_the_start(clock: Clock) -> None:
    rules = StopRules(StopLimits(last_job_timeout_s=5), clock)
    clock.now += 5
    assert rules.reached(busy=True) is None
    clock.now += 0.1
    assert "--last-job-timeout" in str(rules.reached(busy=True))


@pytest.mark.parametrize(("there", "stops"), [(4, False), (5, True), (6, True)])
def test_a_full_database(there: int, stops: bool, clock: Clock) -> None:
    rules = StopRules(StopLimits(max_jobs_in_db=5, reserve_timeout_s=math.inf), clock)
    assert bool(rules.full(lambda: there)) == stops
