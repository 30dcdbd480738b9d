"""hyperopt's TPE on plain columns: the same points, without evaluating its graph.

With nothing running, the point is the one that `hyperopt.tpe.suggest` of 0.3.0 chooses for the same seed and
history: hyperopt's own functions fit the mixtures and draw the candidates, in hyperopt's order; where what was
seen comes from, and the densities, are ours.

Trials that still run are evidence of what is bad, and nothing else. hyperopt counts them towards the start-up
trials and the size of the good part as well, and with many running, early on, fills the good part up with trials
that have no loss yet. Two more differences: what today's space does not hold is no evidence (`history.py`), and
`hp.randint(label, low, high=high)` keeps its offset, which hyperopt forgets when `high` is given by name.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np
from hyperopt import rand, tpe
from hyperopt.pyll import as_apply
from hyperopt.pyll.stochastic import categorical

from hyperfarm.controller.compiling import arguments_of
from hyperfarm.controller.history import history_of
from hyperfarm.controller.hyperopt_evidence import evidence_of
from hyperfarm.controller.space import Rows
from hyperfarm.jobs import JobDoc

_Mixture = tuple[Rows, Rows, Rows]
"""Weights, means and standard deviations of normal components, (n,) each."""


def suggest(
    new_ids: list[int],
    domain: Any,
    trials: Any,
    seed: int,
    prior_weight: float = 1.0,
    n_startup_jobs: int = 20,
    n_EI_candidates: int = 24,
    gamma: float = 0.25,
    verbose: bool = False,
) -> list[JobDoc]:
    """Suggest one point, for the first of `new_ids`; during the start-up random ones, for all of them.

    Arguments, defaults and result are those of `hyperopt.tpe.suggest`; `verbose` changes nothing. Raises
    UsageError for a space that cannot be compiled (`compile_space`).
    """
    history = history_of(trials, domain)
    evidence = evidence_of(history)
    if evidence.finished < n_startup_jobs:
        docs: list[JobDoc] = rand.suggest(new_ids, domain, trials, seed)
        return docs
    good, bad = (evidence.rows[part] for part in evidence.split(gamma))
    space = history.space
    rng = np.random.default_rng(seed)
    row = np.full((1, len(space.columns)), np.nan)
    for parameter in _plan(domain):
        number = space.index[parameter.label]
        # hyperopt settles a choice before it draws what lies below: a parameter is active in all candidates or none.
        if space.is_active(row, number)[0]:
            seen = [part[~np.isnan(part[:, number]), number] for part in (good, bad)]
            row[0, number] = parameter.best(seen[0], seen[1], float(prior_weight), n_EI_candidates, rng)
    return [_document(new_ids[0], space.point(row[0]), domain, trials)]


def _document(tid: int, point: dict[str, int | float], domain: Any, trials: Any) -> JobDoc:
    misc = {
        "tid": tid,
        "cmd": domain.cmd,
        "workdir": domain.workdir,
        "idxs": {label: [tid] if label in point else [] for label in domain.params},
        "vals": {label: [point[label]] if label in point else [] for label in domain.params},
    }
    [doc] = trials.new_trial_docs([tid], [None], [domain.new_result()], [misc])
    return doc  # type: ignore[no-any-return]


@dataclass(frozen=True, kw_only=True)
class _Category:
    """A choice or a randint: `start` is its first value, `p` the prior probabilities, None if all are equal."""

    label: str
    count: int
    start: int = 0
    p: Rows | None = None

    def best(
        self, good: Rows, bad: Rows, prior_weight: float, candidates: int, rng: np.random.Generator
    ) -> int:
        """The candidate with the highest ratio of posterior probabilities."""
        below, above = self._posterior(good, prior_weight), self._posterior(bad, prior_weight)
        drawn = categorical(below, rng=rng, size=candidates)
        with np.errstate(divide="ignore"):
            score = np.log(below[drawn]) - np.log(above[drawn])
        return int(drawn[np.argmax(score)]) + self.start

    def _posterior(self, seen: Rows, prior_weight: float) -> Rows:
        """Probabilities from counts that fade with age (`ap_randint_sampler`, `ap_categorical_sampler`)."""
        weights = tpe.linear_forgetting_weights(len(seen), tpe.DEFAULT_LF)
        counts = np.bincount(seen.astype(int) - self.start, weights, self.count)
        prior = prior_weight if self.p is None else self.count * (prior_weight * self.p)
        pseudocounts = counts + prior
        posterior: Rows = pseudocounts / np.sum(pseudocounts)
        return posterior


@dataclass(frozen=True, kw_only=True)
class _Number:
    """A numerical parameter: `mu` and `sigma` of its prior component, bounds (or None), all of the logarithm."""

    label: str
    is_log: bool
    mu: float
    sigma: float
    low: float | None
    high: float | None
    q: float | None

    def best(
        self, good: Rows, bad: Rows, prior_weight: float, candidates: int, rng: np.random.Generator
    ) -> float:
        """The candidate with the highest ratio of posterior densities."""
        below, above = (
            tpe.adaptive_parzen_normal(self._latent(seen), prior_weight, self.mu, self.sigma)
            for seen in (good, bad)
        )
        sampler = tpe.LGMM1 if self.is_log else tpe.GMM1
        drawn = sampler(*below, low=self.low, high=self.high, q=self.q, rng=rng, size=candidates)
        with np.errstate(divide="ignore", invalid="ignore"):
            if self.q is None:
                latent = np.log(drawn) if self.is_log else drawn
                score = _log_density(latent, below) - _log_density(latent, above)
            else:
                distinct, place = np.unique(drawn, return_inverse=True)
                score = (self._log_mass(distinct, below) - self._log_mass(distinct, above))[place]
        return float(drawn[np.argmax(score)])

    def _latent(self, seen: Rows) -> Rows:
        """What the components' means are made from (`ap_qloguniform_sampler` and its like)."""
        if not self.is_log:
            return seen
        if self.q is not None:
            seen = np.maximum(seen, tpe.EPS if self.low is None else max(tpe.EPS, np.exp(self.low)))
        latent: Rows = np.log(seen)
        return latent

    def _log_mass(self, values: Rows, mixture: _Mixture) -> Rows:
        """Log of the mass in the cells of quantised values (`GMM1_lpdf` and `LGMM1_lpdf` with q), (values,)."""
        assert self.q is not None
        lower, upper = values - self.q / 2, values + self.q / 2
        if self.low is not None and self.high is not None:
            low, high = (np.exp(self.low), np.exp(self.high)) if self.is_log else (self.low, self.high)
            lower, upper = np.maximum(lower, low), np.minimum(upper, high)
        if self.is_log:
            lower, upper = np.log(np.maximum(lower, tpe.EPS)), np.log(np.maximum(upper, tpe.EPS))
        weights, mus, sigmas = (one[:, None] for one in mixture)
        # Quantised values repeat, and so do their components, side by side: erf() is dear, so once for each.
        is_new = np.ones(len(mus), dtype=bool)
        is_new[1:] = ((np.diff(mus, axis=0) != 0) | (np.diff(sigmas, axis=0) != 0))[:, 0]
        which = np.cumsum(is_new) - 1
        below_upper, below_lower = (
            tpe.normal_cdf(end, mus[is_new], sigmas[is_new]) for end in (upper, lower)
        )
        mass = weights * below_upper[which] - weights * below_lower[which]
        # Along the first axis NumPy adds one component after the other, as hyperopt does: to the last bit.
        return np.log(np.add.reduce(mass, axis=0)) - np.log(self._accepted(mixture))  # type: ignore[no-any-return]

    def _accepted(self, mixture: _Mixture) -> float:
        """The mass of a mixture between the bounds."""
        if self.low is None or self.high is None:
            return 1.0
        weights, mus, sigmas = mixture
        inside = tpe.normal_cdf(self.high, mus, sigmas) - tpe.normal_cdf(self.low, mus, sigmas)
        return float(np.sum(weights * inside))


