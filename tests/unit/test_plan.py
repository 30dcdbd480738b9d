"""How many suggestions to ask for: enough that no slot waits, never more than the budget holds."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hyperfarm.controller.plan import Situation, is_complete, jobs_wanted

counts = st.integers(0, 300)
QUIET = Situation(
    budget=100,
    taken=0,
    finished=0,
    queued=0,
    parked=0,
    running=0,
    live_slots=4,
    busy_elsewhere=0,
    rate=0.0,
    reaction_s=0.02,
)


@st.composite
def situations(draw: st.DrawFn) -> Situation:
    """Any situation that can arise: also foreign workers, a shrunken budget, busy hosts."""
    queued, running, finished = draw(counts), draw(counts), draw(counts)
    return Situation(
        budget=draw(st.integers(1, 1000) | st.just(2**63 - 1)),
        taken=queued + running + finished,
        finished=finished,
        queued=queued,
        parked=0,
        running=running,
        live_slots=draw(counts),
        busy_elsewhere=draw(counts),
        rate=draw(st.floats(0, 1e4)),
        reaction_s=draw(st.floats(0, 10)),
    )


@given(situations())
def test_never_over_the_budget_and_never_negative(now: Situation) -> None:
    wanted = jobs_wanted(now)
    assert isinstance(wanted, int)
    assert wanted >= 0
    assert wanted == 0 or now.taken + wanted <= now.budget


@given(situations())
def test_every_free_slot_gets_a_job_while_the_budget_lasts(now: Situation) -> None:
    free = max(0, now.live_slots - now.busy_elsewhere - now.running)
    assert jobs_wanted(now) >= min(free - now.queued, now.budget - now.taken)


@given(situations())
def test_a_slow_search_queues_no_more_than_slots_are_free(now: Situation) -> None:
    slow = dataclasses.replace(now, rate=0.0)
    free = max(0, now.live_slots - now.busy_elsewhere - now.running)
    assert jobs_wanted(slow) <= max(free - now.queued, 1)
    assert now.queued < max(free, 1) or jobs_wanted(slow) == 0


@given(situations())
def test_one_job_waits_for_takers_that_are_not_seen(now: Situation) -> None:
    capacity = max(0, now.live_slots - now.busy_elsewhere)
    assume(now.live_slots == 0 or now.busy_elsewhere > 0 or now.running > capacity)
    assume(now.taken < now.budget)
    assert now.queued + jobs_wanted(now) >= 1


@given(situations())
def test_the_queue_ahead_is_bounded(now: Situation) -> None:
    capacity = max(0, now.live_slots - now.busy_elsewhere)
    assert jobs_wanted(now) <= capacity + 2 * max(capacity, 1) + 64


@given(situations(), st.integers(1, 50))
def test_no_more_than_asked_for_are_queued_or_run(now: Situation, limit: int) -> None:
    wanted = jobs_wanted(now, limit)
    assert wanted == 0 or now.queued + now.parked + now.running + wanted <= limit
    assert wanted == min(jobs_wanted(now), max(0, limit - now.queued - now.parked - now.running))


def test_a_job_that_waits_out_a_back_off_takes_a_place_of_those_that_may_run() -> None:
    now = dataclasses.replace(QUIET, parked=1, running=1, taken=2)
    assert jobs_wanted(now, 3) == 1
    assert jobs_wanted(now, 2) == 0


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, 4),
        ({"running": 4, "taken": 4}, 0),
        ({"running": 3, "taken": 3}, 1),
        ({"running": 3, "queued": 1, "taken": 4}, 0),
        ({"taken": 98, "finished": 98}, 2),
        ({"taken": 100, "finished": 99, "running": 1}, 0),
        ({"taken": 120, "finished": 120}, 0),
        ({"live_slots": 0}, 1),
        ({"live_slots": 0, "queued": 1, "taken": 1}, 0),
        ({"busy_elsewhere": 4}, 1),
        ({"busy_elsewhere": 3}, 1),
        ({"busy_elsewhere": 1}, 3),
        ({"running": 6, "taken": 6}, 1),
        # 100 trials a second, of which 2 end during one reaction: 4 in advance.
        ({"running": 4, "taken": 4, "rate": 100.0}, 4),
        ({"running": 4, "queued": 4, "taken": 8, "rate": 100.0}, 0),
        ({"running": 4, "taken": 4, "rate": 2.0}, 0),
        ({"running": 4, "taken": 4, "rate": 2.5}, 1),
    ],
)
def test_how_many_jobs_a_situation_wants(changes: dict, wanted: int) -> None:
    assert jobs_wanted(dataclasses.replace(QUIET, **changes)) == wanted


def test_a_search_is_complete_when_every_slot_has_ended() -> None:
    assert not is_complete(dataclasses.replace(QUIET, taken=100, finished=99))
    assert is_complete(dataclasses.replace(QUIET, taken=100, finished=100))
    assert is_complete(dataclasses.replace(QUIET, taken=120, finished=110))
