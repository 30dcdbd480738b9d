"""`grid`: all combinations of a space's values, in a fixed order.

A conditional parameter multiplies only within the branches that use it, and is counted once where several share it.
The points are numbered, the first parameter changing slowest; a point is made from its number and the number found
from a point without going through the others, so that the size of a grid costs nothing.
"""

from __future__ import annotations

import bisect
import math
import weakref
from collections import Counter
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from hyperfarm.controller.compiling import compile_space
from hyperfarm.controller.points import doc_of_point
from hyperfarm.controller.space import Column, Conjunction, OutsideSpace, Rows, Space
from hyperfarm.errors import UsageError
from hyperfarm.jobs import JobDoc, JobState

_TOLERANCE = 1e-9
_Conditions = tuple[frozenset[Conjunction], ...]
_MET: frozenset[Conjunction] = frozenset([()])


class _Axis:
    """The values of one column in ascending order, by number. Options with probability 0 are not among them."""

    def __init__(self, column: Column, points: int | None) -> None:
        self._listed: list[float] = []
        self._first, self._q = 0, 1.0
        if column.steps is not None:
            assert column.q is not None
            self._first, self._q = column.steps[0], column.q
            self.count = column.steps[1] - column.steps[0] + 1
        else:
            self._listed = _spread(column, points)
            self.count = len(self._listed)

    def value(self, number: int) -> float:
        return self._listed[number] if self._listed else (self._first + number) * self._q + 0.0

    def find(self, value: float) -> int | None:
        """The number of a value; None if it is not on the grid."""
        if not self._listed:
            return round(value / self._q) - self._first
        number = bisect.bisect_left(self._listed, value - _TOLERANCE * abs(value))
        if number < self.count and math.isclose(self._listed[number], value, rel_tol=_TOLERANCE):
            return number
        return None


def _spread(column: Column, points: int | None) -> list[float]:
    if column.is_categorical:
        return [float(option) for option in column.options]
    assert points is not None
    if not column.is_bounded:
        latent = [NormalDist().inv_cdf((number + 0.5) / points) for number in range(points)]
    elif points == 1:
        latent = [0.5]
    else:
        latent = [number / (points - 1) for number in range(points)]
    values = column.from_latent(np.array(latent))
    return sorted(set(values.tolist()))  # Steps of a normal kind may be wider than the quantiles.


class _Node:
    """The points that begin alike: what their next column may be, and how many they are.

    `following` has one node for each option of an active choice, else one for all values.
    """

    __slots__ = ("following", "is_active", "size")

    def __init__(self, is_active: bool) -> None:
        self.is_active = is_active
        self.following: list[_Node] = []
        self.size = 1


class Grid:
    """The points of a space, numbered from 0 to `size` - 1.

    Continuous columns have `points` values, equally spaced in the latent coordinate: bounded kinds with both ends
    (geometric where logarithmic), normal kinds at the quantiles (i + 0.5) / points. Raises UsageError, naming the
    continuous parameters, for a space that has some when `points` is None.
    """

    def __init__(self, space: Space, points: int | None = None) -> None:
        endless = [column.label for column in space.columns if column.count is None]
        if endless and points is None:
            one = len(endless) == 1
            raise UsageError(
                f"the grid has no end: {', '.join(endless)} {'is' if one else 'are'} continuous; say --grid-points N "
                f"(algo='grid:N') for N values of {'it' if one else 'each'}, or use quniform, randint or choice"
            )
        if points is not None and points < 1:
            raise UsageError(f"--grid-points is {points}; it must be 1 or more")
        self.space = space
        self._axes = [_Axis(column, points) for column in space.columns]
        self._seen: dict[bytes, int | None] = {}
        self._root = self._grown()
        self.size = self._root.size

    def _grown(self) -> _Node:
        """The root of the graph of all ways through the columns; ways with the same future share their nodes."""
        columns = self.space.columns
        start: _Conditions = tuple(frozenset(column.conditions) for column in columns)
        root = _Node(() in start[0])
        layers = [{start: root}]
        for number, (column, axis) in enumerate(zip(columns, self._axes, strict=True)):
            following: dict[_Conditions, _Node] = {}
            for conditions, node in layers[-1].items():
                if column.is_categorical:
                    options = [int(axis.value(one)) for one in range(axis.count)] if node.is_active else [-1]
                    futures = [_assume(conditions[1:], number, option) for option in options]
                else:
                    futures = [conditions[1:]]
                for future in futures:
                    if future not in following:
                        following[future] = _Node(bool(future) and () in future[0])
                    node.following.append(following[future])
            layers.append(following)
        for number in reversed(range(len(columns))):
            for node in layers[number].values():
                node.size = sum(after.size for after in node.following)
                if node.is_active and not columns[number].is_categorical:
                    node.size *= self._axes[number].count
        return root

    def row(self, index: int) -> Rows:
        """The point with this number, (columns,). Raises IndexError outside 0 to `size` - 1."""
        if not 0 <= index < self.size:
            raise IndexError(f"the grid has no point {index}")
        row = np.full(len(self._axes), np.nan)
        node = self._root
        for number, (column, axis) in enumerate(zip(self.space.columns, self._axes, strict=True)):
            chosen = 0
            if node.is_active and column.is_categorical:
                while index >= node.following[chosen].size:
                    index -= node.following[chosen].size
                    chosen += 1
                row[number] = axis.value(chosen)
            elif node.is_active:
                step, index = divmod(index, node.following[0].size)
                row[number] = axis.value(step)
            node = node.following[chosen]
        return row

    def index(self, row: Rows) -> int | None:
        """The number of a point of the space, (columns,); None if it is not on the grid."""
        index, node = 0, self._root
        for column, axis, value in zip(self.space.columns, self._axes, row.tolist(), strict=True):
            chosen = 0
            if node.is_active:
                found = axis.find(value)
                if found is None:
                    return None
                if column.is_categorical:
                    chosen = found
                    index += sum(before.size for before in node.following[:chosen])
                else:
                    index += found * node.following[0].size
            node = node.following[chosen]
        return index

    def index_seen(self, row: Rows) -> int | None:
        """As `index`, remembered: the rows of a history come again and again."""
        key = row.tobytes()
        if key not in self._seen:
            self._seen[key] = self.index(row)
        return self._seen[key]

    def untried(self, rows: Rows, rng: np.random.Generator) -> Rows | None:
        """A point, (columns,), that is not in `rows` (n, columns); None if none is left.

        Each is as likely. Costs a look at every row, and at every point when more than half of them are taken.
        """
        taken = {index for row in rows if (index := self.index_seen(row)) is not None}
        if len(taken) == self.size:
            return None
        if 2 * len(taken) > self.size:
            left = np.setdiff1d(np.arange(self.size), np.fromiter(taken, dtype=np.int64))
            return self.row(int(rng.choice(left)))
        while True:
            index = int(rng.random() * 2**53) * self.size >> 53
            if index not in taken:
                return self.row(index)


