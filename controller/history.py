"""The trials of a search as rows of numbers: what the algorithms learn from."""

from __future__ import annotations

import itertools
import logging
import math
import operator
import weakref
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyperfarm.controller.compiling import compile_space
from hyperfarm.controller.grid import Grid
from hyperfarm.controller.space import OutsideSpace, Rows, Space
from hyperfarm.jobs import JobDoc, JobState, is_ok
from hyperfarm.values import is_number

log = logging.getLogger(__name__)
_OPEN = (JobState.NEW, JobState.RUNNING)


class History:
    """The finished and the running trials of one search, both ordered by trial id.

    A trial is turned into a row once. `tids` (n,), `rows` (n, columns) and `losses` (n,) are those of the finished
    trials, with infinity as the loss of one that failed, was pruned, or has no number as its loss; `running`
    (m, columns) are those that wait or run. `docs` and `running_docs` are the documents behind the rows. Cancelled
    trials are left out, and so are those that today's space does not hold: each is named in the log once. The
    arrays and lists are replaced, never changed.
    """

    def __init__(self, space: Space) -> None:
        self.space = space
        self._named: set[int] = set()
        self._clear()

    def _clear(self) -> None:
        width = len(self.space.columns)
        self.tids: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self.rows: Rows = np.empty((0, width))
        self.losses: Rows = np.empty(0)
        self.docs: list[JobDoc] = []
        self.running: Rows = np.empty((0, width))
        self._keys: set[bytes] = set()
        self.running_docs: list[JobDoc] = []
        self._finished: dict[int, JobDoc] = {}
        self._front: list[JobDoc] = []
        self._open: dict[int, tuple[JobDoc, Rows | None]] = {}

    @cached_property
    def grid(self) -> Grid | None:
        """The points of a finite space; None if there is no end to them."""
        return None if any(column.count is None for column in self.space.columns) else Grid(self.space)

    def update(self, docs: Sequence[JobDoc]) -> None:
        """Take in what has changed; `docs` are all trials of the search. A finished document never changes in place.

        Costs one look at each document, and a row for each that is new.
        """
        fresh: list[JobDoc] = []
        still_open: dict[int, tuple[JobDoc, Rows | None]] = {}
        unchanged = self._same_front(docs)
        for doc in itertools.islice(docs, unchanged, None):
            tid = doc["tid"]
            if self._finished.get(tid) is doc:
                unchanged += 1
            elif doc["state"] in _OPEN:
                before = self._open.get(tid)
                still_open[tid] = before if before is not None and before[0] is doc else (doc, self._row(doc))
            elif doc["state"] != JobState.CANCELLED:
                fresh.append(doc)
        if unchanged < len(self._finished):  # One was deleted, or run again: begin anew.
            fresh = [*self._finished_now(docs)]
            self._clear()
        self._open = still_open
        there = [(doc, row) for _, (doc, row) in sorted(still_open.items()) if row is not None]
        self.running = np.array([row for _, row in there]).reshape(len(there), len(self.space.columns))
        self.running_docs = [doc for doc, _ in there]
        self._take(fresh)
        self._grow_front(docs)

    def _same_front(self, docs: Sequence[JobDoc]) -> int:
        """How many finished documents the list begins with, as it did at the last update: those need no look."""
        front = self._front
        if len(docs) < len(front) or not all(map(operator.is_, docs, front)):
            front.clear()
        return len(front)

    def _grow_front(self, docs: Sequence[JobDoc]) -> None:
        known = self._finished
        for doc in itertools.islice(docs, len(self._front), None):
            if known.get(doc["tid"]) is not doc:
                return
            self._front.append(doc)

    @staticmethod
    def _finished_now(docs: Sequence[JobDoc]) -> Iterable[JobDoc]:
        return (doc for doc in docs if doc["state"] in (JobState.DONE, JobState.ERROR))

    def _take(self, fresh: list[JobDoc]) -> None:
        """Add finished trials in the order of their ids."""
        self._finished.update((doc["tid"], doc) for doc in fresh)
        found = [(doc, doc["tid"], row, loss_of(doc)) for doc in fresh if (row := self._row(doc)) is not None]
        if not found:
            return
        docs, tids, rows, losses = zip(*found, strict=True)
        self.docs = [*self.docs, *docs]
        self.tids = np.concatenate([self.tids, np.array(tids, dtype=np.int64)])
        self.rows = np.concatenate([self.rows, np.array(rows)])
        self._keys.update(row.tobytes() for row in rows)
        self.losses = np.concatenate([self.losses, np.array(losses)])
        if np.any(np.diff(self.tids) < 0):
            order = np.argsort(self.tids, kind="stable")
            self.tids, self.rows, self.losses = self.tids[order], self.rows[order], self.losses[order]
            self.docs = [self.docs[place] for place in order]

    def holds(self, row: Rows) -> bool:
        """True when a finished trial has tried this row (columns,)."""
        return row.tobytes() in self._keys

    def _row(self, doc: JobDoc) -> Rows | None:
        point = {label: values[0] for label, values in doc["misc"]["vals"].items() if len(values)}
        try:
            return self.space.row(point)
        except OutsideSpace as error:
            if doc["tid"] not in self._named:
                self._named.add(doc["tid"])
                log.warning("trial %s is kept, but the search learns nothing from it: %s", doc["tid"], error)
            return None


def loss_of(doc: JobDoc) -> float:
    """The loss of a finished trial; infinity when it failed, was pruned, or has no number as its loss."""
    loss: Any = doc["result"].get("loss")
    return float(loss) if is_ok(doc) and is_number(loss) else math.inf


_histories: weakref.WeakKeyDictionary[Any, tuple[Any, History]] = weakref.WeakKeyDictionary()


def history_of(trials: Any, domain: Any) -> History:
    """The history of a hyperopt Trials object over a hyperopt Domain, up to date; kept as long as `trials` lives.

    Raises UsageError for a space that cannot be compiled (`compile_space`).
    """
    known = _histories.get(trials)
    if known is None or known[0] is not domain:
        known = (domain, History(compile_space(domain.expr)))
        _histories[trials] = known
    # `trials.trials` leaves out those that ended in an error.
    docs, exp_key = trials._dynamic_trials, trials._exp_key
    known[1].update(docs if exp_key is None else [doc for doc in docs if doc["exp_key"] == exp_key])
    return known[1]
