"""Joint densities over a space, following its tree: a mixture of the prior and one kernel for each trial.

The tree-structured Parzen estimator of Bergstra et al. (2011, "Algorithms for Hyper-Parameter Optimization"), with
kernels that are products over all parameters active in a trial instead of one mixture for each parameter (Falkner,
Klein and Hutter 2018, BOHB; Watanabe 2023, arXiv 2304.11127).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from hyperfarm.controller.space import ALWAYS, Column, Rows, Space, clipped

PRIOR_WEIGHT = 1.0
"""The prior's share of a mixture, in trials."""
WIDEST = 0.2
NARROWEST = 0.01
"""A kernel's standard deviation with one trial, and the least, as a part of the range (normal kinds: of 4 sigma)."""
_NORMAL_RANGE = 4.0
MOST_TERMS = 500_000
"""So many kernels times rows at once: 4 MB, as larger arrays spend their time in the memory."""
_TINY = 1e-300


class Mixture:
    """A density over the rows of a space: PRIOR_WEIGHT times the prior and one kernel for each of `rows`.

    Over all rows that the space holds it integrates to 1 (sums to 1 over quantised values and choices), taken in
    latent coordinates. A kernel knows nothing of parameters that are inactive in its trial: there it is the prior.
    """

    def __init__(self, space: Space, rows: Rows) -> None:
        self.space, self.rows = space, rows
        self._log_weights = np.log(np.append(np.ones(len(rows)), PRIOR_WEIGHT) / (len(rows) + PRIOR_WEIGHT))
        self._block = _Block(space, rows)
        self._kernels = {
            number: _kernel(column, rows[:, number], len(space.columns))
            for number, column in enumerate(space.columns)
            if number not in self._block.numbers
        }

    def sample(self, rng: np.random.Generator, size: int) -> Rows:
        """Rows drawn from the density, (size, columns)."""
        chosen = rng.choice(len(self._log_weights), size=size, p=np.exp(self._log_weights))
        rows = np.full((size, len(self.space.columns)), np.nan)
        centres = np.concatenate([self.rows, rows[:1]])[chosen]
        self._block.sample(rng, centres, rows)
        for number, column in enumerate(self.space.columns):
            active = self.space.is_active(rows, number) & np.isnan(rows[:, number])
            known = active & ~np.isnan(centres[:, number])
            fresh = active & ~known
            if known.any():
                rows[known, number] = self._kernels[number].sample(rng, centres[known, number])
            if fresh.any():
                rows[fresh, number] = column.sample(rng, int(fresh.sum()))
        return rows

    def log_density(self, rows: Rows) -> Rows:
        """Logarithm of the density at rows (m, columns), (m,)."""
        step = max(1, MOST_TERMS // (len(self.rows) + 1))
        parts = [self._log_density(rows[first : first + step]) for first in range(0, len(rows), step)]
        return np.concatenate(parts) if parts else np.empty(0)

    def _log_density(self, rows: Rows) -> Rows:
        size = len(self.rows)
        terms, prior = self._block.log_densities(rows)
        for number, kernel in self._kernels.items():
            column, values = self.space.columns[number], rows[:, number]
            if column.conditions == ALWAYS:
                kernel.add(terms, values)
                prior += log_prior(column, values)
                continue
            active = ~np.isnan(values)
            of_prior = log_prior(column, values[active])
            prior[active] += of_prior
            part = np.zeros((int(active.sum()), size))
            kernel.add(part, values[active])
            known = ~np.isnan(self.rows[:, number])
            terms[active] += np.where(known[None, :], part, of_prior[:, None])
        terms += self._log_weights[:-1]
        prior += self._log_weights[-1]
        top = np.maximum(terms.max(1), prior) if size else prior
        terms -= top[:, None]
        total: Rows = top + np.log(np.exp(terms, out=terms).sum(1) + np.exp(prior - top))
        return total


def log_prior(column: Column, values: Rows) -> Rows:
    """Logarithm of the prior: mass of a choice's option or a quantised value, else density in latent coordinates."""
    if column.is_categorical:
        chances: Rows = np.log(np.maximum(column.probabilities, _TINY))[values.astype(int)]
        return chances
    if column.q is not None:
        low, high = column.cell(values)
        mass = high - low if column.is_bounded else _between(low, high)
        return np.asarray(np.log(np.maximum(mass, _TINY)))
    if column.is_bounded:
        return np.zeros(len(values))
    latent = column.to_latent(values)
    return np.asarray(-0.5 * latent**2 - 0.5 * np.log(2 * np.pi))


def _between(low: Rows, high: Rows) -> Rows:
    """The standard normal mass of intervals, also far out on either side."""
    flip = low > 0
    return np.asarray(ndtr(np.where(flip, -low, high)) - ndtr(np.where(flip, -high, low)))


def _bandwidth(column: Column, trials: int, width: int) -> float:
    """Standard deviation of a kernel, by the rate of Scott (1992, "Multivariate Density Estimation"), as in Optuna 5.

    Not by the spread of the trials: good ones that lie close together would draw ever more trials to where they are.
    """
    unit = 1.0 if column.is_bounded else _NORMAL_RANGE
    return max(WIDEST * math.pow(max(trials, 1), -1 / (width + 4)), NARROWEST) * unit


class _Block:
    """The normal kernels of all continuous parameters that are always active, at once: they cost one matrix product.

    `numbers` are their columns.
    """

    def __init__(self, space: Space, rows: Rows) -> None:
        self._columns = {
            number: column
            for number, column in enumerate(space.columns)
            if column.q is None and not column.is_categorical and column.conditions == ALWAYS
        }
        self.numbers = self._columns.keys()
        width = len(space.columns)
        self._bandwidths = np.array([_bandwidth(one, len(rows), width) for one in self._columns.values()])
        bounded = np.array([column.is_bounded for column in self._columns.values()], dtype=bool)
        self._ends = np.where(bounded, 0.0, -np.inf), np.where(bounded, 1.0, np.inf)
        # (columns, trials): one column after the other goes through the memory fastest.
        self._centres = np.ascontiguousarray(self._latent(rows).T)
        self._centres /= self._bandwidths[:, None]
        self._offset = np.full(len(rows), np.log(self._bandwidths * np.sqrt(2 * np.pi)).sum())
        for centres, h, is_cut in zip(self._centres, self._bandwidths, bounded, strict=True):
            self._offset += 0.5 * centres**2
            if is_cut:
                self._offset += np.log(ndtr(1 / h - centres) - ndtr(-centres))

    def _latent(self, rows: Rows) -> Rows:
        parts = [column.to_latent(rows[:, number]) for number, column in self._columns.items()]
        return np.array(parts).T if parts else np.empty((len(rows), 0))

    def sample(self, rng: np.random.Generator, centres: Rows, rows: Rows) -> None:
        """Draw these columns of `rows` around `centres`, both (n, columns); NaN where those are."""
        latent = _cut_normal(rng, self._latent(centres), self._bandwidths, self._ends)
        for place, (number, column) in enumerate(self._columns.items()):
            rows[:, number] = column.from_latent(latent[:, place])

    def log_densities(self, rows: Rows) -> tuple[Rows, Rows]:
        """Logarithms of all kernels (m, trials) and of the prior (m,) at rows (m, columns)."""
        points = self._latent(rows) / self._bandwidths
        terms = points @ self._centres
        terms -= 0.5 * (points**2).sum(1)[:, None]
        terms -= self._offset
        priors = [log_prior(column, rows[:, number]) for number, column in self._columns.items()]
        return terms, np.sum(priors, axis=0) if priors else np.zeros(len(rows))


class _Options:
    """The kernels of a choice: the option of the trial, or, with some doubt, one drawn from the prior."""

    def __init__(self, column: Column, values: Rows, trials: int) -> None:
        options = len(column.probabilities)
        doubt = options / (trials + options)
        self._doubt, self._column = doubt, column
        others = doubt * np.array(column.probabilities)
        self._others = np.log(np.maximum(others, _TINY))
        self._same = np.log(np.maximum(1 - doubt + others, _TINY))
        self._options = np.nan_to_num(values).astype(np.intp)

    def add(self, terms: Rows, values: Rows) -> None:
        """Add the logarithms of all kernels at `values` (m,) to `terms` (m, trials)."""
        options = values.astype(np.intp)
        logs = np.repeat(self._others[options][:, None], len(self._others), axis=1)
        logs[np.arange(len(options)), options] = self._same[options]
        terms += logs.take(self._options, axis=1)

    def sample(self, rng: np.random.Generator, centres: Rows) -> Rows:
        """One value from the kernel around each centre."""
        drawn = self._column.sample(rng, len(centres))
        return np.where(rng.uniform(size=len(centres)) < self._doubt, drawn, centres)


class _Normal:
    """Normal kernels in latent coordinates, cut off at the bounds; the mass of its cell for a quantised value."""

    def __init__(self, column: Column, values: Rows, bandwidth: float) -> None:
        self._column, self._bandwidth = column, bandwidth
        self._ends = (0.0, 1.0) if column.is_bounded else (-np.inf, np.inf)
        self._values = np.where(np.isnan(values), 1.0, values)
        self._places: NDArray[np.intp] | None = None
        if column.q is not None:  # Many trials share a value, and with it a kernel.
            self._values, self._places = _distinct(self._values, column.q)

    def add(self, terms: Rows, values: Rows) -> None:
        """Add the logarithms of all kernels at `values` (m,) to `terms` (m, trials)."""
        column, h = self._column, self._bandwidth
        centres = column.to_latent(self._values) / h
        log_mass = np.log(_between(self._ends[0] / h - centres, self._ends[1] / h - centres))
        if self._places is None:
            offsets = np.subtract.outer(column.to_latent(values) / h, centres)
            terms -= 0.5 * offsets**2 + log_mass + np.log(h * np.sqrt(2 * np.pi))
            return
        low, high = (np.subtract.outer(end / h, centres) for end in column.cell(values))
        logs = np.log(np.maximum(_between(low, high), _TINY)) - log_mass
        terms += logs.take(self._places, axis=1)

    def sample(self, rng: np.random.Generator, centres: Rows) -> Rows:
        """One value from the kernel around each centre."""
        latent = self._column.to_latent(centres)
        return self._column.from_latent(_cut_normal(rng, latent, self._bandwidth, self._ends))


def _distinct(values: Rows, q: float) -> tuple[Rows, NDArray[np.intp]]:
    """Multiples of q among which all `values` are, and the place of each: without sorting where these lie close."""
    steps = np.round(values / q)
    first, last = (steps.min(), steps.max()) if len(steps) else (0.0, 0.0)
    if last - first < len(values):
        return (first + np.arange(last - first + 1)) * q + 0.0, (steps - first).astype(np.intp)
    return np.unique(values, return_inverse=True)


def _cut_normal(
    rng: np.random.Generator, centres: Rows, deviation: Rows | float, ends: tuple[Rows | float, Rows | float]
) -> Rows:
    """One draw around each centre, between the ends, by inversion."""
    low, high = (ndtr((end - centres) / deviation) for end in ends)
    shares = clipped(low + rng.uniform(size=centres.shape) * (high - low), 1e-16, 1 - 1e-16)
    return np.asarray(centres + deviation * ndtri(shares))


def _kernel(column: Column, values: Rows, width: int) -> _Options | _Normal:
    known = values[~np.isnan(values)]
    if column.is_categorical:
        return _Options(column, values, len(known))
    return _Normal(column, values, _bandwidth(column, len(known), width))