def _assume(conditions: _Conditions, number: int, option: int) -> _Conditions:
    """What is left of each condition when the choice in column `number` has taken `option` (-1: it is inactive)."""
    left = []
    for condition in conditions:
        rest = frozenset(
            tuple(one for one in conjunction if one[0] != number)
            for conjunction in condition
            if all(one[1] == option for one in conjunction if one[0] == number)
        )
        left.append(_MET if () in rest else rest)
    return tuple(left)


# ---- the algorithm -------------------------------------------------------------------------------------


class _Progress:
    """Which points of the grid have a trial, kept up to date at the cost of one look at each trial."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self._known: dict[int, JobDoc] = {}
        self._index_of: dict[int, int | None] = {}
        self._taken: Counter[int] = Counter()
        self._low_water = 0

    def update(self, docs: list[JobDoc]) -> None:
        cancelled, known = int(JobState.CANCELLED), self._known
        there = [doc for doc in docs if doc["state"] != cancelled]
        fresh = [doc for doc in there if known.get(doc["tid"]) is not doc]
        if len(there) - len(fresh) < len(known):  # Some have changed, or are gone.
            current = {doc["tid"]: doc for doc in there}
            for tid in [tid for tid, doc in known.items() if current.get(tid) is not doc]:
                del known[tid]
                self._free(self._index_of.pop(tid))
        for doc in fresh:
            index = self._index(doc)
            known[doc["tid"]], self._index_of[doc["tid"]] = doc, index
            if index is not None:
                self._taken[index] += 1

    def _free(self, index: int | None) -> None:
        if index is not None:
            self._taken[index] -= 1
            if not self._taken[index]:
                del self._taken[index]
                self._low_water = min(self._low_water, index)

    def _index(self, doc: JobDoc) -> int | None:
        point = {label: values[0] for label, values in doc["misc"]["vals"].items() if len(values)}
        try:
            return self.grid.index(self.grid.space.row(point))
        except OutsideSpace:
            return None

    def free(self, count: int) -> list[int]:
        """The first `count` points that have no trial, fewer if fewer are left."""
        found: list[int] = []
        index = self._low_water
        while len(found) < count and index < self.grid.size:
            if index not in self._taken:
                found.append(index)
            index += 1
        self._low_water = found[0] if found else index
        return found


_searches: weakref.WeakKeyDictionary[Any, tuple[Any, int | None, _Progress]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True, kw_only=True)
class GridSearch:
    """The algorithm, with hyperopt's signature: the first points that no trial has, whatever became of it.

    `points` is the number of values of a continuous parameter. The point of a cancelled or deleted trial is free
    again. The seed does not matter.
    """

    points: int | None = None

    def grid(self, space: Any) -> Grid:
        """The grid of a hyperopt space. Raises UsageError as `Grid` and `compile_space` do."""
        return Grid(compile_space(space), self.points)

    def prepare(self, domain: Any) -> None:
        """Raise UsageError for a space that has no grid."""
        self.grid(domain.expr)

    def budget(self, space: Any) -> int:
        """How many trials the whole grid takes."""
        return self.grid(space).size

    def __call__(self, new_ids: list[int], domain: Any, trials: Any, seed: int) -> list[JobDoc]:
        """Return a job document for each id, fewer when fewer points are left."""
        known = _searches.get(trials)
        if known is None or known[0] is not domain or known[1] != self.points:
            known = (domain, self.points, _Progress(self.grid(domain.expr)))
            _searches[trials] = known
        progress = known[2]
        docs, exp_key = trials._dynamic_trials, trials._exp_key
        progress.update(docs if exp_key is None else [doc for doc in docs if doc["exp_key"] == exp_key])
        space = progress.grid.space
        return [
            doc_of_point(trials, domain, tid, space.point(progress.grid.row(index)))
            for tid, index in zip(new_ids, progress.free(len(new_ids)), strict=False)
        ]
