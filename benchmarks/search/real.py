"""Two real problems: scikit-learn models on bundled data sets, read from tables (made by make_tables.py).

The space is exactly the tables' grid: each point is one row, cross-validated once.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from hyperopt import hp
from numpy.typing import NDArray

from benchmarks.search.problems import Point, Problem

FOLDER = Path(__file__).with_name("data")
DATA_SETS = {"dev": "breast_cancer", "report": "digits"}
"""The data set of each half."""


@dataclass(frozen=True, kw_only=True)
class Steps:
    """A parameter from `low` to `high` by `quantum`, both multiples of it: hp.quniform."""

    low: float
    high: float
    quantum: float

    def values(self) -> list[Any]:
        """All values, ascending."""
        return [
            float(self.low + self.quantum * i)
            for i in range(round((self.high - self.low) / self.quantum) + 1)
        ]


@dataclass(frozen=True, kw_only=True)
class Options:
    """A parameter without an order: hp.choice."""

    options: tuple[Any, ...]

    def values(self) -> list[Any]:
        """All options."""
        return list(self.options)


GRIDS: dict[str, dict[str, Steps | Options]] = {
    "forest": {
        "trees": Steps(low=5, high=60, quantum=5),
        "depth": Steps(low=1, high=10, quantum=1),
        "features": Options(options=("sqrt", 0.15, 0.5)),
        "criterion": Options(options=("gini", "entropy")),
    },
    "svm": {
        "kernel": Options(options=("linear", "rbf", "poly", "sigmoid")),
        "log_c": Steps(low=-3, high=4, quantum=0.5),
        "log_gamma": Steps(low=-5, high=1, quantum=0.5),
    },
    "mlp": {
        "width": Steps(low=8, high=40, quantum=8),
        "activation": Options(options=("relu", "tanh", "logistic")),
        "log_rate": Steps(low=-4, high=-0.5, quantum=0.5),
        "log_alpha": Steps(low=-6, high=0, quantum=3),
        "epochs": Steps(low=10, high=30, quantum=10),
    },
    "boosting": {
        "trees": Steps(low=5, high=40, quantum=5),
        "log_rate": Steps(low=-2, high=0, quantum=0.25),
        "depth": Steps(low=1, high=5, quantum=1),
        "subsample": Steps(low=0.5, high=1, quantum=0.25),
    },
}


def rows(model: str) -> list[dict[str, Any]]:
    """All configurations of a model, in the order of its table."""
    grid = GRIDS[model]
    combinations = itertools.product(*(axis.values() for axis in grid.values()))
    return [dict(zip(grid, found, strict=True)) for found in combinations]


@lru_cache
def tables(data_set: str) -> dict[str, NDArray[np.float64]]:
    """Losses by model, one axis per parameter."""
    with np.load(FOLDER / f"{data_set}.npz") as stored:
        shapes = {name: tuple(len(axis.values()) for axis in grid.values()) for name, grid in GRIDS.items()}
        return {name: stored[name].astype(np.float64).reshape(shape) for name, shape in shapes.items()}


def problem(half: str) -> Problem:
    """The half's real problem."""
    data_set = DATA_SETS[half]
    losses = tables(data_set)
    places = {
        model: {name: {value: i for i, value in enumerate(axis.values())} for name, axis in grid.items()}
        for model, grid in GRIDS.items()
    }

    def value(p: Point) -> float:
        chosen = p["model"]
        model = chosen["is"]
        return float(losses[model][tuple(at[chosen[name]] for name, at in places[model].items())])

    prefix = "rep" if half == "report" else half
    branches = [
        {"is": model, **{name: _expression(f"{prefix}_{model}_{name}", axis) for name, axis in grid.items()}}
        for model, grid in GRIDS.items()
    ]
    return Problem(
        name=f"{prefix}-real",
        kind="real",
        half=half,
        space={"model": hp.choice(f"{prefix}_model", branches)},
        value=value,
        best=min(float(table.min()) for table in losses.values()),
    )


def _expression(label: str, axis: Steps | Options) -> Any:
    if isinstance(axis, Options):
        return hp.choice(label, list(axis.options))
    return hp.quniform(label, axis.low, axis.high, axis.quantum)
