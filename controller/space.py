"""A hyperopt search space as plain columns: kind, bounds, step, and the branches under which a parameter is active.

A point is a row of floats, one per column, NaN where the parameter is inactive. Each numerical column has a latent
coordinate in which its prior is the uniform distribution on [0, 1] (bounded kinds) or the standard normal
distribution (normal kinds); logarithms are taken before.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyperfarm.errors import UsageError

Rows = NDArray[np.float64]
Conjunction = tuple[tuple[int, int], ...]
"""All of these (index of a choice's column, option) must hold."""
ALWAYS: tuple[Conjunction, ...] = ((),)

_TOLERANCE = 1e-9
"""Relative: exp(log(x)) and k * q are not exact."""
_EXPONENTS = -708.0, 709.0
"""exp of less is not quite a number above 0, of more no number."""


def clipped(values: Rows, low: float, high: float) -> Rows:
    """What `np.clip` returns, in half the time for a few values."""
    return np.minimum(np.maximum(values, low), high)


class OutsideSpace(UsageError):
    """A point that the space does not hold; the message names the parameter."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """One parameter.

    `distribution` is hyperopt's name, "categorical" for both kinds of choice. `low` and `high` bound a uniform
    kind, `mu` and `sigma` describe a normal kind, both of the logarithm where `is_log`. `q` is the step of a
    quantised kind. `probabilities` are those of a choice's options. `conditions`: active if any conjunction holds.
    """

    label: str
    distribution: str
    low: float = -math.inf
    high: float = math.inf
    mu: float = 0.0
    sigma: float = 1.0
    q: float | None = None
    probabilities: tuple[float, ...] = ()
    conditions: tuple[Conjunction, ...] = ALWAYS

    @cached_property
    def is_categorical(self) -> bool:
        return self.distribution == "categorical"

    @cached_property
    def is_log(self) -> bool:
        return "log" in self.distribution

    @cached_property
    def is_bounded(self) -> bool:
        """False for the normal kinds."""
        return not self.distribution.endswith("normal")

    @property
    def is_integer(self) -> bool:
        """Values are Python ints in a trial's document: choices and randint."""
        return self.distribution in ("categorical", "randint")

    @property
    def bounds(self) -> tuple[float, float]:
        """The lowest and the highest value of a bounded kind, before a quantised one is rounded."""
        return (math.exp(self.low), math.exp(self.high)) if self.is_log else (self.low, self.high)

    @cached_property
    def options(self) -> tuple[int, ...]:
        """The options of a choice that are ever drawn: those with a probability above 0."""
        return tuple(option for option, p in enumerate(self.probabilities) if p > 0)

    @cached_property
    def steps(self) -> tuple[int, int] | None:
        """(First, last) k of a bounded quantised kind's values k * q; None for all others."""
        if self.q is None or not self.is_bounded:
            return None
        # Of a value on whose cell a bound lies, nothing is in the range: quniform(0.5, 4.5, 1) draws 1 to 4.
        low, high = self.bounds
        return math.floor(low / self.q + 0.5 + _TOLERANCE), math.ceil(high / self.q - 0.5 - _TOLERANCE)

    @cached_property
    def count(self) -> int | None:
        """How many values there are; None if there is no end to them."""
        if self.is_categorical:
            return len(self.probabilities)
        return None if self.steps is None else self.steps[1] - self.steps[0] + 1

    def to_latent(self, values: Rows) -> Rows:
        """Latent coordinates of values; of a choice the option itself. Even a quantised 0 has a logarithm."""
        if self.is_categorical:
            return values
        t = values
        if self.is_log:
            floor = 0.25 * self.q if self.q is not None else 0.0
            with np.errstate(divide="ignore", invalid="ignore"):
                t = np.log(np.maximum(values, floor))
        if self.is_bounded:
            return clipped((t - self.low) / (self.high - self.low), 0.0, 1.0)
        return (t - self.mu) / self.sigma

    def from_latent(self, latent: Rows) -> Rows:
        """Values at latent coordinates, rounded to the step of a quantised kind as hyperopt rounds."""
        if self.is_categorical:
            return latent
        if self.is_bounded:
            t = self.low + clipped(latent, 0.0, 1.0) * (self.high - self.low)
        else:
            t = self.mu + latent * self.sigma
            t = clipped(t, *_EXPONENTS) if self.is_log else t
        values = np.exp(t) if self.is_log else t
        if self.q is None:
            return values
        k = np.round(values / self.q)
        return (clipped(k, *self.steps) if self.steps is not None else k) * self.q + 0.0  # Never -0.0.

    def cell(self, values: Rows) -> tuple[Rows, Rows]:
        """The ends, in latent coordinates, of what is rounded to each value of a quantised kind."""
        assert self.q is not None
        ends = []
        for t in (values - 0.5 * self.q, values + 0.5 * self.q):
            if self.is_log:
                with np.errstate(divide="ignore", invalid="ignore"):
                    t = np.log(np.maximum(t, 0.0))
            if self.is_bounded:
                ends.append(clipped((t - self.low) / (self.high - self.low), 0.0, 1.0))
            else:
                ends.append((t - self.mu) / self.sigma)
        return ends[0], ends[1]

    def sample(self, rng: np.random.Generator, size: int) -> Rows:
        """Values drawn from the prior, (size,)."""
        if self.is_categorical:
            # As rng.choice(p=...) draws, which checks and sums the probabilities anew each time.
            return np.searchsorted(self._cumulative, rng.uniform(size=size), side="right").astype(float)
        latent = rng.uniform(size=size) if self.is_bounded else rng.standard_normal(size)
        return self.from_latent(latent)

    @cached_property
    def _cumulative(self) -> Rows:
        sums = np.cumsum(self.probabilities)
        return np.asarray(sums / sums[-1])

    def is_active_in(self, row: Sequence[float]) -> bool:
        """Whether it is active in one row, of which the columns before it are there."""
        return self.conditions == ALWAYS or any(
            all(row[parent] == option for parent, option in conjunction) for conjunction in self.conditions
        )

    def check(self, value: Any) -> float:
        """Return the value as a float. Raises OutsideSpace with the reason."""
        if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
            raise OutsideSpace(f"{self.label} is {value!r:.80}; it must be {self.described}")
        number = float(value)
        if not math.isfinite(number) or not self._holds(number):
            raise OutsideSpace(f"{self.label} is {value!r}; it must be {self.described}")
        return number if self.q is None else round(number / self.q) * self.q + 0.0

    def _holds(self, number: float) -> bool:
        if self.q is not None:
            slack = _TOLERANCE * max(self.q, abs(number))
            if abs(round(number / self.q) * self.q - number) > slack:
                return False
        if self.is_categorical:
            return number.is_integer() and 0 <= number < len(self.probabilities)
        if self.steps is not None:
            assert self.q is not None
            return self.steps[0] <= round(number / self.q) <= self.steps[1]
        if self.is_log and (number < 0 or (self.q is None and number == 0)):
            return False
        t = math.log(number) if self.is_log and number > 0 else number
        if not self.is_bounded:
            return True
        margin = _TOLERANCE * max(float(self.is_log), abs(self.low), abs(self.high))
        return self.low - margin <= t <= self.high + margin

    @property
    def described(self) -> str:
        """What a value must be, for a sentence."""
        if self.is_categorical:
            return f"the index of an option, 0 to {len(self.probabilities) - 1}"
        if self.steps is not None:
            assert self.q is not None
            step = "a whole number" if self.q == 1 else f"a multiple of {self.q:g}"
            return f"{step} from {self.steps[0] * self.q:g} to {self.steps[1] * self.q:g}"
        if self.is_bounded:
            low, high = self.bounds
            return f"a number from {low:g} to {high:g}"
        multiple = "" if self.q is None else f", a multiple of {self.q:g}"
        return ("a number above 0" if self.is_log and self.q is None else "a number") + multiple


@dataclass(frozen=True, kw_only=True)
class Space:
    """The columns of a space; the column of a choice stands before those of its branches."""

    columns: tuple[Column, ...]

    @cached_property
    def index(self) -> dict[str, int]:
        """Column number by label."""
        return {column.label: number for number, column in enumerate(self.columns)}

    def is_active(self, rows: Rows, number: int) -> NDArray[np.bool_]:
        """In which rows (n, columns) a column is active, (n,); the columns before it are filled in."""
        conditions = self.columns[number].conditions
        if conditions == ALWAYS:
            return np.ones(len(rows), dtype=bool)
        active = np.zeros(len(rows), dtype=bool)
        for conjunction in conditions:
            holds = np.ones(len(rows), dtype=bool)
            for parent, option in conjunction:
                holds &= rows[:, parent] == option
            active |= holds
        return active

    def is_possible(self, row: Rows) -> bool:
        """False for a row (columns,) with an option of probability 0."""
        return not any(
            column.is_categorical and value == value and value not in column.options
            for column, value in zip(self.columns, row.tolist(), strict=True)
        )

    def sample(self, rng: np.random.Generator, size: int) -> Rows:
        """Rows drawn from the prior, (size, columns)."""
        rows = np.full((size, len(self.columns)), np.nan)
        for number, column in enumerate(self.columns):
            active = self.is_active(rows, number)
            rows[active, number] = column.sample(rng, size)[active]
        return rows

    def row(self, point: Mapping[str, Any]) -> Rows:
        """The row of a point (label to value; of a choice the index of its option), (columns,).

        Raises OutsideSpace for an unknown label, a value that is missing, superfluous or outside.
        """
        for label in point:
            if label not in self.index:
                near = difflib.get_close_matches(str(label), self.index, n=1, cutoff=0.0)
                raise OutsideSpace(f"the space has no parameter {label!r}; the nearest is {near[0]!r}")
        row: list[float] = []  # A row alone is quicker without NumPy.
        for column in self.columns:
            active = column.is_active_in(row)
            if active and column.label not in point:
                raise OutsideSpace(f"{column.label} is missing; it must be {column.described}")
            if not active and column.label in point:
                raise OutsideSpace(f"{column.label} is given, but the options chosen do not use it")
            row.append(column.check(point[column.label]) if active else math.nan)
        return np.array(row)

    def point(self, row: Rows) -> dict[str, int | float]:
        """The active parameters of a row (columns,), as they stand in a trial's document."""
        return {
            column.label: int(value) if column.is_integer else float(value)
            for column, value in zip(self.columns, row, strict=True)
            if not math.isnan(value)
        }
