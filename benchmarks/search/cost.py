"""What one suggestion costs, beside hyperopt and Optuna: 10 parameters, 100 to 100,000 finished trials.

Each suggestion is timed right after a trial that ended was added, so that what an algorithm keeps between
suggestions has to be brought up to date inside the clock; building the history is outside. CPU time of the
process: on an idle machine that is wall time (one thread, nothing is waited for), on a busy one it still holds.
"""

from __future__ import annotations

import gc
import statistics
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, field
from math import log
from typing import Any

import numpy as np
from hyperopt import hp

from benchmarks.search import report, runs, simulate, spaces

OPTIONS = ["a", "b", "c", "d"]
SIZES = (100, 1_000, 10_000, 100_000)
LARGEST_OF_PEERS = 10_000
TARGETS_MS = {1_000: 3.0, 10_000: 14.0, 100_000: 150.0}
BURST, BURST_AT, BURST_TARGET_MS = 64, 1_000, 150.0
BYTES_TARGET = 100.0


def space() -> dict[str, Any]:
    """Five uniform, two loguniform, one quniform, two choices."""
    return {
        **{f"u{i}": hp.uniform(f"u{i}", -5, 5) for i in range(5)},
        **{f"l{i}": hp.loguniform(f"l{i}", log(1e-5), 0) for i in range(2)},
        "q0": hp.quniform("q0", 0, 100, 1),
        **{f"c{i}": hp.choice(f"c{i}", OPTIONS) for i in range(2)},
    }


VALUES = 10
"""Stored values of a trial."""


def drawn(rng: np.random.Generator) -> tuple[dict[str, Any], float]:
    """A random point in hyperopt's terms (choices by index), and its loss."""
    values: dict[str, Any] = {f"u{i}": float(rng.uniform(-5, 5)) for i in range(5)}
    values |= {f"l{i}": float(np.exp(rng.uniform(log(1e-5), 0))) for i in range(2)}
    values |= {"q0": float(round(rng.uniform(0, 100)))}
    values |= {f"c{i}": int(rng.integers(4)) for i in range(2)}
    loss = sum(values[f"u{i}"] ** 2 for i in range(5)) + abs(log(values["l0"]) + 4)
    return values, float(loss + values["q0"] / 50 + values["c0"] + 0.1 * rng.normal())


@dataclass(kw_only=True)
class OfHyperopt:
    """A function with hyperopt's signature, and a history of `size` finished trials."""

    suggest: Callable[..., list[dict[str, Any]]]
    size: int
    _number: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        from hyperopt import Trials
        from hyperopt.base import Domain

        self.trials, self.domain = Trials(), Domain(simulate.never_called, space())
        self._rng = np.random.default_rng(self.size)
        for _ in range(self.size):
            self.finish_one()

    def finish_one(self) -> None:
        """Add a finished trial."""
        values, loss = drawn(self._rng)
        tid = self._number
        self._number += 1
        misc = {
            "tid": tid,
            "cmd": self.domain.cmd,
            "workdir": None,
            "idxs": {label: [tid] for label in values},
            "vals": {label: [value] for label, value in values.items()},
        }
        (doc,) = self.trials.new_trial_docs([tid], [None], [{"loss": loss, "status": "ok"}], [misc])
        doc["state"] = 2
        simulate.add(self.trials, doc)

    def suggested(self, seed: int) -> dict[str, Any]:
        """One suggestion."""
        (doc,) = self.suggest([self._number], self.domain, self.trials, seed)
        return doc

    def one(self, seed: int) -> float:
        """Add a finished trial, then time one suggestion, in seconds."""
        self.finish_one()
        started = time.process_time()
        self.suggested(seed)
        return time.process_time() - started

    def burst(self, seed: int) -> float:
        """Time BURST suggestions, each running before the next; they all end badly after it."""
        self.finish_one()
        numbers, took = self._number, 0.0
        for place in range(BURST):
            started = time.process_time()
            doc = self.suggested(seed * BURST + place)
            took += time.process_time() - started
            doc["state"] = 1
            simulate.add(self.trials, doc)
            self._number += 1
        for doc in self.trials._dynamic_trials[numbers:]:
            doc["state"], doc["result"] = 2, {"loss": 1e3, "status": "ok"}
        return took

    def bytes_per_value(self) -> float:
        """What the first suggestion leaves allocated, for each stored value of the history."""
        gc.collect()
        tracemalloc.start()
        self.suggested(0)
        gc.collect()
        kept, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return kept / (self.size * VALUES)


