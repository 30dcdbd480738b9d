"""What an algorithm returns, looked at before it becomes a job."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hyperfarm.controller.compiling import compile_space
from hyperfarm.controller.space import OutsideSpace, Space
from hyperfarm.errors import HyperfarmError, UsageError
from hyperfarm.jobs import JobDoc
from hyperfarm.sources import place_of

if TYPE_CHECKING:
    from hyperfarm.controller.algorithms import Suggest


ON_COLUMNS = ("tpe", "hyperopt-tpe", "atpe")
"""The names of algorithms that need a space which `compile_space` takes; others may do without."""


class Checked:
    """An algorithm with hyperopt's signature whose documents are what they must be.

    Raises UsageError, in a sentence that names the algorithm and the parameter, for anything but a list of at most
    one job document for each id, in their order, each holding a point of the space; and for nothing at the start.
    A label that a document leaves out is added as inactive. In a space that only hyperopt understands
    (`compile_space` does not) values are not looked at.
    """

    def __init__(self, name: str, function: Suggest) -> None:
        self.name, self.function = name, function
        self._spaces: weakref.WeakKeyDictionary[Any, Space | None] = weakref.WeakKeyDictionary()

    def prepare(self, domain: Any) -> None:
        """Raise UsageError where the algorithm cannot work on the space at all; before anything is stored."""
        if self.name in ON_COLUMNS:
            compile_space(domain.expr)
        prepare = getattr(self.function, "prepare", None)
        if prepare is not None:
            prepare(domain)

    def budget(self, space: Any) -> int | None:
        """After how many trials the algorithm ends by itself; None if it does not."""
        budget = getattr(self.function, "budget", None)
        return None if budget is None else budget(space)

    def __call__(self, new_ids: list[int], domain: Any, trials: Any, seed: int) -> list[JobDoc]:
        """The algorithm's documents; none of them, after the first, means that it has nothing left to try."""
        docs: Any
        try:
            docs = self.function(new_ids, domain, trials, seed)
        except HyperfarmError:
            raise
        except Exception as error:
            raise self._wrong(f"raised {type(error).__name__}: {error}{place_of(error)}") from error
        if docs is None:
            docs = []
        if not isinstance(docs, (list, tuple)):
            raise self._wrong(f"must return a list of job documents, not {type(docs).__name__}")
        if new_ids and not docs and not len(trials):
            raise self._wrong("returned no job document at all, not even a first one")
        if len(docs) > len(new_ids):
            asked, got = len(new_ids), len(docs)
            raise self._wrong(
                f"returned {got} job documents where {asked} {'was' if asked == 1 else 'were'} asked for"
            )
        space = self._space(domain)
        for tid, doc in zip(new_ids, docs, strict=False):
            self._check(doc, tid, domain, space)
            if doc.get("exp_key") != trials._exp_key:
                raise self._wrong(f"returned a job document of another experiment, {doc.get('exp_key')!r}")
        return list(docs)

    def _check(self, doc: Any, tid: int, domain: Any, space: Space | None) -> None:
        whole = isinstance(doc, Mapping) and {"state", "result"} <= doc.keys()
        if not whole or not isinstance(doc.get("misc"), Mapping):
            raise self._wrong(f"returned {doc!r:.80}, which is no job document (see Trials.new_trial_docs)")
        misc = doc["misc"]
        for where in (doc, misc):
            if where.get("tid") != tid:
                raise self._wrong(
                    f"returned a job document with the id {where.get('tid')!r}, but {tid} was asked for"
                )
        idxs, vals = (self._columns(misc, key, domain) for key in ("idxs", "vals"))
        for label, values in vals.items():
            if len(idxs[label]) != len(values):
                raise self._wrong(f"gives {label} {len(values)} values, but {len(idxs[label])} ids")
            if idxs[label] not in ([], [tid]):
                raise self._wrong(f"gives {label} the id {idxs[label][0]!r}, but {tid} was asked for")
        if space is not None:
            try:
                space.row({label: values[0] for label, values in vals.items() if values})
            except OutsideSpace as error:
                raise self._wrong(f"returned a point outside the space: {error}") from error

    def _columns(self, misc: Any, key: str, domain: Any) -> dict[str, list[Any]]:
        """`idxs` or `vals` with all labels of the space, each with a list of at most one entry."""
        columns = misc.get(key)
        if not isinstance(columns, dict):
            raise self._wrong(f"returned a job document whose misc.{key} is {columns!r:.80} and no dict")
        for label in domain.params:
            columns.setdefault(label, [])
        for label, values in columns.items():
            if label not in domain.params:
                raise self._wrong(f"returned a point with {label!r}, which the space does not have")
            if not hasattr(values, "__len__") or isinstance(values, str) or len(values) > 1:
                raise self._wrong(
                    f"gives {label} as {values!r:.80}; it must be a list with one value, or an empty one"
                )
            columns[label] = list(values)
        return columns

    def _space(self, domain: Any) -> Space | None:
        if domain not in self._spaces:
            try:
                self._spaces[domain] = compile_space(domain.expr)
            except UsageError:
                self._spaces[domain] = None
        return self._spaces[domain]

    def _wrong(self, what: str) -> UsageError:
        return UsageError(f"the search algorithm {self.name} {what}")
