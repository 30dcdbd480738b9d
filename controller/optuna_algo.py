"""`optuna:NAME`: Optuna's samplers over a hyperopt space.

The space is asked for define-by-run: a choice first, then what its option uses. uniform and loguniform are Optuna's
floats, quantised kinds and randint its integers (the number of steps), choices its categories (without the
probabilities of `pchoice`; options with probability 0 are left out). Normal kinds, which Optuna does not have, are
floats between 0 and 1: quantiles of the prior. The steps of a qloguniform that begins at 0 are counted from 1, as 0
has no logarithm.

A sampler is made anew for each suggestion, with the suggestion's seed, on a study in memory that mirrors the trials:
so a point is a function of seed and history, as far as the sampler keeps nothing in the study itself (and but for
qnormal and qlognormal, which the study knows before they are rounded if it has suggested them). CmaEsSampler and
the genetic ones do: a controller that is started again gives them all trials, but they begin their generations
anew. QMCSampler counts in the study where it is in its sequence; it is moved on past points that are there.

A trial that failed, was pruned or has no usable loss is pruned in the study: TPESampler takes it for a bad one, the
others ignore it. One that runs is running there too, so that the constant liar sees it.
"""

from __future__ import annotations

import difflib
import inspect
import math
import warnings
import weakref
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist
from typing import Any

import numpy as np

from hyperfarm.controller.compiling import compile_space
from hyperfarm.controller.history import loss_of
from hyperfarm.controller.points import doc_of_point
from hyperfarm.controller.space import Column, OutsideSpace, Rows, Space
from hyperfarm.errors import UsageError
from hyperfarm.jobs import JobDoc, JobState

_NORMAL = NormalDist()
_EDGE = 1e-9
_OPEN = (JobState.NEW, JobState.RUNNING)
_GRIDS = ("GridSampler", "BruteForceSampler")
_COUNTS_IN_THE_STUDY = ("QMCSampler",)
_OPTIONAL = {"GPSampler": "torch", "CmaEsSampler": "cmaes"}


@dataclass(frozen=True)
class OptunaSearch:
    """The algorithm `optuna:NAME`, with hyperopt's signature. `name` is that of a class in `optuna.samplers`.

    Raises UsageError for a sampler that does not exist, needs arguments, or lacks a package.
    """

    name: str

    def __post_init__(self) -> None:
        self.sampler(0)

    def prepare(self, domain: Any) -> None:
        """Raise UsageError for a space that cannot be compiled."""
        compile_space(domain.expr)

    @cached_property
    def _class(self) -> Any:
        samplers = _optuna().samplers
        if self.name in _GRIDS:
            raise UsageError(
                f"optuna:{self.name} does not take hyperopt's spaces; the algorithm grid is the same"
            )
        names = [
            name for name in samplers.__all__ if name not in _GRIDS and _is_usable(getattr(samplers, name))
        ]
        if self.name not in names:
            if hasattr(samplers, self.name):
                raise UsageError(
                    f"optuna:{self.name} cannot be made without arguments; there are {', '.join(names)}"
                )
            near = difflib.get_close_matches(self.name, names, n=1, cutoff=0.0)
            raise UsageError(f"Optuna has no sampler {self.name!r}; the nearest is optuna:{near[0]}")
        return getattr(samplers, self.name)

    def sampler(self, seed: int) -> Any:
        """A new sampler with this seed."""
        optuna = _optuna()
        parameters = inspect.signature(self._class).parameters
        options: dict[str, Any] = {"seed": seed} if "seed" in parameters else {}
        told = parameters.get("warn_independent_sampling")
        if (
            told is not None and told.default is True
        ):  # Conditional parameters are; no need to say so each time.
            options["warn_independent_sampling"] = False
        package = _OPTIONAL.get(self.name)
        try:
            if package is not None:
                __import__(package)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                return self._class(**options)
        except ImportError as error:
            name = package or error.name
            raise UsageError(
                f"the search algorithm optuna:{self.name} needs {name}: pip install {name}"
            ) from error

    def __call__(self, new_ids: list[int], domain: Any, trials: Any, seed: int) -> list[JobDoc]:
        """Return a job document for each id."""
        known = _mirrors.get(trials)
        if known is None or known[0] is not domain or known[1] != self.name:
            known = (domain, self.name, _Mirror(compile_space(domain.expr)))
            _mirrors[trials] = known
        mirror = known[2]
        docs, exp_key = trials._dynamic_trials, trials._exp_key
        mirror.update(docs if exp_key is None else [doc for doc in docs if doc["exp_key"] == exp_key])
        found = []
        for number, tid in enumerate(new_ids):
            sampler = self.sampler((seed + number) % 2**32)
            row = mirror.ask(tid, sampler, again=self.name in _COUNTS_IN_THE_STUDY)
            found.append(doc_of_point(trials, domain, tid, mirror.space.point(row)))
        return found


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise UsageError("the algorithms optuna:NAME need Optuna: pip install 'hyperfarm[optuna]'") from error
    return optuna


def _is_usable(found: Any) -> bool:
    """True for a sampler that can be made without arguments."""
    if not inspect.isclass(found) or inspect.isabstract(found):
        return False
    return all(
        one.default is not one.empty or one.kind in (one.VAR_KEYWORD, one.VAR_POSITIONAL)
        for one in inspect.signature(found).parameters.values()
    )


