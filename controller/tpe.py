"""hyperopt's TPE, not fooled by the trials that are still running.

hyperopt counts running trials towards its start-up trials and towards the size of the "good" part of the
history. With many running, early on, the good part is then filled up with trials that have no loss yet (ties
at infinity). Here they stay what they are best at being, evidence in the "bad" density that keeps new points
away from them, and count for neither. With nothing running the point is exactly hyperopt's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from hyperopt import rand, tpe

from hyperfarm.jobs import JobDoc, JobState

N_STARTUP = 20
GAMMA = 0.25
"""hyperopt's own constants: start-up trials, factor of the good part's size."""


def suggest(
    new_ids: list[int],
    domain: Any,
    trials: Any,
    seed: int,
    prior_weight: float = 1.0,
    n_startup_jobs: int = N_STARTUP,
    n_EI_candidates: int = 24,
    gamma: float = GAMMA,
    verbose: bool = False,
) -> list[JobDoc]:
    """Suggest points for `new_ids`; arguments and result are those of `hyperopt.tpe.suggest`.

    The size of the good part is min(ceil(gamma * sqrt(n)), 25) as in hyperopt's `ap_split_trials`, with n
    the number of trials that have a result. hyperopt computes it from all trials, N; so it is called with
    the gamma that makes its formula give our size.
    """
    total = _counted(trials.trials)
    finished = _counted(doc for doc in trials.trials if doc["state"] == JobState.DONE)
    if finished < n_startup_jobs:
        docs: list[JobDoc] = rand.suggest(new_ids, domain, trials, seed)
        return docs
    if finished < total:
        good = math.ceil(gamma * math.sqrt(finished))
        # The half keeps ceil() from rounding up on the last bit of a float.
        gamma = max(good - 0.5, 0.0) / math.sqrt(total)
    return tpe.suggest(  # type: ignore[no-any-return]
        new_ids,
        domain,
        trials,
        seed,
        prior_weight=prior_weight,
        n_startup_jobs=0,
        n_EI_candidates=n_EI_candidates,
        gamma=gamma,
        verbose=verbose,
    )


def _counted(docs: Iterable[JobDoc]) -> int:
    """How many trials hyperopt's TPE makes of these: copies count once, a loss of NaN does not count."""
    losses = ((doc, doc["result"].get("loss")) for doc in docs)
    return len(
        {doc["misc"].get("from_tid", doc["tid"]) for doc, loss in losses if loss is None or loss == loss}
    )
