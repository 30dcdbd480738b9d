"""One search, simulated: trials run side by side and end one by one, in simulated time.

`running` trials are always outstanding; as soon as one ends, its loss is told and the next point is asked for.
Durations are uniform(0.5, 1.5) by the run's seed and the trial's number, the same for all algorithms.
"""

from __future__ import annotations

import heapq
import importlib
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from benchmarks.search import spaces
from benchmarks.search.problems import Point, Problem

BUDGETS = (25, 50, 100, 200)
"""After how many ended trials a run's regret is noted."""

_DURATIONS, _NOISE, _SUGGESTIONS = 1, 2, 3
"""Keep the streams of random numbers of one seed apart."""


class Searcher(Protocol):
    """An algorithm in the middle of one search."""

    def ask(self, number: int) -> tuple[Any, Point]:
        """A handle, and the point that trial `number` shall evaluate; the trial counts as running from here."""

    def tell(self, handle: Any, loss: float) -> None:
        """The trial has ended."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """Regret of the trial with the best loss told, after each of `budgets` ended trials; CPU seconds in all."""

    budgets: tuple[int, ...]
    regrets: tuple[float, ...]
    cpu_s: float


class OfHyperopt:
    """Any function with hyperopt's signature, on Trials that show the running trials too."""

    def __init__(self, suggest: Callable[..., list[dict[str, Any]]], space: Any, seed: int) -> None:
        from hyperopt import Trials
        from hyperopt.base import Domain

        self.trials = Trials()
        self._suggest, self._seed = suggest, seed
        self._domain = Domain(never_called, space)
        self._tree = spaces.compiled(space)

    def ask(self, number: int) -> tuple[Any, Point]:
        """Suggest from (seed, number)."""
        from hyperopt.base import JOB_STATE_RUNNING

        sequence = np.random.SeedSequence([self._seed, number, _SUGGESTIONS])
        (doc,) = self._suggest([number], self._domain, self.trials, int(sequence.generate_state(1)[0] >> 1))
        doc["state"] = JOB_STATE_RUNNING
        add(self.trials, doc)
        chosen = doc["misc"]["vals"]
        return doc, spaces.point(self._tree, lambda parameter: chosen[parameter.label][0])

    def tell(self, handle: Any, loss: float) -> None:
        """Write the result into the trial's document."""
        from hyperopt.base import JOB_STATE_DONE

        handle["state"], handle["result"] = JOB_STATE_DONE, {"loss": loss, "status": "ok"}


def add(trials: Any, doc: dict[str, Any]) -> None:
    """Add one document to hyperopt's Trials as insert_trial_docs and refresh() would, but in constant time."""
    trials._dynamic_trials.append(doc)
    trials._trials.append(doc)
    trials._ids.add(doc["tid"])


def never_called(_: Any) -> float:
    """The objective of a Domain whose points are evaluated elsewhere."""
    raise AssertionError("the benchmark evaluates points itself")


class OfOptuna:
    """An Optuna sampler by ask and tell; choices are categories, asked for as they become active."""

    def __init__(self, sampler: Any, space: Any) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.study = optuna.create_study(sampler=sampler)
        self._tree = spaces.compiled(space)

    def ask(self, number: int) -> tuple[Any, Point]:
        """Define by run."""
        trial = self.study.ask()
        return trial, spaces.point(self._tree, lambda parameter: asked(trial, parameter))

    def tell(self, handle: Any, loss: float) -> None:
        """Report to the study."""
        self.study.tell(handle, loss)


def asked(trial: Any, parameter: spaces.Parameter) -> Any:
    """The parameter's value, by the suggest_ method that says the same as hyperopt's expression."""
    label, low, high = parameter.label, parameter.low, parameter.high
    if parameter.kind == "choice":
        return trial.suggest_categorical(label, range(int(high)))
    if parameter.kind == "randint":
        return trial.suggest_int(label, int(low), int(high) - 1)
    if parameter.kind == "loguniform":
        return trial.suggest_float(label, float(np.exp(low)), float(np.exp(high)), log=True)
    if parameter.kind == "uniform":
        return trial.suggest_float(label, low, high)
    if parameter.whole:
        return trial.suggest_int(label, int(low), int(high), step=int(parameter.quantum))
    return trial.suggest_float(label, low, high, step=parameter.quantum)


def _hyperopt(space: Any, seed: int) -> Searcher:
    from hyperopt import tpe

    return OfHyperopt(tpe.suggest, space, seed)


def _random(space: Any, seed: int) -> Searcher:
    from hyperopt import rand

    return OfHyperopt(rand.suggest, space, seed)


def _hyperfarm(space: Any, seed: int) -> Searcher:
    from hyperfarm.controller import algorithms

    return OfHyperopt(algorithms.resolve("tpe")[1], space, seed)


def _optuna(space: Any, seed: int) -> Searcher:
    import optuna

    return OfOptuna(optuna.samplers.TPESampler(seed=seed), space)


def _optuna_group(space: Any, seed: int) -> Searcher:
    import optuna

    return OfOptuna(optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True), space)


ALGORITHMS: dict[str, Callable[[Any, int], Searcher]] = {
    "hyperfarm": _hyperfarm,
    "hyperopt": _hyperopt,
    "optuna": _optuna,
    "optuna-group": _optuna_group,
    "random": _random,
}


def searcher(algorithm: str, space: Any, seed: int) -> Searcher:
    """A fresh search by one of ALGORITHMS, or by the function `module:function`.

    Raises KeyError for an unknown name, ImportError or AttributeError for what cannot be imported.
    """
    if ":" in algorithm:
        module, _, function = algorithm.partition(":")
        return OfHyperopt(getattr(importlib.import_module(module), function), space, seed)
    return ALGORITHMS[algorithm](space, seed)


def run(
    algorithm: str, problem: Problem, *, running: int, seed: int, evals: int, budgets: Sequence[int] = BUDGETS
) -> Run:
    """Simulate one search of `evals` trials."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna's, of what it calls experimental.
        return _run(algorithm, problem, running, seed, evals, budgets)


def _run(
    algorithm: str, problem: Problem, running: int, seed: int, evals: int, budgets: Sequence[int]
) -> Run:
    started = time.process_time()
    search = searcher(algorithm, problem.space, seed)
    durations = np.random.default_rng([seed, _DURATIONS]).uniform(0.5, 1.5, evals)
    outstanding: list[tuple[float, int, Any, Point]] = []
    now, asked_for, best_loss, regret = 0.0, 0, float("inf"), float("nan")
    noted: dict[int, float] = {}
    for ended in range(1, evals + 1):
        while len(outstanding) < running and asked_for < evals:
            handle, point = search.ask(asked_for)
            heapq.heappush(outstanding, (now + durations[asked_for], asked_for, handle, point))
            asked_for += 1
        now, number, handle, point = heapq.heappop(outstanding)
        loss = problem.loss(point, np.random.default_rng([seed, number, _NOISE]))
        search.tell(handle, loss)
        if loss < best_loss:
            best_loss, regret = loss, problem.regret(point)
        if ended in budgets:
            noted[ended] = regret
    return Run(budgets=tuple(noted), regrets=tuple(noted.values()), cpu_s=time.process_time() - started)
