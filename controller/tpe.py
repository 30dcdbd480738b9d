"""The farm's default: a Gaussian process while the history is short, joint Parzen densities beside it and after.

Both work on the columns of the space, follow its tree, and know the trials that are still running. A suggestion is a
function of the seed and of the history alone. docs/search.md tells how it compares, and which of its parts earned
their place by which measurement.
"""

from __future__ import annotations

import math
import threading
import weakref
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from hyperfarm.controller.candidates import near
from hyperfarm.controller.gaussian_process import Belief, Process, embed, fit
from hyperfarm.controller.history import History, history_of
from hyperfarm.controller.parzen import Mixture
from hyperfarm.controller.points import doc_of_point
from hyperfarm.controller.space import Rows
from hyperfarm.jobs import JobDoc

_blas = ThreadpoolController()
_one_at_a_time = threading.Lock()

N_STARTUP = 8
"""So many trials are finished before a model chooses; until then, and while none has a loss, the prior does."""
PROCESS_TRIALS = 300
"""Up to so many trials, running ones included, the Gaussian process chooses: its cost grows with their cube."""
PROCESS_COLUMNS = 60
"""In spaces with more parameters it never does."""
SECOND_OPINION = 4
"""One point in so many is the densities' all the same: they look elsewhere where the process is sure too early.

Measured on the development half: no difference in mean rank, less regret where the objective is noisy.
"""
FITTED_TRIALS = 100
"""Its lengthscales are fitted to at most so many trials."""
GOOD_SHARE = 0.1
MOST_GOOD = 25
"""The good part of n finished trials: min(ceil(GOOD_SHARE * n), MOST_GOOD), as in Optuna's `default_gamma`."""
DENSITY_CANDIDATES = 24
"""So many are drawn from the good trials' density, and from the prior at the start."""
PARENTS = 5
NEAR_CANDIDATES = 160
CLIMBS = 4
CHILDREN = 16
"""The process looks at NEAR_CANDIDATES near the PARENTS best trials, then CLIMBS times at CHILDREN near each of the
PARENTS best candidates, ever nearer. Looking elsewhere too was measured and is worse: with few trials in many
dimensions the process expects most of the corners of the space, where it knows least."""


def suggest(new_ids: list[int], domain: Any, trials: Any, seed: int) -> list[JobDoc]:
    """One new trial document for each of `new_ids`; arguments and result as those of `hyperopt.tpe.suggest`.

    Raises UsageError for a space that cannot be compiled (`compile_space`).
    """
    history = history_of(trials, domain)
    # Matrices this small are slower with several threads, far slower on a busy host. The limit holds for the whole
    # process and is put back afterwards: two at once would put back each other's.
    with _one_at_a_time, _blas.limit(limits=1):
        return _suggest(new_ids, domain, trials, history, seed)


def _suggest(new_ids: list[int], domain: Any, trials: Any, history: History, seed: int) -> list[JobDoc]:
    rng = np.random.default_rng(seed)
    docs: list[JobDoc] = []
    pending = history.running
    for tid in new_ids:
        row = choose(history, pending, rng)
        pending = np.concatenate([pending, row[None, :]])
        docs.append(doc_of_point(trials, domain, tid, history.space.point(row)))
    return docs


def choose(history: History, running: Rows, rng: np.random.Generator) -> Rows:
    """The next row to try, (columns,); in a finite space one that nobody has tried, while there is any."""
    finished = len(history.losses)
    known = np.isfinite(history.losses)
    begun = finished + len(running)
    if finished < N_STARTUP or not known.any():
        ranked = history.space.sample(rng, DENSITY_CANDIDATES)
    elif _asks_process(history, begun):
        ranked = _by_process(history, running, rng)
    else:
        ranked = _by_densities(history, running, rng)
    waiting = {row.tobytes() for row in running}
    for row in ranked:
        if history.space.is_possible(row) and not (row.tobytes() in waiting or history.holds(row)):
            found: Rows = row
            return found
    if history.grid is not None:
        rest = history.grid.untried(np.concatenate([history.rows, running]), rng)
        if rest is not None:
            return rest
    return np.asarray(history.space.sample(rng, 1)[0])


def _asks_process(history: History, begun: int) -> bool:
    """Whether the next point is the process's, after `begun` trials, running ones included."""
    small = begun <= PROCESS_TRIALS and len(history.space.columns) <= PROCESS_COLUMNS
    return small and begun % SECOND_OPINION != SECOND_OPINION - 1


# ---- few trials: a Gaussian process ----------------------------------------------------------------

_processes: weakref.WeakKeyDictionary[History, tuple[bytes, Process]] = weakref.WeakKeyDictionary()