def _log_density(latent: Rows, mixture: _Mixture) -> Rows:
    """Log of a mixture's density but for a constant, which no comparison of candidates needs, (candidates,).

    As in `GMM1_lpdf`, but in place: this matrix (candidates, components) is where the time goes.
    """
    weights, mus, sigmas = mixture
    terms = latent[:, None] - mus
    terms *= np.sqrt(0.5) / np.maximum(sigmas, tpe.EPS)
    np.square(terms, out=terms)
    np.subtract(np.log(weights / sigmas), terms, out=terms)
    highest = terms.max(axis=1)
    terms -= highest[:, None]
    # exp() is several times slower where it underflows; e**-700 is nothing either.
    np.maximum(terms, -700.0, out=terms)
    np.exp(terms, out=terms)
    return np.log(terms.sum(axis=1)) + highest  # type: ignore[no-any-return]


_plans: weakref.WeakKeyDictionary[Any, tuple[_Category | _Number, ...]] = weakref.WeakKeyDictionary()


def _plan(domain: Any) -> tuple[_Category | _Number, ...]:
    """The parameters of a hyperopt Domain in the order in which hyperopt draws them; found once for each Domain."""
    if domain not in _plans:
        _plans[domain] = tuple(_parameter(label, domain.params[label]) for label in _sampling_order(domain))
    return _plans[domain]


def _sampling_order(domain: Any) -> list[str]:
    """The labels in the order in which `rec_eval` comes to the samplers in the graph of the posterior."""
    observed, observed_loss, posterior = tpe.build_posterior_wrapper(domain, 1.0, 0.25)
    # A value of the posterior is broadcast_best(sampler, density, density).
    label_of = {best.pos_args[0]: label for label, best in posterior[1].items()}
    done = {domain.s_new_ids, domain.s_rng, *observed.values(), *observed_loss.values()}
    order = []
    waiting = [as_apply(posterior)]
    while waiting:
        node = waiting.pop()
        if node in done:
            continue
        missing = [one for one in node.inputs() if one not in done]
        if missing:
            waiting += [node, *missing]
            continue
        done.add(node)
        if node in label_of:
            order.append(label_of[node])
    return order


def _parameter(label: str, node: Any) -> _Category | _Number:
    arguments = arguments_of(label, node)
    if node.name == "categorical":
        p = np.ravel(arguments["p"])
        return _Category(label=label, count=len(p), p=p)
    if node.name == "randint":
        low, high = arguments["low"], arguments.get("high")
        return (
            _Category(label=label, count=low)
            if high is None
            else _Category(label=label, count=high - low, start=low)
        )
    low, high = arguments.get("low"), arguments.get("high")
    if low is not None and high is not None:
        mu, sigma = 0.5 * (high + low), 1.0 * (high - low)
    else:
        mu, sigma = arguments["mu"], arguments["sigma"]
    return _Number(
        label=label, is_log="log" in node.name, mu=mu, sigma=sigma, low=low, high=high, q=arguments.get("q")
    )
