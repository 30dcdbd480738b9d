"""What hyperopt's TPE takes from a history: which trials count, and which of them were good."""

from __future__ import annotations

import math
import operator
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hyperfarm.controller.history import History
from hyperfarm.controller.space import Rows
from hyperfarm.jobs import JobDoc, JobState

Ids = NDArray[np.int64]
Mask = NDArray[np.bool_]

_MOST_GOOD = 25
"""hyperopt's `DEFAULT_LF`, which is also the cap of `ap_split_trials`."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Trials (n,) as hyperopt's TPE counts them, in ascending order of `ids`.

    `ids` are those of the trials, or of the ones that they are copies of (`misc.from_tid`), each only once; `tids`
    are always their own. A trial without a loss has infinity; trials that ended in an error are left out, and so
    are losses that are not a number. `rows` are (n, columns).
    """

    ids: Ids
    tids: Ids
    losses: Rows
    rows: Rows
    is_running: Mask

    @property
    def finished(self) -> int:
        """How many trials are not running."""
        return int(np.count_nonzero(~self.is_running))

    def split(self, gamma: float) -> tuple[Mask, Mask]:
        """Which trials show what is good, and which what is bad, (n,) each.

        Good are the min(ceil(gamma * sqrt(m)), 25) lowest losses of the m finished trials (`ap_split_trials`). As
        there, a trial's own id is looked up among `ids`, so that a copy shows neither, unless others copied it.
        """
        candidates = np.flatnonzero(~self.is_running)
        size = min(math.ceil(gamma * math.sqrt(len(candidates))), _MOST_GOOD)
        is_good = np.zeros(len(self.ids), dtype=bool)
        # The same sort of the same losses as hyperopt's, so that equal losses fall into the same order.
        is_good[candidates[np.argsort(self.losses[candidates])[:size]]] = True
        place = np.minimum(np.searchsorted(self.ids, self.tids), len(self.ids) - 1)
        is_known = self.ids[place] == self.tids
        return is_good[place] & is_known, ~is_good[place] & is_known


class _Reports:
    """What is read in the documents of finished trials, once in each."""

    def __init__(self) -> None:
        self.docs: list[JobDoc] = []
        self.ids: Ids = np.empty(0, dtype=np.int64)
        self.losses: Rows = np.empty(0)

    def update(self, docs: list[JobDoc]) -> None:
        same = [*map(operator.is_, self.docs, docs), False].index(False)
        self.ids = np.concatenate([self.ids[:same], _ids(docs[same:])])
        self.losses = np.concatenate([self.losses[:same], [_loss(doc) for doc in docs[same:]]])
        self.docs = docs


def _ids(docs: Sequence[JobDoc]) -> Ids:
    return np.array([doc["misc"].get("from_tid", doc["tid"]) for doc in docs], dtype=np.int64)


def _loss(doc: JobDoc) -> float:
    """A loss as hyperopt reads it, also that of a trial that failed; NaN where the trial does not count."""
    if doc["state"] == JobState.ERROR:
        return math.nan
    loss = doc["result"].get("loss")
    return math.inf if loss is None else float(loss)


_reports: weakref.WeakKeyDictionary[History, _Reports] = weakref.WeakKeyDictionary()


def evidence_of(history: History) -> Evidence:
    """The evidence in a history as it is now; costs a look at each document, and more for each that is new."""
    reports = _reports.setdefault(history, _Reports())
    reports.update(history.docs)
    running = history.running_docs
    ids = np.concatenate([reports.ids, _ids(running)])
    tids = np.concatenate([history.tids, np.array([doc["tid"] for doc in running], dtype=np.int64)])
    losses = np.concatenate([reports.losses, np.full(len(running), np.inf)])
    rows = np.concatenate([history.rows, history.running])
    is_running = np.arange(len(ids)) >= len(reports.ids)
    order = np.argsort(tids, kind="stable")
    is_plain = np.array_equal(ids, tids)
    kept = order[~np.isnan(losses[order])] if is_plain else _best_copies(order, ids, losses)
    return Evidence(
        ids=ids[kept], tids=tids[kept], losses=losses[kept], rows=rows[kept], is_running=is_running[kept]
    )


def _best_copies(order: NDArray[np.intp], ids: Ids, losses: Rows) -> NDArray[np.intp]:
    """For each id the trial of the lowest loss, of equal ones the last; none where the first loss is NaN."""
    lowest: dict[int, float] = {}
    best: dict[int, int] = {}
    for number in order:
        one, loss = int(ids[number]), float(losses[number])
        if loss <= lowest.setdefault(one, loss):
            lowest[one], best[one] = loss, int(number)
    return np.array([number for _, number in sorted(best.items())], dtype=np.intp)
