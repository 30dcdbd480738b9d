"""The life of a job: the table of transitions, and what follows a lost attempt."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hyperfarm.errors import InvalidTransition
from hyperfarm.jobs import (
    DEFAULT_MAX_ATTEMPTS,
    TRANSITIONS,
    Claim,
    Event,
    JobState,
    Lease,
    after_lost_attempt,
    is_failed,
    is_ok,
    next_state,
)

LEGAL = {
    ("new", "claim"): "running",
    ("new", "cancel"): "cancelled",
    ("running", "finish"): "done",
    ("running", "fail"): "error",
    ("running", "release"): "new",
    ("running", "requeue"): "new",
    ("running", "give up"): "error",
    ("running", "cancel"): "cancelled",
}


def test_the_first_states_are_hyperopts() -> None:
    from hyperopt import base

    numbers = (base.JOB_STATE_NEW, base.JOB_STATE_RUNNING, base.JOB_STATE_DONE, base.JOB_STATE_ERROR)
    assert numbers == (JobState.NEW, JobState.RUNNING, JobState.DONE, JobState.ERROR)
    assert [state for state in JobState if state.is_finished] == [2, 3, 4]


@pytest.mark.parametrize(("state", "event"), list(itertools.product(JobState, Event)))
def test_every_step_is_in_the_table_or_refused(state: JobState, event: Event) -> None:
    expected = LEGAL.get((state.label, event.value))
    if expected is not None:
        assert next_state(state, event).label == expected
        return
    history = [{"attempt": 1, "worker": "host7", "reason": "its process was killed by SIGSEGV"}]
    with pytest.raises(InvalidTransition) as caught:
        next_state(state, event, history)
    told = str(caught.value)
    assert f"a job that is {state.label} cannot {event.value}" in told
    assert "host7" in told
    assert "SIGSEGV" in told
    with pytest.raises(InvalidTransition, match="its history: none"):
        next_state(state, event)


def test_nothing_leaves_a_finished_state() -> None:
    assert not [state for state, _ in TRANSITIONS if state.is_finished]


@given(attempt=st.integers(1, 20), allowed=st.integers(1, 20))
def test_an_attempt_is_repeated_while_attempts_remain(attempt: int, allowed: int) -> None:
    expected = Event.REQUEUE if attempt < allowed else Event.GIVE_UP
    assert after_lost_attempt(attempt, allowed) is expected


def test_the_boundary_of_the_default() -> None:
    events = [after_lost_attempt(attempt, DEFAULT_MAX_ATTEMPTS) for attempt in (1, 2, 3, 4)]
    assert events == [Event.REQUEUE, Event.REQUEUE, Event.GIVE_UP, Event.GIVE_UP]


class LifeOfAJob(RuleBasedStateMachine):
    """A job under any order of events, as the store applies them: the bounds hold in every life."""

    def __init__(self) -> None:
        super().__init__()
        self.state, self.attempt, self.lost = JobState.NEW, 0, 0

    @rule(event=st.sampled_from(Event))
    def send(self, event: Event) -> None:
        if event in (Event.REQUEUE, Event.GIVE_UP) and self.state is JobState.RUNNING:
            event = after_lost_attempt(self.attempt, DEFAULT_MAX_ATTEMPTS)
            self.lost += 1
        try:
            after = next_state(self.state, event)
        except InvalidTransition:
            assert (self.state.label, event.value) not in LEGAL
            return
        if event is Event.CLAIM:
            self.attempt += 1
        elif event is Event.RELEASE:
            self.attempt -= 1
        self.state = after

    @precondition(lambda self: self.state is JobState.NEW)
    @rule()
    def claim(self) -> None:
        self.send(Event.CLAIM)

    @precondition(lambda self: self.state is JobState.RUNNING)
    @rule()
    def lose(self) -> None:
        self.send(Event.REQUEUE)

    @invariant()
    def attempts_are_bounded(self) -> None:
        assert 0 <= self.attempt <= DEFAULT_MAX_ATTEMPTS
        assert self.lost <= DEFAULT_MAX_ATTEMPTS
        if self.lost == DEFAULT_MAX_ATTEMPTS:
            assert self.state is JobState.ERROR


TestLifeOfAJob = LifeOfAJob.TestCase


@pytest.mark.parametrize(
    ("state", "status", "ok", "failed"),
    [
        (2, "ok", True, False),
        (2, "fail", False, True),
        (3, "ok", False, True),
        (3, "fail", False, True),
        (4, "ok", False, False),
        (1, "ok", False, False),
        (0, "new", False, False),
    ],
)
def test_what_counts_as_a_success_and_as_a_failure(state: int, status: str, ok: bool, failed: bool) -> None:
    doc = {"state": state, "result": {"status": status}}
    assert is_ok(doc) is ok
    assert is_failed(doc) is failed


def test_a_claim_of_a_foreign_job_has_defaults() -> None:
    claim = Claim(doc={"_id": 1, "tid": 7, "exp_key": None}, lease=Lease(token="t", worker="w"))
    assert (claim.job_id, claim.tid, claim.exp_key) == (1, 7, None)
    assert (claim.attempt, claim.max_attempts) == (1, DEFAULT_MAX_ATTEMPTS)
