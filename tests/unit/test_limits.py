"""What a trial may take: its limits, both sides of each, and how long a slot rests after crashes."""

from __future__ import annotations

import math
from typing import Any

import bson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from hyperfarm.errors import UsageError
from hyperfarm.jobs import DEFAULT_MAX_ATTEMPTS, TrialLimits
from hyperfarm.worker.limits import MEMORY_LOOK_S, LimitExceeded, Watch, rest_s

times_s = st.floats(0, 1e9, exclude_min=True)
sizes = st.integers(1, 2**63 - 1)
some_limits = st.builds(
    TrialLimits,
    timeout_s=st.none() | times_s,
    memory=st.none() | sizes,
    max_attempts=st.integers(1, 1000),
    keep_models=st.none() | st.integers(0, 1000),
)


# ---- what a job document holds -------------------------------------------------------------------------


@given(some_limits)
def test_a_job_brings_its_limits_to_the_worker(limits: TrialLimits) -> None:
    doc = bson.decode(bson.encode({"tid": 1, **limits.fields}))
    assert TrialLimits.of(doc) == limits
    unlimited = limits.timeout_s is limits.memory is limits.keep_models is None
    assert ("limits" not in doc) is unlimited, "a job without limits looks as it did before there were any"


@pytest.mark.parametrize("doc", [{}, {"limits": None}, {"limits": {}}])
def test_a_job_of_hyperopts_has_no_limits_but_the_usual_attempts(doc: dict[str, Any]) -> None:
    assert TrialLimits.of(doc) == TrialLimits(max_attempts=DEFAULT_MAX_ATTEMPTS)
    assert DEFAULT_MAX_ATTEMPTS == 3


@pytest.mark.parametrize(
    ("name", "lowest", "refused"),
    [
        ("timeout_s", 1e-9, [0, 0.0, -1, -math.inf, math.nan]),
        ("memory", 1, [0, -1]),
        ("max_attempts", 1, [0, -1]),
        ("keep_models", 0, [-1]),
    ],
)
def test_a_limit_that_makes_no_sense_is_refused(name: str, lowest: float, refused: list[Any]) -> None:
    limits: Any = {name: lowest}
    assert getattr(TrialLimits(**limits), name) == lowest
    for value in refused:
        limits = {name: value}
        with pytest.raises(UsageError, match=f"is {value}; it must be"):
            TrialLimits(**limits)


@given(some_limits, st.none() | times_s, st.none() | sizes)
def test_the_tighter_limit_counts(limits: TrialLimits, timeout_s: float | None, memory: int | None) -> None:
    both = limits.tightened(timeout_s, memory)
    for got, one, other in (
        (both.timeout_s, limits.timeout_s, timeout_s),
        (both.memory, limits.memory, memory),
    ):
        given_ones = [value for value in (one, other) if value is not None]
        assert got == (min(given_ones) if given_ones else None)
    assert (both.max_attempts, both.keep_models) == (limits.max_attempts, limits.keep_models)
    assert both.tightened(timeout_s, memory) == both
    assert limits.tightened(None, None) == limits


# ---- rests ---------------------------------------------------------------------------------------------


def test_a_slot_rests_from_the_second_crash_in_a_row_on() -> None:
    expected = [0, 0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]
    assert [rest_s(crashes) for crashes in range(len(expected))] == expected


@given(st.integers(0, 10**30))
def test_rests_grow_and_are_bounded(crashes: int) -> None:
    assert 0 <= rest_s(crashes) <= rest_s(crashes + 1) <= 300


# ---- watching one attempt ------------------------------------------------------------------------------


class Group:
    """Processes that hold `bytes`, and count how often they were asked."""

    def __init__(self) -> None:
        self.bytes = self.asked = 0

    def resident_bytes(self, more_than: int) -> int:
        self.asked += 1
        return self.bytes if self.bytes > more_than else 0


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Attempt(RuleBasedStateMachine):
    """An attempt under a watch; times are sums of powers of two, so that boundaries are met exactly."""

    @initialize(
        timeout_s=st.none() | st.sampled_from([0.25, 1.0, 3.0]),
        memory=st.none() | st.sampled_from([1, 10**6]),
    )
    def begin(self, timeout_s: float | None, memory: int | None) -> None:
        self.timeout_s, self.memory = timeout_s, memory
        self.clock, self.group = Clock(), Group()
        self.watch = Watch(TrialLimits(timeout_s=timeout_s, memory=memory), self.clock)
        self.look_at = self.clock.now + 0.5
        self.asked = 0

    @rule(seconds=st.sampled_from([0.0, 2**-20, 0.125, 0.25, 0.5 - 2**-20, 0.5, 1.0]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule()
    def sleep_as_told(self) -> None:
        self.clock.now += self.watch.wait_s() or 0.0

    @rule(beyond=st.sampled_from([-1, 0, 1, 10**9]))
    def use_memory(self, beyond: int) -> None:
        self.group.bytes = (self.memory or 1000) + beyond

    @rule()
    def check(self) -> None:
        expected = None
        if self.timeout_s is not None and self.clock.now >= 100.0 + self.timeout_s:
            expected = "TrialTimeout"
        elif self.memory is not None and self.clock.now >= self.look_at:
            self.asked += 1
            self.look_at = self.clock.now + 0.5
            expected = "TrialMemoryExceeded" if self.group.bytes > self.memory else None
        if expected is None:
            self.watch.check(self.group)
            return
        with pytest.raises(LimitExceeded) as caught:
            self.watch.check(self.group)
        assert caught.value.kind == expected

    @invariant()
    def it_looks_at_memory_twice_a_second_and_waits_for_what_comes_first(self) -> None:
        assert self.group.asked == self.asked
        due = [] if self.timeout_s is None else [100.0 + self.timeout_s]
        due += [] if self.memory is None else [self.look_at]
        expected = max(0.0, min(due) - self.clock.now) if due else None
        assert self.watch.wait_s() == expected


TestAttempt = Attempt.TestCase
TestAttempt.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("late_s", [-(2**-20), 0.0, 2**-20])
def test_the_time_is_up_at_its_very_moment(late_s: float) -> None:
    clock, group = Clock(), Group()
    watch = Watch(TrialLimits(timeout_s=8.0), clock)
    clock.now += 8.0 + late_s
    if late_s < 0:
        watch.check(group)
        assert watch.wait_s() == -late_s
        return
    with pytest.raises(LimitExceeded, match="longer than 8 s") as caught:
        watch.check(group)
    assert caught.value.kind == "TrialTimeout"
    assert watch.wait_s() == 0.0


@pytest.mark.parametrize("beyond", [-1, 0, 1])
def test_as_much_memory_as_the_limit_is_allowed_and_no_byte_more(beyond: int) -> None:
    clock, group = Clock(), Group()
    watch = Watch(TrialLimits(memory=2_000_000), clock)
    group.bytes = 2_000_000 + beyond
    watch.check(group)
    assert group.asked == 0, "the first look is not at once"
    clock.now += MEMORY_LOOK_S
    if beyond <= 0:
        watch.check(group)
        return
    with pytest.raises(LimitExceeded, match="held 2 MB of memory, more than the 2 MB") as caught:
        watch.check(group)
    assert caught.value.kind == "TrialMemoryExceeded"


def test_a_trial_without_limits_is_never_looked_at() -> None:
    clock, group = Clock(), Group()
    watch = Watch(TrialLimits(), clock)
    group.bytes = 10**15
    clock.now += 1e9
    watch.check(group)
    assert (watch.wait_s(), group.asked) == (None, 0)
