"""`atpe`: hyperopt's adaptive TPE (its settings come from models that learnt from many searches), made usable.

hyperopt 0.3.0's `atpe.suggest` fails at the first trial that runs or has failed, at `pchoice` and at normal kinds; it
draws from Python's global generators whatever the seed; it reads its 15 models anew at each call; it gives values
to parameters of branches that are not taken. So its optimiser is given a stand-in for the space, which it takes
for a flat one anyway: bounded numerical parameters as they are, choices as `randint`, normal kinds by their
quantile. Trials that run or have failed are not shown to it.
"""

from __future__ import annotations

import contextlib
import functools
import math
import random
import warnings
from collections.abc import Iterator
from statistics import NormalDist
from typing import Any

import numpy as np

from hyperfarm.controller.history import History, history_of
from hyperfarm.controller.points import doc_of_point
from hyperfarm.controller.space import Column, Rows, Space
from hyperfarm.errors import UsageError
from hyperfarm.jobs import JobDoc

_NORMAL = NormalDist()
_EDGE = 1e-9
_MAX_SEED = 2**32


def suggest(new_ids: list[int], domain: Any, trials: Any, seed: int) -> list[JobDoc]:
    """Suggest points for `new_ids`; a function of the seed and the finished trials.

    Raises UsageError where lightgbm or scikit-learn is missing.
    """
    history = history_of(trials, domain)
    docs = []
    for number, tid in enumerate(new_ids):
        with _seeded(seed + number):
            values = _recommended(_flat(history.space), _results(history))
        point = history.space.point(_row(history.space, values))
        docs.append(doc_of_point(trials, domain, tid, point))
    return docs


def _recommended(flat: dict[str, Any], results: list[dict[str, Any]]) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # It takes correlations of what is constant, and handles the NaN.
        values: dict[str, Any] = _optimizer().recommendNextParameters(flat, results, currentTrials=[])
    return values


def check_installed() -> None:
    """Raise UsageError where a package is missing."""
    try:
        import lightgbm  # noqa: F401
        import sklearn.preprocessing  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"the search algorithm atpe needs {error.name}: pip install 'hyperfarm[atpe]'"
        ) from error


@functools.lru_cache(maxsize=1)
def _optimizer() -> Any:
    from hyperopt.atpe import ATPEOptimizer

    check_installed()
    return ATPEOptimizer()


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the global generators, which hyperopt's ATPE draws from, and leave them afterwards as they were."""
    before, numpy_before = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed % _MAX_SEED)
    try:
        yield
    finally:
        random.setstate(before)
        np.random.set_state(numpy_before)


def _flat(space: Space) -> dict[str, Any]:
    """The space as hyperopt's ATPE describes spaces: one object whose properties are `p0`, `p1` ..."""
    names = [f"p{number}" for number in range(len(space.columns))]
    properties = {
        name: {"type": "number", "name": name, **_described(column)}
        for name, column in zip(names, space.columns, strict=True)
    }
    return {"type": "object", "properties": properties}


def _described(column: Column) -> dict[str, Any]:
    if column.is_categorical:
        return {"mode": "randint", "min": 0, "max": len(column.options)}
    if column.distribution == "randint":
        assert column.steps is not None
        return {"mode": "randint", "min": column.steps[0], "max": column.steps[1] + 1}
    if not column.is_bounded:
        return {"mode": "uniform", "scaling": "linear", "min": _EDGE, "max": 1 - _EDGE}
    low, high = column.bounds
    scaling = "logarithmic" if column.is_log else "linear"
    rounding = {} if column.q is None else {"rounding": column.q}
    return {"mode": "uniform", "scaling": scaling, "min": low, "max": high, **rounding}


def _results(history: History) -> list[dict[str, Any]]:
    """The successful trials, with losses above 0, which is what the models have learnt from.

    A parameter that was not active gets a value drawn by chance from its prior, always the same for a trial.
    """
    space, good = history.space, np.isfinite(history.losses)
    losses = history.losses[good]
    if len(losses) and losses.min() < 0:
        losses = losses - losses.min() + 0.1
    results = []
    for tid, row, loss in zip(history.tids[good], history.rows[good], losses, strict=True):
        if not space.is_possible(row):
            continue
        result = {"trial": int(tid), "status": "ok", "loss": float(loss), "log": "", "time": 0.0}
        dice = np.random.default_rng(int(tid) % 2**63)  # Evidence of other searches has ids below 0.
        for number, (column, value) in enumerate(zip(space.columns, row.tolist(), strict=True)):
            there = value if value == value else column.sample(dice, 1).item()
            result[f"p{number}"] = _to_flat(column, there)
        results.append(result)
    return results


def _to_flat(column: Column, value: float) -> float | int:
    if column.is_categorical:
        return column.options.index(int(value))
    if column.distribution == "randint":
        return int(value)
    if not column.is_bounded:
        quantile = _NORMAL.cdf(column.to_latent(np.array([value])).item())
        return min(max(quantile, _EDGE), 1 - _EDGE)
    return value


def _row(space: Space, values: dict[str, Any]) -> Rows:
    """The row of a flat point: inactive parameters dropped, values rounded and kept within their bounds."""
    row: list[float] = []
    for number, column in enumerate(space.columns):
        value = values[f"p{number}"]
        if not column.is_active_in(row):
            row.append(math.nan)
        elif column.is_categorical:
            row.append(float(column.options[int(value)]))
        else:
            latent = column.to_latent(np.array([value])) if column.is_bounded else [_NORMAL.inv_cdf(value)]
            row.append(column.from_latent(np.array(latent)).item())
    return np.array(row)
