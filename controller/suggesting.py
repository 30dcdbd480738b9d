"""One new job of a search: a point that the caller wants tried, or what the algorithm suggests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hyperfarm.controller.algorithms import Suggest
from hyperfarm.controller.experiment import Experiment
from hyperfarm.controller.points import Point, doc_of_point
from hyperfarm.controller.warm_start import TrialsWithEvidence
from hyperfarm.jobs import JobDoc
from hyperfarm.mongo import Document
from hyperfarm.trials import MongoTrials


class Suggester:
    """Makes the jobs of one experiment.

    `points` are tried first. `evidence` are successful trials of other experiments: the algorithm sees them before
    the experiment's own. `fields` are further fields of each job.
    """

    def __init__(
        self,
        *,
        trials: MongoTrials,
        experiment: Experiment,
        domain: Any,
        algo: Suggest,
        fields: Document,
        points: Sequence[Point] = (),
        evidence: Sequence[JobDoc] = (),
    ) -> None:
        self.experiment, self.domain, self.algo = experiment, domain, algo
        self.fields, self.points = fields, points
        self._view = TrialsWithEvidence(trials, evidence) if evidence else None
        self._trials = trials if self._view is None else self._view

    def suggest(self, tid: int, slot: int) -> JobDoc | None:
        """One new job document, or None when the algorithm has nothing left to try.

        The caller's points take the first slots: whatever dies in between, each is tried once.
        """
        if slot < len(self.points):
            doc = doc_of_point(self._trials, self.domain, tid, self.points[slot])
        else:
            if self._view is not None:
                self._view.refresh()
            docs = self.algo([tid], self.domain, self._trials, slot_seed(self.experiment.seed, slot))
            if not docs:
                return None
            doc = docs[0]
        plain_vals(doc["misc"])
        return {**doc, "slot": slot, "attempt": 0, **self.fields}


def slot_seed(seed: int, slot: int) -> int:
    """The seed of one suggestion: a function of the experiment's seed and the slot alone."""
    return int(np.random.SeedSequence([seed, slot]).generate_state(1)[0])


def plain_vals(misc: Document) -> None:
    """Make the values and ids of a suggestion plain numbers (algorithms return NumPy's)."""
    for column in ("idxs", "vals"):
        for values in misc[column].values():
            values[:] = [value.item() if isinstance(value, np.generic) else value for value in values]
