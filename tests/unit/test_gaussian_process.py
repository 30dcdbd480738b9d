"""The process: its fit, its prediction, what it expects of running trials, and of an improvement."""

from __future__ import annotations

import numpy as np
import pytest
from hyperopt import hp
from scipy.stats import norm

from hyperfarm.controller.compiling import compile_space
from hyperfarm.controller.gaussian_process import Belief, Process, _log_h, embed, fit

SPACE = compile_space({"x": hp.uniform("x", 0, 1), "y": hp.uniform("y", 0, 1)})


def wave(rows: np.ndarray) -> np.ndarray:
    return np.asarray(np.sin(5 * rows[:, 0]))


def made(count: int, noise: float = 0.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    rows = SPACE.sample(rng, count)
    points, owners = embed(SPACE, rows)
    targets = wave(rows) + noise * rng.standard_normal(count)
    return points, owners, (targets - targets.mean()) / targets.std()


def test_it_learns_what_matters_and_what_is_noise() -> None:
    smooth, noisy = fit(*made(40)), fit(*made(80, noise=0.5))
    assert smooth.scales[0] > 3 * smooth.scales[1], "x decides, y does not"
    assert smooth.noise < 1e-3 < 0.05 < noisy.noise


def test_it_predicts() -> None:
    points, owners, targets = made(40)
    belief = Belief(fit(points, owners, targets), points, targets, points[:0])
    fresh, _, _ = made(200, seed=1)
    mean, deviation = belief.predict(fresh)
    truth = (wave(fresh) - wave(points).mean()) / wave(points).std()
    assert np.abs(mean - truth).max() < 0.1
    assert belief.predict(points)[0] == pytest.approx(targets, abs=0.02)
    assert np.mean(np.abs(mean - truth) < 3 * deviation + 1e-3) > 0.95


def test_its_direct_solution_is_the_textbooks() -> None:
    points, _, targets = made(12)
    process = Process(scales=np.array([2.0, 0.5]), noise=1e-2)
    belief = Belief(process, points, targets, points[:0])
    fresh = np.random.default_rng(3).uniform(size=(5, 2))
    distance = np.linalg.norm((points[:, None] - fresh[None]) * [2.0, 0.5], axis=-1) * np.sqrt(5)
    cross = (1 + distance + distance**2 / 3) * np.exp(-distance)
    matrix = process.covariance(points, points) + 1e-2 * np.eye(12)
    scale = targets @ np.linalg.solve(matrix, targets) / 12
    mean, deviation = belief.predict(fresh)
    assert mean == pytest.approx(cross.T @ np.linalg.solve(matrix, targets))
    variance = 1 - np.sum(cross * np.linalg.solve(matrix, cross), axis=0)
    assert deviation == pytest.approx(np.sqrt(scale * variance))


def test_a_running_trial_leaves_the_mean_and_takes_the_doubt() -> None:
    points, owners, targets = made(15)
    process = fit(points, owners, targets)
    running = np.array([[0.9, 0.1]])
    before, after = Belief(process, points, targets, points[:0]), Belief(process, points, targets, running)
    (mean,), (deviation,) = before.predict(running)
    (same,), (less,) = after.predict(running)
    assert same == pytest.approx(mean)
    assert less < deviation / 3
    assert after.log_improvement(running)[0] < before.log_improvement(running)[0]


def test_expected_improvement_is_exact_and_orders_what_is_hopeless() -> None:
    z = np.array([-3.0, -1.0, -0.999, 0.0, 2.0])
    assert _log_h(z) == pytest.approx(np.log(norm.pdf(z) + z * norm.cdf(z)), rel=1e-9)
    far = _log_h(-np.logspace(0.5, 8, 200))
    assert np.all(np.isfinite(far))
    assert np.all(np.diff(far) < 0)


def test_branches_are_apart_and_inactive_parameters_do_not_matter() -> None:
    space = compile_space(
        hp.choice("c", [hp.uniform("a", 0, 1), hp.uniform("b", 0, 1), hp.normal("n", 0, 2)])
    )
    rows = np.array(
        [space.row(point) for point in ({"c": 0, "a": 0.2}, {"c": 0, "a": 0.3}, {"c": 1, "b": 0.2})]
    )
    points, owners = embed(space, rows)
    assert points.shape == (3, 6)
    assert [space.columns[one].label for one in owners] == ["c", "c", "c", "a", "b", "n"]
    near, far = np.linalg.norm(points[0] - points[1]), np.linalg.norm(points[0] - points[2])
    assert near == pytest.approx(0.1)
    assert far > 1


def test_targets_that_are_all_equal_are_no_error() -> None:
    points, owners, _ = made(10)
    process = fit(points, owners, np.zeros(10))
    assert np.all(np.isfinite(Belief(process, points, np.zeros(10), points[:2]).log_improvement(points)))
