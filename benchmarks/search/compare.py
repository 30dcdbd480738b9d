"""Comparisons of finished runs: medians with quartiles, mean ranks, paired tests. Only NumPy and SciPy.

A group of runs is an array of regrets, seeds by algorithms, of one problem at one budget.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]
LEVEL = 0.05
"""Of the tests, after the correction."""


def quartiles(regrets: Array) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    low, middle, high = np.percentile(regrets, [25, 50, 75])
    return float(low), float(middle), float(high)


def ranks(regrets: Array) -> Array:
    """Mean rank of each column (1 is the best) over the rows; ties share their mean rank."""
    return np.asarray(stats.rankdata(regrets, axis=1).mean(axis=0))


@dataclass(frozen=True, kw_only=True)
class Paired:
    """Ours against one peer on one problem: `p` uncorrected, `sign` -1 where ours is better (by signed ranks)."""

    problem: str
    p: float
    sign: int


def paired(problem: str, ours: Array, theirs: Array) -> Paired:
    """Two-sided Wilcoxon signed-rank test over the seeds; pairs without a difference are left out.

    Without any difference p is 1. (Wilcoxon 1945; scipy.stats.wilcoxon, zero_method="wilcox".)
    """
    difference = ours - theirs
    difference = difference[difference != 0]
    if not len(difference):
        return Paired(problem=problem, p=1.0, sign=0)
    rank = stats.rankdata(np.abs(difference))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Few pairs, or ties: SciPy says that p is approximate.
        p = float(stats.wilcoxon(difference).pvalue)
    return Paired(problem=problem, p=p, sign=int(np.sign((rank * np.sign(difference)).sum())))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number: Holm's step-down (Scand. J. Statist. 6, 1979)."""
    order = np.argsort(p_values)
    corrected, least = [1.0] * len(p_values), 0.0
    for place, index in enumerate(order):
        least = max(least, min(1.0, p_values[index] * (len(p_values) - place)))
        corrected[index] = least
    return corrected


def wins_and_losses(tests: Sequence[Paired]) -> tuple[list[str], list[str], list[str]]:
    """Problems on which ours is better, worse, and neither, at LEVEL after Holm's correction over `tests`."""
    won, lost, tied = [], [], []
    for test, p in zip(tests, holm([test.p for test in tests]), strict=True):
        (tied if p >= LEVEL or test.sign == 0 else won if test.sign < 0 else lost).append(test.problem)
    return won, lost, tied
