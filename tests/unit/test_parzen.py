"""The joint densities: they integrate to one over every space, and learn from what they are given."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hyperopt import hp
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from hyperfarm.controller.compiling import compile_space
from hyperfarm.controller.parzen import Mixture, log_prior
from hyperfarm.controller.space import Space
from tests.finite_spaces import Point, spaces

SEEDS = st.integers(0, 2**31)


def density(mixture: Mixture, space: Space, points: list[Point]) -> Any:
    return np.exp(mixture.log_density(np.array([space.row(point) for point in points])))


@settings(max_examples=100, deadline=None)
@given(spaces(), st.integers(0, 12), SEEDS)
def test_over_a_finite_space_it_sums_to_one(
    made: tuple[list[Any], list[Point]], trials: int, seed: int
) -> None:
    expression, points = made
    space = compile_space(expression)
    rng = np.random.default_rng(seed)
    mixture = Mixture(space, space.sample(rng, trials))
    distinct = list({frozenset(point.items()): point for point in points}.values())
    assert density(mixture, space, distinct).sum() == pytest.approx(1, abs=1e-9)


CONTINUOUS = {
    "uniform": hp.uniform("x", -5, 10),
    "loguniform": hp.loguniform("x", math.log(1e-5), 0),
    "normal": hp.normal("x", 3, 2),
    "lognormal": hp.lognormal("x", -1, 0.5),
}


@settings(max_examples=20, deadline=None)
@pytest.mark.parametrize("kind", CONTINUOUS)
@given(trials=st.integers(0, 8), seed=SEEDS)
def test_over_a_continuous_parameter_it_integrates_to_one(kind: str, trials: int, seed: int) -> None:
    space = compile_space([CONTINUOUS[kind]])
    column = space.columns[0]
    mixture = Mixture(space, space.sample(np.random.default_rng(seed), trials))
    ends = (0, 1) if column.is_bounded else (-12, 12)

    def at(latent: float) -> float:
        row = column.from_latent(np.array([latent]))[None, :]
        return math.exp(mixture.log_density(row)[0])

    total, _ = quad(at, *ends, limit=400, points=np.linspace(*ends, 20))
    assert total == pytest.approx(1, abs=1e-5)


@settings(max_examples=20, deadline=None)
@pytest.mark.parametrize(
    "node", [hp.qnormal("x", 3, 5, 0.5), hp.qlognormal("x", 2, 1, 1), hp.qloguniform("x", 0, 5, 1)]
)
@given(trials=st.integers(0, 8), seed=SEEDS)
def test_over_quantised_values_it_sums_to_one(node: Any, trials: int, seed: int) -> None:
    space = compile_space([node])
    mixture = Mixture(space, space.sample(np.random.default_rng(seed), trials))
    steps = space.columns[0].steps or (
        (-200, 200) if space.columns[0].distribution == "qnormal" else (0, 60_000)
    )
    rows = np.arange(steps[0], steps[1] + 1)[:, None] * space.columns[0].q
    assert np.exp(mixture.log_density(rows)).sum() == pytest.approx(1, abs=1e-4)


def test_joint_and_conditional_it_integrates_to_one() -> None:
    """By Monte Carlo: the mean, under the prior, of the density over the prior's."""
    space = compile_space(
        hp.choice(
            "c",
            [
                {"x": hp.uniform("x", -5, 10), "n": hp.normal("n", 0, 3)},
                {"y": hp.loguniform("y", -5, 0), "d": hp.choice("d", [1, {"q": hp.quniform("q", 0, 9, 2)}])},
            ],
        )
    )
    rng = np.random.default_rng(1)
    mixture = Mixture(space, space.sample(rng, 9))
    rows = space.sample(rng, 200_000)
    prior = sum(
        np.where(np.isnan(values), 0.0, log_prior(column, np.where(np.isnan(values), 1.0, values)))
        for column, values in zip(space.columns, rows.T, strict=True)
    )
    ratios = np.exp(mixture.log_density(rows) - prior)
    assert ratios.mean() == pytest.approx(1, abs=4 * ratios.std() / math.sqrt(len(ratios)))


def test_what_is_drawn_has_the_density() -> None:
    space = compile_space(
        hp.choice("c", [{"q": hp.quniform("q", 0, 3, 1)}, {"r": hp.pchoice("r", [(0.2, 0), (0.8, 1)])}])
    )
    points = [{"c": 0, "q": float(q)} for q in range(4)] + [{"c": 1, "r": r} for r in (0, 1)]
    rng = np.random.default_rng(2)
    mixture = Mixture(space, np.array([space.row(points[2]), space.row(points[2]), space.row(points[4])]))
    drawn = mixture.sample(rng, 20_000)
    counts = [sum(row.tobytes() == space.row(point).tobytes() for row in drawn) for point in points]
    assert sum(counts) == len(drawn)
    assert np.array(counts) / len(drawn) == pytest.approx(density(mixture, space, points), abs=0.015)


def test_parameters_are_learnt_together() -> None:
    """Good where both are low or both are high: the density is low where only one of them is."""
    space = compile_space([hp.uniform("a", 0, 1), hp.choice("b", ["low", "high"])])
    rows = np.array([[a + 0.02 * k, b] for a, b in ((0.1, 0), (0.8, 1)) for k in range(5)])
    same, other = Mixture(space, rows).log_density(np.array([[0.15, 0.0], [0.15, 1.0]]))
    assert same - other > 1.5


def test_a_kernel_does_not_leave_the_bounds() -> None:
    space = compile_space([hp.uniform("a", 0, 1), hp.quniform("q", 0, 10, 5)])
    drawn = Mixture(space, np.array([[0.0, 0.0], [1.0, 10.0]] * 5)).sample(np.random.default_rng(3), 2_000)
    assert np.all((drawn[:, 0] >= 0) & (drawn[:, 0] <= 1))
    assert set(drawn[:, 1]) == {0.0, 5.0, 10.0}
