"""hyperopt's `early_stop_fn`, for trials that run side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from hyperopt.base import Trials

from hyperfarm.jobs import JobDoc, is_ok
from hyperfarm.values import is_number


class EarlyStop:
    """Calls `early_stop_fn(trials, *args) -> (stop, args)` once for each trial that ends with a loss.

    Functions like hyperopt's `no_progress_loss` look at the last trial and count their calls. So `trials` holds
    the trials with a loss alone, in the order in which they ended, the one that it is called for as the last. A
    search that is carried on begins with the first trial again: it stops where it would have stopped.
    """

    def __init__(self, early_stop_fn: Callable[..., Any], exp_key: str | None) -> None:
        self._fn = early_stop_fn
        self._args: list[Any] = []
        self._counted: set[int] = set()
        self._trials = Trials(exp_key=exp_key)

    def says_stop(self, docs: Iterable[JobDoc]) -> bool:
        """True when the function wants to stop after one of the trials that have ended since the last call."""
        fresh = [doc for doc in docs if doc["tid"] not in self._counted and is_ok(doc)]
        for doc in sorted(fresh, key=_when):
            if not is_number(doc["result"].get("loss")):
                continue
            self._counted.add(doc["tid"])
            self._trials._dynamic_trials.append(doc)
            self._trials._trials.append(doc)
            stop, self._args = self._fn(self._trials, *self._args)
            if stop:
                return True
        return False


def _when(doc: JobDoc) -> tuple[bool, Any, int]:
    """The order of ending by the database's clock; trials that a program has brought along have no time."""
    ended = doc.get("refresh_time")
    return ended is not None, ended or 0, doc["tid"]
