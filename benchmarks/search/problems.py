"""The problems, in two halves of like kinds: `dev` to develop on, `report` only looked at for the report.

Every optimum is known: by construction, from the literature (functions.py), or by looking at all points.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

KINDS = {
    "smooth": "smooth, 2 dimensions",
    "valley": "smooth, 5 or 6 dimensions",
    "rugged": "rugged, 10 or 16 dimensions",
    "noisy": "noisy, 3 or 4 dimensions",
    "mixed": "mixed: integers, choices, log-scaled and uniform",
    "finite": "finite: choices and integers, about 30,000 and 50,000 points",
    "log": "log-scaled, the optimum anywhere in several decades",
    "conditional": "conditional: a choice of three sub-spaces",
    "nested": "conditional, nested two deep",
    "real": "scikit-learn models behind one choice, a table of cross-validated losses",
}
HALVES = ("dev", "report")
Point = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One problem. `value` is the noiseless loss of an evaluated point, `best` its least value anywhere;
    a measured loss is the value plus `noise` times a standard normal number."""

    name: str
    kind: str
    half: str
    space: dict[str, Any]
    value: Callable[[Point], float]
    best: float = 0.0
    noise: float = 0.0

    def loss(self, point: Point, rng: np.random.Generator) -> float:
        """What an algorithm is told about the point."""
        measured = self.value(point)
        return measured + self.noise * float(rng.normal()) if self.noise else measured

    def regret(self, point: Point) -> float:
        """How far the point's noiseless value is above the optimum; never negative."""
        return max(0.0, self.value(point) - self.best)


@lru_cache(maxsize=1)
def all_problems() -> dict[str, Problem]:
    """All problems by name, the halves one after the other."""
    from benchmarks.search import develop, report_half

    found = [*develop.problems(), *report_half.problems()]
    return {problem.name: problem for problem in found}


def selected(half: str, names: list[str] | None = None) -> list[Problem]:
    """The problems of a half (`all` for both), or those of the names given.

    Raises KeyError for an unknown name.
    """
    known = all_problems()
    if names:
        return [known[name] for name in names]
    return [problem for problem in known.values() if half in ("all", problem.half)]