class OfOptuna:
    """Optuna's default TPESampler on a study of `size` finished trials, in memory."""

    def __init__(self, size: int) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._rng, self._tree = np.random.default_rng(size), spaces.compiled(space())
        self._optuna = optuna
        self._distributions = self._known_distributions()
        self.study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=1))
        self.study.add_trials([self._finished() for _ in range(size)])

    def _known_distributions(self) -> dict[str, Any]:
        trial = self._optuna.create_study().ask()
        spaces.point(self._tree, lambda parameter: simulate.asked(trial, parameter))
        return dict(trial.distributions)

    def _finished(self) -> Any:
        values, loss = drawn(self._rng)
        return self._optuna.trial.create_trial(params=values, distributions=self._distributions, value=loss)

    def one(self, seed: int) -> float:
        """Add a finished trial, then time one suggestion, in seconds."""
        self.study.add_trial(self._finished())
        started = time.process_time()
        trial = self.study.ask()
        spaces.point(self._tree, lambda parameter: simulate.asked(trial, parameter))
        took = time.process_time() - started
        self.study.tell(trial, float(seed) + 1e3)
        return took


def measure(largest: int, log_line: Callable[[str], None]) -> list[tuple[str, ...]]:
    """All rows of the table, sizes up to `largest`; the algorithms take turns at each size."""
    from hyperopt import tpe

    from hyperfarm.controller import algorithms

    ours = algorithms.resolve("tpe")[1]
    rows: list[tuple[str, ...]] = [("measured", "hyperfarm", "hyperopt 0.3.0", "Optuna 5", "target", "")]
    kept = burst = 0.0
    for size in (size for size in SIZES if size <= largest):
        farm = OfHyperopt(suggest=ours, size=size)
        kept = farm.bytes_per_value()
        sides: list[Any] = [farm]
        if size <= LARGEST_OF_PEERS:
            sides += [OfHyperopt(suggest=tpe.suggest, size=size), OfOptuna(size)]
        times = _in_turns(sides, 15 if size <= 1_000 else 5)
        if size == BURST_AT:
            burst = statistics.median([farm.burst(seed) for seed in range(5)])
        cells = [f"{statistics.median(found) * 1e3:.3g} ms" for found in times] + ["-", "-"]
        target = TARGETS_MS.get(size)
        met = "" if target is None else _verdict(statistics.median(times[0]) * 1e3, target)
        rows.append(
            (
                f"one suggestion at {size:,} finished trials",
                *cells[:3],
                f"{target:g} ms" if target else "",
                met,
            )
        )
        log_line(", ".join(rows[-1]))
    if burst:
        name = f"{BURST} suggestions for {BURST} free slots at {BURST_AT:,} trials"
        met = _verdict(burst * 1e3, BURST_TARGET_MS)
        rows.append((name, f"{burst * 1e3:.3g} ms", "-", "-", f"{BURST_TARGET_MS:g} ms", met))
    name = f"memory of a stored value at {largest:,} trials"
    rows.append(
        (name, f"{kept:.3g} bytes", "-", "-", f"{BYTES_TARGET:g} bytes", _verdict(kept, BYTES_TARGET))
    )
    return rows


def _in_turns(sides: list[Any], repeats: int) -> list[list[float]]:
    for side in sides:
        side.one(10**6)  # What is imported, compiled or read for the first time is outside the clock.
    times: list[list[float]] = [[] for _ in sides]
    for seed in range(repeats):
        for found, side in zip(times, sides, strict=True):
            found.append(side.one(seed))
    return times


def _verdict(value: float, target: float) -> str:
    return "ok" if value < target else "MISSED"


def document(rows: list[tuple[str, ...]], layout: str = "markdown") -> str:
    """The table with the commit, as Markdown or as text for a terminal."""
    show = report.as_markdown if layout == "markdown" else report.as_text
    return f"Measured at commit {runs.current_commit()}, medians of CPU time.\n\n{show(list(rows))}"