def _process(history: History, points: Rows, owners: NDArray[np.intp]) -> Process:
    """The process fitted to the first finished trials: refitted whenever there are a tenth more of them.

    Of more than FITTED_TRIALS: to the better half of so many, and to others evenly spaced in the order of losses.
    """
    count = following = N_STARTUP
    while following <= len(points):
        count, following = following, following + max(1, following // 10)
    losses = history.losses[:count]
    key = history.rows[:count].tobytes() + losses.tobytes()
    known = _processes.get(history)
    if known is None or known[0] != key:
        targets = _standardized(losses)  # Of these alone: whenever it is fitted, it is the same process.
        order = np.argsort(targets, kind="stable")
        if count > FITTED_TRIALS:
            half = FITTED_TRIALS // 2
            spaced = np.linspace(half, count - 1, FITTED_TRIALS - half).astype(int)
            order = np.concatenate([order[:half], order[spaced]])
        known = (key, fit(points[order], owners, targets[order]))
        _processes[history] = known
    return known[1]


def _by_process(history: History, running: Rows, rng: np.random.Generator) -> Rows:
    """Rows, the one with the highest expected improvement first."""
    space, rows = history.space, history.rows
    points, owners = embed(space, rows)
    targets = _standardized(history.losses)
    process = _process(history, points, owners)
    belief = Belief(process, points, targets, embed(space, running)[0])
    # By the means, as a lucky loss of a noisy objective is not the best.
    best = np.argsort(belief.means, kind="stable")[:PARENTS]
    parents = rows[rng.choice(best, NEAR_CANDIDATES)]
    steps = 10 ** rng.uniform(-2.5, -0.3, NEAR_CANDIDATES)
    candidates = near(space, rng, parents, steps, rng.uniform(size=NEAR_CANDIDATES))
    scores = belief.log_improvement(embed(space, candidates)[0])
    for climb in range(CLIMBS):
        top = np.argsort(-scores, kind="stable")[:PARENTS]
        parents = candidates[np.repeat(top, CHILDREN)]
        steps = 10 ** rng.uniform(-1.5 - 0.5 * climb, -0.5 - 0.5 * climb, len(parents))
        children = near(space, rng, parents, steps, rng.uniform(size=len(parents)))
        candidates = np.concatenate([candidates, children])
        scores = np.concatenate([scores, belief.log_improvement(embed(space, children)[0])])
    return candidates[np.argsort(-scores, kind="stable")]


def _standardized(losses: Rows) -> Rows:
    """Losses with mean 0 and variance 1; those far above the median count as not quite so far.

    What is at stake is near the best: a loss above the median by more than twice what the best is below it says no
    more than that the point is bad, as does a failure.
    """
    known = np.isfinite(losses)
    if not known.any():
        return np.zeros(len(losses))
    largest = float(np.abs(losses[known]).max()) or 1.0
    low, middle = losses[known].min() / largest, float(np.median(losses[known] / largest))
    top = middle + 2 * (middle - low) if middle > low else losses[known].max() / largest
    top = top if top > low else low + 1.0  # All equal; failures are worse.
    values = np.minimum(np.where(np.isneginf(losses), low, losses / largest), top)
    deviation = float(values.std())
    standardized: Rows = (values - values.mean()) / (deviation if deviation > 0 else 1.0)
    return standardized


# ---- many trials: densities ------------------------------------------------------------------------


_parts: weakref.WeakKeyDictionary[History, tuple[Rows, Mixture, Rows]] = weakref.WeakKeyDictionary()


def _parted(history: History) -> tuple[Mixture, Rows]:
    """The density of the good trials, and the rows of the others; the same until another trial has ended."""
    known = _parts.get(history)
    if known is None or known[0] is not history.losses:
        losses = history.losses
        good = min(math.ceil(GOOD_SHARE * len(losses)), MOST_GOOD, int(np.isfinite(losses).sum()))
        best = _lowest(losses, good)
        others = np.ones(len(losses), dtype=bool)
        others[best] = False
        known = (losses, Mixture(history.space, history.rows[best]), history.rows[others])
        _parts[history] = known
    return known[1:]


def _lowest(losses: Rows, count: int) -> NDArray[np.intp]:
    """The indices of the `count` lowest, ascending, of equal ones the first: without sorting the rest."""
    bound = np.partition(losses, count - 1)[count - 1]
    near = np.flatnonzero(losses <= bound)
    return near[np.argsort(losses[near], kind="stable")][:count]


def _by_densities(history: History, running: Rows, rng: np.random.Generator) -> Rows:
    """Rows, the one with the highest ratio of the good trials' density to the others' first.

    Running trials are among the others: they keep new points away from them, and count for nothing else.
    """
    of_good, others = _parted(history)
    of_others = Mixture(history.space, np.concatenate([others, running]) if len(running) else others)
    candidates = of_good.sample(rng, DENSITY_CANDIDATES)
    scores = of_good.log_density(candidates) - of_others.log_density(candidates)
    return candidates[np.argsort(-scores, kind="stable")]
