"""The grid has every combination once, in a fixed order, however large it is."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from hyperopt import hp
from hyperopt.base import Domain, Trials
from hypothesis import given, settings

from hyperfarm.controller.compiling import compile_space
from hyperfarm.controller.grid import Grid, GridSearch
from hyperfarm.controller.history import History
from hyperfarm.controller.points import doc_of_point
from hyperfarm.errors import UsageError
from hyperfarm.jobs import JobState
from tests.finite_spaces import Point, spaces


def points_of(grid: Grid) -> list[Point]:
    return [grid.space.point(grid.row(index)) for index in range(grid.size)]


@settings(max_examples=60, deadline=None)
@given(spaces())
def test_the_grid_has_the_points_of_a_recursion_each_once(made: tuple[list[Any], list[Point]]) -> None:
    space, points = made
    grid = Grid(compile_space(space))
    wanted = {frozenset(point.items()) for point in points}
    found = [frozenset(point.items()) for point in points_of(grid)]
    assert grid.size == len(wanted) == len(found)
    assert set(found) == wanted
    for index in range(0, grid.size, 1 + grid.size // 200):
        assert grid.index(grid.row(index)) == index


def test_the_first_parameter_changes_slowest() -> None:
    grid = Grid(compile_space([hp.randint("a", 2), hp.quniform("b", 0, 2, 1)]))
    assert points_of(grid) == [{"a": a, "b": b} for a in (0, 1) for b in (0.0, 1.0, 2.0)]
    assert all(isinstance(point["a"], int) and isinstance(point["b"], float) for point in points_of(grid))


@pytest.mark.parametrize(
    ("node", "count", "values"),
    [
        (hp.uniform("x", -1, 3), 5, [-1, 0, 1, 2, 3]),
        (hp.uniform("x", -1, 3), 1, [1]),
        (hp.loguniform("x", 0, math.log(100)), 3, [1, 10, 100]),
        (hp.normal("x", 5, 2), 4, [5 + 2 * NormalDist().inv_cdf(p) for p in (0.125, 0.375, 0.625, 0.875)]),
        (hp.lognormal("x", 1, 2), 1, [math.e]),
        (hp.qnormal("x", 0, 1, 1), 9, [-2, -1, 0, 1, 2]),
        (hp.quniform("x", 0, 4, 2), 99, [0, 2, 4]),
    ],
)
def test_continuous_parameters_are_spread_over_their_prior(
    node: Any, count: int, values: list[float]
) -> None:
    grid = Grid(compile_space([node]), count)
    assert [point["x"] for point in points_of(grid)] == pytest.approx(values)
    assert [grid.index(grid.row(index)) for index in range(grid.size)] == list(range(grid.size))


def test_without_a_number_of_points_the_continuous_ones_are_named() -> None:
    space = compile_space([hp.uniform("lr", 0, 1), hp.randint("n", 3), hp.qnormal("mu", 0, 1, 1)])
    with pytest.raises(UsageError, match="lr, mu are continuous; say --grid-points N"):
        Grid(space)
    assert History(space).grid is None
    with pytest.raises(UsageError, match="it must be 1 or more"):
        Grid(space, 0)


def test_a_huge_grid_costs_nothing() -> None:
    grid = Grid(compile_space([hp.quniform(f"x{number}", 1, 1000, 1) for number in range(600)]))
    assert grid.size == 1000**600
    assert set(grid.row(grid.size - 1)) == {1000.0}
    assert grid.index(grid.row(123456789)) == 123456789
    # Were each choice remembered up to the last parameter, there would be 2 ** 40 ways.
    shared = hp.uniform("shared", 0, 1)
    many = [hp.choice(f"c{number}", [shared, 1]) for number in range(40)]
    assert Grid(compile_space(many), 3).size == 3 * (2**40 - 1) + 1
    with pytest.raises(IndexError):
        grid.row(grid.size)


SPACE = {"a": hp.randint("a", 3), "b": hp.choice("b", [0, hp.quniform("c", 1, 3, 1)])}


def searched(domain: Domain, trials: Trials, tid: int, count: int = 1) -> list[Any]:
    return GridSearch()(list(range(tid, tid + count)), domain, trials, 7)


def put(trials: Trials, docs: list[Any]) -> None:
    trials.insert_trial_docs(docs)
    trials.refresh()


@pytest.fixture
def domain() -> Domain:
    return Domain(lambda point: 0.0, SPACE)


def point(doc: Any) -> Point:
    return {label: values[0] for label, values in doc["misc"]["vals"].items() if values}


def test_each_point_is_suggested_once_whatever_becomes_of_its_trial(domain: Domain) -> None:
    trials, grid = Trials(), Grid(compile_space(SPACE))
    for tid in range(grid.size):
        docs = searched(domain, trials, tid)
        docs[0]["state"] = [JobState.NEW, JobState.RUNNING, JobState.DONE, JobState.ERROR][tid % 4]
        put(trials, docs)
    assert [point(doc) for doc in trials._dynamic_trials] == points_of(grid)
    assert searched(domain, trials, 99) == []
    again = Trials()  # Another controller sees the same trials.
    put(again, trials._dynamic_trials[:5])
    assert point(searched(domain, again, 99)[0]) == grid.space.point(grid.row(5))


def test_several_at_once_are_different_and_fewer_when_fewer_are_left(domain: Domain) -> None:
    trials = Trials()
    docs = searched(domain, trials, 0, 20)
    assert len(docs) == 12
    assert len({tuple(point(doc).items()) for doc in docs}) == 12


def test_the_point_of_a_cancelled_or_deleted_trial_is_free_again(domain: Domain) -> None:
    trials = Trials()
    put(trials, searched(domain, trials, 0, 12))
    first = [point(doc) for doc in trials._dynamic_trials]
    assert searched(domain, trials, 50) == []
    trials._dynamic_trials[7]["state"] = JobState.CANCELLED
    del trials._dynamic_trials[3]
    assert [point(doc) for doc in searched(domain, trials, 50, 5)] == [first[3], first[7]]
    put(trials, searched(domain, trials, 50))
    assert [point(doc) for doc in searched(domain, trials, 60, 5)] == [first[7]]


def test_what_is_not_on_the_grid_takes_no_point_of_it() -> None:
    space = [hp.uniform("x", 0, 1)]
    domain, trials = Domain(lambda point: 0.0, space), Trials()
    put(trials, [doc_of_point(trials, domain, 0, {"x": 0.3}), doc_of_point(trials, domain, 1, {"x": 7.0})])
    put(trials, [doc_of_point(trials, domain, 2, {"x": 0.5})])
    docs = GridSearch(points=3)([3, 4, 5], domain, trials, 0)
    assert [point(doc)["x"] for doc in docs] == [0.0, 1.0]


def test_untried_points_come_in_any_order_and_then_no_more() -> None:
    grid = Grid(compile_space(SPACE))
    rows, rng = np.empty((0, len(grid.space.columns))), np.random.default_rng(1)
    firsts = set()
    for _ in range(12):
        firsts.add(grid.untried(rows[:0], rng).tobytes())
        rows = np.concatenate([rows, [grid.untried(rows, rng)], rows[:1]])
    assert len(firsts) > 3
    assert len({row.tobytes() for row in rows}) == 12
    assert grid.untried(rows, rng) is None
    huge = Grid(compile_space([hp.randint(f"r{number}", 1000) for number in range(30)]))
    assert huge.untried(np.empty((0, 30)), rng) is not None