_mirrors: weakref.WeakKeyDictionary[Any, tuple[Any, str, _Mirror]] = weakref.WeakKeyDictionary()


class _Mirror:
    """An Optuna study in memory with the trials of a search: each is added once, and told once."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self._columns = [_Translated(column) for column in space.columns]
        self._begin()

    def _begin(self) -> None:
        optuna = _optuna()
        before = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            self.study = optuna.create_study()
        finally:
            optuna.logging.set_verbosity(before)
        self._open: dict[int, int] = {}
        self._finished: dict[int, JobDoc] = {}
        self._ignored: set[int] = set()

    def update(self, docs: list[JobDoc]) -> None:
        """Take in what has changed; `docs` are all trials of the search."""
        there = {doc["tid"]: doc for doc in docs if doc["state"] != JobState.CANCELLED}
        if any(there.get(tid) is not doc for tid, doc in self._finished.items()):
            self._begin()  # One was deleted, or run again.
        state = _optuna().trial.TrialState
        for tid in self._open.keys() - there.keys():
            self.study.tell(self._open.pop(tid), state=state.FAIL)
        for tid in sorted(there.keys() - self._finished.keys() - self._ignored):
            doc = there[tid]
            if tid not in self._open and not self._add(doc):
                self._ignored.add(tid)
                continue
            if doc["state"] in _OPEN:
                continue
            loss = loss_of(doc)
            number = self._open.pop(tid)
            if loss < math.inf:
                self.study.tell(number, loss)
            else:
                self.study.tell(number, state=state.PRUNED)
            self._finished[tid] = doc

    def _add(self, doc: JobDoc) -> bool:
        """Add a trial that we have not asked for, as running; False if today's space does not hold it."""
        optuna = _optuna()
        point = {label: values[0] for label, values in doc["misc"]["vals"].items() if len(values)}
        try:
            row = self.space.row(point)
        except OutsideSpace:
            return False
        if not self.space.is_possible(row):
            return False
        active = [
            (column, value)
            for column, value in zip(self._columns, row.tolist(), strict=True)
            if value == value
        ]
        trial = optuna.trial.create_trial(
            state=optuna.trial.TrialState.RUNNING,
            params={column.label: column.to_optuna(value) for column, value in active},
            distributions={column.label: column.distribution for column, _ in active},
        )
        self._open[doc["tid"]] = len(self.study.get_trials(deepcopy=False))
        self.study.add_trial(trial)
        return True

    def ask(self, tid: int, sampler: Any, *, again: bool) -> Rows:
        """Suggest the row (columns,) of a new trial; with `again`, go on until it is one that is not there yet."""
        before = self.study.get_trials(deepcopy=False)
        self.study.sampler = sampler
        for _ in range(len(before) + 1):
            trial = self.study.ask()
            row = self._row(trial)
            if not again or all(trial.params != other.params for other in before):
                break
            self.study.tell(trial, state=_optuna().trial.TrialState.FAIL)
        self._open[tid] = trial.number
        return row

    def _row(self, trial: Any) -> Rows:
        row: list[float] = []
        for column, translated in zip(self.space.columns, self._columns, strict=True):
            row.append(translated.suggested(trial) if column.is_active_in(row) else math.nan)
        return np.array(row)


class _Translated:
    """A column as a parameter of Optuna."""

    def __init__(self, column: Column) -> None:
        distributions = _optuna().distributions
        self.column, self.label = column, column.label
        self._shift = 0
        if column.is_categorical:
            self.distribution = distributions.CategoricalDistribution(column.options)
        elif not column.is_bounded:
            self.distribution = distributions.FloatDistribution(_EDGE, 1 - _EDGE)
        elif column.steps is not None:
            first, last = column.steps
            self._shift = 1 - first if column.is_log and first < 1 else 0
            self.distribution = distributions.IntDistribution(
                first + self._shift, last + self._shift, log=column.is_log
            )
        else:
            self.distribution = distributions.FloatDistribution(*column.bounds, log=column.is_log)

    def suggested(self, trial: Any) -> float:
        """Ask a trial of Optuna for the value, as hyperopt has it."""
        column, ours = self.column, self.distribution
        if column.is_categorical:
            return float(trial.suggest_categorical(self.label, ours.choices))
        if column.steps is not None:
            assert column.q is not None
            k = trial.suggest_int(self.label, ours.low, ours.high, log=ours.log) - self._shift
            return float(k * column.q)
        value = trial.suggest_float(self.label, ours.low, ours.high, log=ours.log)
        if not column.is_bounded:
            return float(column.from_latent(np.array([_NORMAL.inv_cdf(value)])).item())
        return float(value)

    def to_optuna(self, value: float) -> float | int:
        """The value of a trial that Optuna has not suggested."""
        column = self.column
        if column.is_categorical:
            return int(value)
        if column.steps is not None:
            assert column.q is not None
            return round(value / column.q) + self._shift
        if not column.is_bounded:
            return _within(_NORMAL.cdf(column.to_latent(np.array([value])).item()), _EDGE, 1 - _EDGE)
        return _within(value, *column.bounds)


def _within(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)
