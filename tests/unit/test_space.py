"""hyperopt's spaces as columns: kinds, bounds, conditions, and what a space cannot be."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hyperopt import hp
from hyperopt.pyll import as_apply, scope
from hyperopt.pyll.stochastic import sample
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp

from hyperfarm.controller.compiling import compile_space
from hyperfarm.controller.space import ALWAYS, OutsideSpace
from hyperfarm.errors import UsageError
from tests.finite_spaces import Point, spaces

KINDS = {
    "uniform": hp.uniform("x", -5, 10),
    "quniform": hp.quniform("x", 12, 256, 4),
    "loguniform": hp.loguniform("x", math.log(1e-5), 0),
    "qloguniform": hp.qloguniform("x", 0, 5, 3),
    "normal": hp.normal("x", 3, 2),
    "qnormal": hp.qnormal("x", 3, 2, 0.5),
    "lognormal": hp.lognormal("x", -1, 0.5),
    "qlognormal": hp.qlognormal("x", 1, 1, 0.25),
    "randint": hp.randint("x", 3, 9),
    "uniformint": hp.uniformint("x", 1, 7),
    "choice": hp.choice("x", list("abc")),
    "pchoice": hp.pchoice("x", [(0.7, "a"), (0.3, "b")]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_hyperopts_own_draws_are_inside_and_distributed_alike(kind: str) -> None:
    space = compile_space([KINDS[kind]])
    (column,) = space.columns
    index = {"a": 0, "b": 1, "c": 2}
    rng = np.random.default_rng(1)
    theirs = [sample([KINDS[kind]], rng)[0] for _ in range(400)]
    rows = np.array([space.row({"x": index.get(value, value)}) for value in theirs])
    ours = space.sample(rng, 400)
    assert ks_2samp(rows[:, 0], ours[:, 0]).statistic < 0.14, "a thousandth of equal samples is so far apart"
    if not column.is_categorical:
        again = column.from_latent(column.to_latent(rows[:, 0]))
        assert again == pytest.approx(rows[:, 0], rel=1e-9, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(spaces(), st.integers(0, 2**31))
def test_points_and_rows_are_the_same_thing(made: tuple[list[Any], list[Point]], seed: int) -> None:
    expression, points = made
    space = compile_space(expression)
    possible = {frozenset(point.items()) for point in points}
    for row in space.sample(np.random.default_rng(seed), 20):
        point = space.point(row)
        assert frozenset(point.items()) in possible
        assert np.array_equal(space.row(point), row, equal_nan=True)


def test_conditions_that_do_not_matter_are_left_out() -> None:
    x, y = hp.uniform("x", 0, 1), hp.uniform("y", 0, 1)
    space = compile_space(hp.choice("a", [{"x": x}, {"x": x, "b": hp.choice("b", [y, [y, 1]])}]))
    conditions = {column.label: column.conditions for column in space.columns}
    a, b = space.index["a"], space.index["b"]
    assert conditions["x"] == ALWAYS, "every option of a has it"
    assert conditions["y"] == (((a, 1),),), "every option of b has it"
    assert conditions["b"] == (((a, 1),),)
    assert a < b < space.index["y"]


@pytest.mark.parametrize(
    ("space", "told"),
    [
        ({"a": 1}, "the space has no parameters"),
        ([hp.uniform("x", 0, 1), hp.uniform("x", 0, 2)], "the same name: x"),
        ([scope.float(scope.hyperopt_param("x", scope.uniform(2, 1)))], "x: its range goes from 2 to 1"),
        ([hp.uniform("x", 0, float("nan"))], "x: its high is nan; it must be finite"),
        ([hp.loguniform("x", 1, 1000)], r"x: its range goes up to exp\(1000\)"),
        ([hp.loguniform("x", -1000, 0)], r"x: its range goes down to exp\(-1000\)"),
        ([hp.uniform("x", -1e308, 1e308)], "x: its range, from -1e.308 to 1e.308, is wider than"),
        ([hp.quniform("x", "0", "1", 1)], "x: its low is '0'; it must be a number"),
        ([hp.choice("x", [])], "x: it has no options"),
        ([hp.normal("x", 0, 0)], "x: sigma is 0; it must be above 0"),
        ([hp.quniform("x", 0, 1, 2)], "x: the step q is 2, wider than the whole range"),
        ([hp.quniform("x", 0, 1, 0)], "x: the step q is 0; it must be above 0"),
        ([hp.randint("x", 5, 5)], "x: its range goes from 5 to 5"),
        ([hp.pchoice("x", [(0.5, 1), (0.6, 2)])], "x: its probabilities"),
        ([hp.uniform("x", 0, hp.uniform("y", 1, 2))], "x: its high depends on another parameter"),
    ],
)
def test_what_no_space_can_be_is_named(space: Any, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        compile_space(space)


@pytest.mark.parametrize(
    ("node", "values"),
    [
        (hp.quniform("x", 0.5, 4.5, 1), [1, 2, 3, 4]),
        (hp.quniform("x", 0.15, 0.55, 0.1), [0.2, 0.3, 0.4, 0.5]),
        (hp.quniform("x", 0, 4, 1), [0, 1, 2, 3, 4]),
        (hp.quniform("x", 0.4, 3.6, 1), [0, 1, 2, 3, 4]),
        (hp.qloguniform("x", np.log(2), np.log(16), 2), [2, 4, 6, 8, 10, 12, 14, 16]),
        (hp.randint("x", 2, 5), [2, 3, 4]),
        (hp.uniformint("x", 1, 3), [1, 2, 3]),
    ],
)
def test_a_value_is_one_that_hyperopt_draws(node: Any, values: list[float]) -> None:
    (column,) = compile_space([node]).columns
    assert column.steps is not None
    assert column.q is not None
    assert [k * column.q for k in range(column.steps[0], column.steps[1] + 1)] == pytest.approx(values)
    rng = np.random.default_rng(0)
    drawn = {round(sample(as_apply([node]), rng)[0], 9) for _ in range(300)}
    assert sorted(drawn) == pytest.approx(values)


@pytest.mark.parametrize(
    ("node", "value"),
    [
        (hp.uniform("x", 0, 1e-10), 9e-10),
        (hp.uniform("x", 1e-12, 2e-12), 5e-10),
        (hp.quniform("x", 0, 1e-8, 1e-9), 1.5e-9),
    ],
)
def test_small_ranges_have_an_outside_too(node: Any, value: float) -> None:
    with pytest.raises(OutsideSpace):
        compile_space([node]).row({"x": value})


def test_far_out_logarithms_stay_numbers() -> None:
    space = compile_space([hp.lognormal("a", -800, 1), hp.lognormal("b", 0, 500)])
    rows = space.sample(np.random.default_rng(0), 200)
    assert all(np.array_equal(space.row(space.point(row)), row) for row in rows)


@pytest.mark.parametrize(
    ("point", "told"),
    [
        ({"lrr": 0.1, "c": 0, "u": 1}, "no parameter 'lrr'; the nearest is 'lr'"),
        ({"lr": 2.0, "c": 0, "u": 1}, "lr is 2.0; it must be a number from 1e-05 to 1"),
        ({"lr": "0.1", "c": 0, "u": 1}, "lr is '0.1'; it must be"),
        ({"lr": 0.1, "c": 0}, "u is missing; it must be a multiple of 0.5 from 0 to 3"),
        ({"lr": 0.1, "c": 0, "u": 0.7}, "u is 0.7; it must be a multiple of 0.5"),
        ({"lr": 0.1, "c": 1, "u": 1}, "u is given, but"),
        ({"lr": 0.1, "c": 2}, "c is 2; it must be the index of an option, 0 to 1"),
        ({"lr": float("nan"), "c": 1}, "lr is nan"),
        ({"lr": 0.1, "c": True}, "c is True"),
    ],
)
def test_what_a_space_does_not_hold_is_named(point: dict[str, Any], told: str) -> None:
    space = compile_space(
        {
            "lr": hp.loguniform("lr", math.log(1e-5), 0),
            "c": hp.choice("c", [hp.quniform("u", 0, 3, 0.5), None]),
        }
    )
    with pytest.raises(OutsideSpace, match=told):
        space.row(point)
