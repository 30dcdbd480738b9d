"""What decides purely, under any order of events: transitions, back-offs, patience, and how much to queue."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from hyperfarm.controller.plan import Situation, is_complete, jobs_wanted
from hyperfarm.controller.search import Search
from hyperfarm.errors import DatabaseUnavailable, InvalidTransition, OutcomeUnknown
from hyperfarm.jobs import (
    PARKED_OWNER,
    TRANSITIONS,
    Event,
    JobState,
    after_lost_attempt,
    backoff_s,
    next_state,
)
from hyperfarm.retry import LONGEST_PAUSE_S, SLICE_S, patiently

# ---- transitions ---------------------------------------------------------------------------------------


def reachable(state: JobState) -> set[JobState]:
    found, ahead = {state}, [state]
    while ahead:
        here = ahead.pop()
        further = {after for (before, _), after in TRANSITIONS.items() if before is here} - found
        found |= further
        ahead += further
    return found


def test_every_state_and_event_has_its_place_and_every_job_can_end() -> None:
    assert reachable(JobState.NEW) == set(JobState)
    assert {event for _, event in TRANSITIONS} == set(Event)
    for state in JobState:
        ends = {after for after in reachable(state) if after.is_finished}
        assert ends == ({state} if state.is_finished else {JobState.DONE, JobState.ERROR, JobState.CANCELLED})


@given(events=st.lists(st.sampled_from(Event)), tries=st.integers(1, 5))
def test_whatever_happens_attempts_are_bounded_and_an_end_is_an_end(events: list[Event], tries: int) -> None:
    state, attempt, lost = JobState.NEW, 0, 0
    for event in events:
        if event in (Event.REQUEUE, Event.GIVE_UP) and state is JobState.RUNNING:
            event = after_lost_attempt(attempt, tries)
            lost += 1
        try:
            after = next_state(state, event)
        except InvalidTransition:
            assert (state, event) not in TRANSITIONS
            continue
        assert not state.is_finished
        attempt += {Event.CLAIM: 1, Event.RELEASE: -1}.get(event, 0)
        state = after
        assert lost <= attempt <= tries if state is JobState.RUNNING else 0 <= attempt <= tries
        assert (lost == tries) <= (state is JobState.ERROR)


@given(st.integers(1, 10**30))
def test_back_offs_never_shrink_and_have_an_end(attempt: int) -> None:
    assert backoff_s(1) == 2.0
    assert 2.0 <= backoff_s(attempt) <= backoff_s(attempt + 1) <= 120.0
    assert backoff_s(attempt + 1) <= 4 * backoff_s(attempt)


# ---- patience ------------------------------------------------------------------------------------------


class Time:
    """A clock that sleeping and slow calls move; it notes when each call began and ended."""

    def __init__(self, takes_s: list[float]) -> None:
        self.now = 0.0
        self.takes_s = takes_s
        self.calls: list[tuple[float, float]] = []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def call(self) -> int:
        """Fail as often as there are durations, then work."""
        began, number = self.now, len(self.calls)
        self.now += self.takes_s[number] if number < len(self.takes_s) else 0.0
        self.calls.append((began, self.now))
        if number < len(self.takes_s):
            raise (DatabaseUnavailable if number % 2 else OutcomeUnknown)(f"failure {number}")
        return number

    def patiently(self, patience_s: float, stop: Callable[[], bool] = lambda: False) -> int | None:
        """The number of the call that worked; None when the error came through."""
        try:
            return patiently(self.call, patience_s=patience_s, stop=stop, clock=self.clock, sleep=self.sleep)
        except (DatabaseUnavailable, OutcomeUnknown) as error:
            self.told = str(error)
            return None


@settings(max_examples=150, deadline=None)
@given(
    takes_s=st.lists(st.sampled_from([0.0, 0.5, 1.0, 4.0, 45.0]), max_size=25),
    patience_s=st.sampled_from([0.0, 0.5, 1.0, 4.0, 30.0, 90.0, 600.0]),
    stopped_s=st.sampled_from([0.0, 0.5, 3.0, 20.0, 1e9]),
)
def test_it_gives_up_at_the_first_failure_after_its_time_and_not_before(
    takes_s: list[float], patience_s: float, stopped_s: float
) -> None:
    time = Time(takes_s)
    worked = time.patiently(patience_s, lambda: time.now >= stopped_s)
    ends = [end for _, end in time.calls]
    over = [end >= patience_s or end >= stopped_s for end in ends]
    if worked is None:
        assert time.told == f"failure {len(ends) - 1}", "the last error comes through"
        assert over == [False] * (len(ends) - 1) + [True]
    else:
        assert worked == len(takes_s) == len(ends) - 1
        assert not any(over[:-1])
    pause = 0.1
    for (_, end), (began, _) in itertools.pairwise(time.calls):
        shortest = min(pause, max(stopped_s - end, 0.0))
        assert shortest - 1e-6 <= began - end <= shortest + SLICE_S + 1e-6
        pause = min(2 * pause, LONGEST_PAUSE_S)


@pytest.mark.parametrize(("takes_s", "calls"), [(8.0, 1), (8.0 - 2**-20, 2), (8.0 + 2**-20, 1)])
def test_patience_ends_at_its_very_moment(takes_s: float, calls: int) -> None:
    time = Time([takes_s])
    assert time.patiently(8.0) == (None if calls == 1 else 1)
    assert len(time.calls) == calls


def test_a_stop_cuts_a_long_pause_short() -> None:
    time = Time([0.0] * 100)
    assert time.patiently(600.0, lambda: time.now >= 30.0) is None
    assert 30.0 <= time.now <= 30.0 + 2 * SLICE_S


# ---- how much to queue ---------------------------------------------------------------------------------


class Planned(RuleBasedStateMachine):
    """A search that queues what the plan wants, while workers come, claim, end, crash, and users cancel."""

    @initialize(budget=st.integers(1, 40), slots=st.integers(0, 6))
    def begin(self, budget: int, slots: int) -> None:
        self.budget, self.slots, self.elsewhere = budget, slots, 0
        self.queued = self.parked = self.running = self.finished = 0
        self.rate = 0.0

    def situation(self) -> Situation:
        return Situation(
            budget=self.budget,
            taken=self.queued + self.parked + self.running + self.finished,
            finished=self.finished,
            queued=self.queued,
            parked=self.parked,
            running=self.running,
            live_slots=self.slots,
            busy_elsewhere=self.elsewhere,
            rate=self.rate,
            reaction_s=0.5,
        )

    @rule()
    def plan(self) -> None:
        before = self.situation()
        self.queued += jobs_wanted(before)
        free = max(0, self.slots - self.elsewhere - self.running)
        left = self.budget - before.taken
        assert self.queued >= min(free, before.queued + left), "a slot waits though the budget has room"
        assert jobs_wanted(self.situation()) == 0, "planned twice in a row"

    @rule(slots=st.integers(0, 6), elsewhere=st.integers(0, 3), rate=st.sampled_from([0.0, 0.05, 0.2, 5.0]))
    def hosts_come_and_go(self, slots: int, elsewhere: int, rate: float) -> None:
        self.slots, self.elsewhere, self.rate = slots, min(elsewhere, slots), rate

    @rule(parked=st.booleans())
    def claim(self, parked: bool) -> None:
        if parked and self.parked:
            self.parked, self.running = self.parked - 1, self.running + 1
        elif self.queued:
            self.queued, self.running = self.queued - 1, self.running + 1

    @rule(how=st.sampled_from(["finished", "finished", "parked", "queued"]))
    def end(self, how: str) -> None:
        """An attempt ends with a result, is cut off, or is released."""
        if self.running:
            self.running -= 1
            setattr(self, how, getattr(self, how) + 1)

    @rule()
    def cancel_one(self) -> None:
        self.queued = max(0, self.queued - 1)

    @invariant()
    def the_budget_holds(self) -> None:
        if hasattr(self, "budget"):
            assert self.situation().taken <= self.budget

    def teardown(self) -> None:
        """Whatever has happened, the search comes to its end, with exactly its budget."""
        if not hasattr(self, "budget"):
            return
        for _ in range(4 * self.budget + 4):
            self.plan()
            for rush in (self.queued, self.parked):
                self.running += rush
            self.queued = self.parked = 0
            self.finished, self.running = self.finished + self.running, 0
        assert is_complete(self.situation())
        assert self.finished == self.budget


TestPlanned = Planned.TestCase
TestPlanned.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)


@given(
    budget=st.integers(1, 50),
    counts=st.tuples(*[st.integers(0, 12)] * 4),
    hosts=st.tuples(st.integers(0, 20), st.integers(0, 20)),
    rate=st.floats(0, 100),
)
def test_jobs_that_wait_out_a_back_off_take_the_budget_but_no_place_in_the_queue(
    budget: int, counts: tuple[int, ...], hosts: tuple[int, int], rate: float
) -> None:
    queued, parked, running, finished = counts
    fixed: dict[str, Any] = {"budget": budget, "queued": queued, "running": running, "rate": rate}
    fixed |= {"live_slots": hosts[0], "busy_elsewhere": hosts[1], "reaction_s": 0.1}
    taken = sum(counts)
    wanted = jobs_wanted(Situation(**fixed, parked=parked, finished=finished, taken=taken))
    as_if_finished = Situation(**fixed, parked=0, finished=finished + parked, taken=taken)
    assert wanted == jobs_wanted(as_if_finished)
    assert 0 <= wanted <= max(0, budget - taken)


def test_the_search_tells_parked_jobs_from_queued_ones() -> None:
    new, running = int(JobState.NEW), int(JobState.RUNNING)
    rows: list[tuple[int, str | None]] = [(new, None)] * 3 + [(new, PARKED_OWNER)] * 2 + [(running, "h:1")]
    jobs = [{"state": state, "owner": owner, "slot": slot} for slot, (state, owner) in enumerate(rows)]
    foreign = {"state": new, "owner": None}
    local = SimpleNamespace(
        unfinished=lambda: [*jobs, foreign], slots=lambda: {slot: {0} for slot in range(10)}
    )
    search: Any = SimpleNamespace(trials=SimpleNamespace(local=local), budget=10, _busy_elsewhere=0)
    search._workers, search._rate, search._reaction_s = [{"slots": 4, "paused": [{}]}], lambda _: 0.0, 0.1
    now = Search._situation(search)
    assert (now.queued, now.parked, now.running, now.finished, now.taken) == (3, 2, 1, 4, 10)
    assert now.live_slots == 3, "a slot that rests takes no job"
