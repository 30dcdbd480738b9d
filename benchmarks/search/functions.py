"""Test functions of the optimisation literature, all to be minimised.

Formulas and optima: Surjanovic and Bingham, Virtual Library of Simulation Experiments (Test Functions and
Datasets), sfu.ca/~ssurjano; digits beyond those printed there were found with scipy.optimize.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

BRANIN_BEST = 0.39788735772973816
CAMEL_BEST = -1.0316284534898774
HARTMANN6_BEST = -3.3223680114155147
HARTMANN3_BEST = -3.862779787332663
STYBLINSKI_BEST = -39.16616570377141
"""Of each dimension."""

_HARTMANN_HEIGHTS = np.array([1.0, 1.2, 3.0, 3.2])
_HARTMANN6_A = np.array(
    [
        [10, 3, 17, 3.5, 1.7, 8],
        [0.05, 10, 17, 0.1, 8, 14],
        [3, 3.5, 1.7, 10, 17, 8],
        [17, 8, 0.05, 10, 0.1, 14],
    ]
)
_HARTMANN6_P = 1e-4 * np.array(
    [
        [1312, 1696, 5569, 124, 8283, 5886],
        [2329, 4135, 8307, 3736, 1004, 9991],
        [2348, 1451, 3522, 2883, 3047, 6650],
        [4047, 8828, 8732, 5743, 1091, 381],
    ]
)
_HARTMANN3_A = np.array([[3, 10, 30], [0.1, 10, 35], [3, 10, 30], [0.1, 10, 35]])
_HARTMANN3_P = 1e-4 * np.array(
    [[3689, 1170, 2673], [4699, 4387, 7470], [1091, 8732, 5547], [381, 5743, 8828]]
)


def branin(x: float, y: float) -> float:
    """On [-5, 10] x [0, 15]: three equal minima."""
    return float(
        (y - 5.1 / (4 * np.pi**2) * x**2 + 5 / np.pi * x - 6) ** 2
        + 10 * (1 - 1 / (8 * np.pi)) * np.cos(x)
        + 10
    )


def camel(x: float, y: float) -> float:
    """The six-hump camel: two equal minima at +-(0.0898, -0.7126)."""
    return (4 - 2.1 * x**2 + x**4 / 3) * x**2 + x * y + (-4 + 4 * y**2) * y**2


def hartmann6(x: Sequence[float]) -> float:
    """On the unit cube of six dimensions."""
    return -float(_HARTMANN_HEIGHTS @ np.exp(-(_HARTMANN6_A * (np.asarray(x) - _HARTMANN6_P) ** 2).sum(1)))


def hartmann3(x: Sequence[float]) -> float:
    """On the unit cube of three dimensions."""
    return -float(_HARTMANN_HEIGHTS @ np.exp(-(_HARTMANN3_A * (np.asarray(x) - _HARTMANN3_P) ** 2).sum(1)))


def rosenbrock(x: Sequence[float]) -> float:
    """A curved valley; zero where all are 1."""
    v = np.asarray(x)
    return float((100 * (v[1:] - v[:-1] ** 2) ** 2 + (1 - v[:-1]) ** 2).sum())


def rastrigin(x: Sequence[float]) -> float:
    """A bowl with waves; zero at zero."""
    v = np.asarray(x)
    return float((v**2 - 10 * np.cos(2 * np.pi * v) + 10).sum())


def ackley(x: Sequence[float]) -> float:
    """A funnel in a rugged plain; zero at zero."""
    v = np.asarray(x)
    bowl, waves = np.sqrt((v**2).mean()), np.cos(2 * np.pi * v).mean()
    return float(-20 * np.exp(-0.2 * bowl) - np.exp(waves) + 20 + np.e)


def styblinski(x: Sequence[float]) -> float:
    """On [-5, 5]: two wells in each dimension; least where all are -2.9035."""
    v = np.asarray(x)
    return float((v**4 - 16 * v**2 + 5 * v).sum() / 2)


class Factorial:
    """A function of discrete parameters given by their positions: main effects and effects of pairs.

    `sizes` are the numbers of levels; those in `ordered` act smoothly (a parabola of the position, pairs of
    them by the product of their positions), the others by numbers drawn once from `seed`.
    """

    def __init__(self, *, sizes: Sequence[int], ordered: Sequence[int], seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.sizes = tuple(sizes)
        scales = [np.linspace(-1, 1, size) for size in sizes]
        self._main = [
            2 * (scale - rng.uniform(-0.7, 0.7)) ** 2 if i in ordered else rng.uniform(0, 1.5, len(scale))
            for i, scale in enumerate(scales)
        ]
        self._pairs: dict[tuple[int, int], Array] = {}
        for i in range(len(sizes)):
            for j in range(i + 1, len(sizes)):
                if i in ordered and j in ordered:
                    self._pairs[i, j] = rng.normal(0, 0.5) * np.outer(scales[i], scales[j])
                else:
                    self._pairs[i, j] = rng.normal(0, 0.25, (sizes[i], sizes[j]))
        self.best = float(self.everywhere().min())

    def __call__(self, positions: Sequence[int]) -> float:
        """The value at one combination of positions."""
        total = sum(float(effect[at]) for effect, at in zip(self._main, positions, strict=True))
        return total + sum(float(pair[positions[i], positions[j]]) for (i, j), pair in self._pairs.items())

    def everywhere(self) -> Array:
        """All values, an array of the shape `sizes`."""
        total = np.zeros(self.sizes)
        for i, effect in enumerate(self._main):
            total += effect.reshape([-1 if axis == i else 1 for axis in range(len(self.sizes))])
        for (i, j), pair in self._pairs.items():
            total += pair.reshape([size if axis in (i, j) else 1 for axis, size in enumerate(self.sizes)])
        return total
