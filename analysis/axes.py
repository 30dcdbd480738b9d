"""What can stand on the axis of a picture: a parameter, loss, duration, tid, or a number of the results."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from hyperfarm.analysis.reading import (
    MISSING,
    Experiment,
    at_path,
    duration_of,
    find_rows,
    loss_of,
    parameters_of,
    succeeded,
)
from hyperfarm.analysis.telling import shortened
from hyperfarm.blobs import REF
from hyperfarm.errors import UsageError
from hyperfarm.jobs import JobDoc
from hyperfarm.store import Store
from hyperfarm.values import is_number

SPECIAL: dict[str, tuple[str, Callable[[JobDoc], Any]]] = {
    "loss": ("loss", loss_of),
    "duration": ("duration (s)", duration_of),
    "tid": ("trial", lambda row: row["tid"]),
}
RESULT = "result."
WIDE = 8.0
"""Positive values are drawn on a logarithmic scale when their median lies this far from both ends ..."""
VERY_WIDE = 50.0
"""... or this far from the largest."""
LISTED = 40


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One number per trial. `values[i]` belongs to row i: a finite number, or None (also for a trial that failed).

    `ticks` names the values of a choice; `log` says that the scale is logarithmic (all values positive).
    """

    name: str
    label: str
    values: list[float | None]
    log: bool = False
    whole: bool = False
    ticks: dict[int, str] = field(default_factory=dict)


class Axes:
    """Makes axes over the trials of one experiment, which it reads once; `names` are those that may be asked for."""

    def __init__(self, store: Store, experiment: Experiment, names: Iterable[str | None]) -> None:
        self.store, self.experiment = store, experiment
        paths = [name.removeprefix(RESULT) for name in names if name and name not in SPECIAL]
        self.rows = find_rows(store, experiment, paths)
        space = experiment.space
        seen = {label: None for row in self.rows for label in parameters_of(row)}
        known = [label for label in space.labels if label in seen]
        self.labels = known + [label for label in seen if label not in space.labels]
        """All parameters, in the order of the space as far as it is known."""

    def make(self, name: str, *, log: bool | None = None) -> Axis:
        """Return the axis of this name; `log` None lets the space or the values decide about the scale.

        Raises UsageError when nothing is called so (naming what there is), when its values are not numbers,
        or when `log` is asked for and some value is not positive.
        """
        label, found = self._raw_values(name)
        raw: list[Any] = [
            value if succeeded(row) else None for row, value in zip(self.rows, found, strict=True)
        ]
        values = [float(value) if is_number(value) and math.isfinite(value) else None for value in raw]
        there = [value for value in values if value is not None]
        if not there:
            raise UsageError(_no_numbers(self.experiment, name, raw))
        if log and min(there) <= 0:
            raise UsageError(f"{name} cannot have a logarithmic axis: its lowest value is {min(there):g}")
        options = self.experiment.space.choices.get(name, []) if name not in SPECIAL else []
        return Axis(
            name=name,
            label=shortened(label, 45),
            values=values,
            log=self._is_log(name, there) if log is None else log,
            whole=all(isinstance(value, int) for value in raw if is_number(value)),
            ticks=dict(enumerate(options)),
        )

    def default_parameters(self) -> list[str]:
        """The parameters with numbers, those that are no choices first.

        Without the text of the space a parameter with whole numbers only may be a choice, and comes later.
        """
        raw = {label: [parameters_of(row).get(label) for row in self.rows] for label in self.labels}
        space = self.experiment.space

        def may_be_choice(label: str) -> bool:
            if label in space.labels:
                return label in space.choices
            return all(isinstance(value, int) for value in raw[label] if value is not None)

        numeric = [label for label in self.labels if any(is_number(value) for value in raw[label])]
        return sorted(numeric, key=may_be_choice)

    def _raw_values(self, name: str) -> tuple[str, list[Any]]:
        """The label to draw, and what each row holds under this name (None for nothing)."""
        if name in SPECIAL:
            label, read = SPECIAL[name]
            return label, [read(row) for row in self.rows]
        if name in self.labels:
            return name, [parameters_of(row).get(name) for row in self.rows]
        path = name.removeprefix(RESULT)
        found = [at_path(row.get("result") or {}, path) for row in self.rows]
        if all(value is MISSING for value in found):
            raise self._unknown(name)
        return path, [None if value is MISSING else value for value in found]

    def _is_log(self, name: str, values: Sequence[float]) -> bool:
        space = self.experiment.space
        if name == "tid" or name in space.choices or min(values) <= 0:
            return False
        if name in space.labels:
            return name in space.logarithmic
        low, middle, high = min(values), median(values), max(values)
        return (high / middle >= WIDE and middle / low >= WIDE) or high / middle >= VERY_WIDE

    def _unknown(self, name: str) -> UsageError:
        """The error for a name that means nothing: near names, and all that there are."""
        numbers = self._numbers_in_results()
        every = [*self.labels, *SPECIAL, *numbers]
        near = difflib.get_close_matches(name.removeprefix(RESULT), every, n=3, cutoff=0.6)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        told = f"Parameters: {_listed(self.labels)}. Also: {', '.join(SPECIAL)}"
        if numbers:
            told += f". Numbers in the results: {_listed([RESULT + path for path in numbers])}"
        return UsageError(f"{self.experiment.name} has no parameter or result called {name!r}; {hint}{told}.")

    def _numbers_in_results(self) -> list[str]:
        """The paths of the numbers in one good result: the best one, which stands for the others."""
        best = self.store.best_job(self.experiment.exp_key)
        return [path for path in numbers_in(best["result"]) if path not in SPECIAL] if best else []


def numbers_in(result: dict[str, Any], prefix: str = "") -> list[str]:
    """The dotted paths of all numbers in a result; the size of a blob is none of them."""
    paths: list[str] = []
    for key, value in result.items():
        if isinstance(value, dict):
            paths += numbers_in(value, f"{prefix}{key}.")
        elif is_number(value) and not (REF in result and key == "size"):
            paths.append(f"{prefix}{key}")
    return paths


def _no_numbers(experiment: Experiment, name: str, raw: Iterable[Any]) -> str:
    held = next((value for value in raw if value is not None), None)
    if held is None:
        return f"no finished trial of {experiment.name} has a {name}"
    if isinstance(held, float):
        return f"{name} is never a finite number in {experiment.name}: it cannot be drawn"
    kinds = {str: "text", bool: "true or false", bytes: "bytes", dict: "a dict", list: "a list"}
    kind = kinds.get(type(held), f"a {type(held).__name__}")
    return f"{name} is {kind} in {experiment.name}: an axis needs numbers"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return (", ".join(names[:LISTED]) or "none") + more
