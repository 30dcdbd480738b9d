"""A Gaussian process over the rows of a space: where is the loss likely to be lower than the best so far?

For short histories it says more about a smooth objective than densities can; its cost grows with the cube of the
number of trials. Rasmussen and Williams, "Gaussian Processes for Machine Learning" (2006), chapters 2 and 5.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_solve, cholesky, solve_triangular
from scipy.linalg.lapack import dpotri
from scipy.optimize import minimize
from scipy.special import erfcx, ndtr

from hyperfarm.controller.space import Rows, Space

SMALLEST_NOISE = 1e-6
"""Of the signal's variance; keeps the covariance matrix invertible."""
FARTHEST = 100.0
"""In standard deviations: beyond, all values of normal kinds are as far (else differences drown in rounding)."""
FIT_STEPS = 25
LENGTH_CENTRE, LENGTH_WIDTH = -0.7, 1.0
"""Prior of the logarithm of a lengthscale, less half the logarithm of the number of parameters. Short ones: little
is said about what is far from all trials. The paper's own (1.4, width 1.7) were measured and are worse."""
NOISE_CENTRE, NOISE_WIDTH = float(np.log(1e-4)), 3.0
"""Prior of the logarithm of the noise's share of the variance: small, but free to be otherwise."""
_SQRT_2PI = float(np.sqrt(2 * np.pi))


def embed(space: Space, rows: Rows) -> tuple[Rows, NDArray[np.intp]]:
    """Rows (n, columns) as points whose squared distances make sense, with the column each coordinate comes from.

    Numbers by their latent coordinate (normal kinds: a quarter of it), choices by one coordinate for each option,
    any two options 1 apart. An inactive parameter stands in the middle: as the choice above it differs too, trials of
    different branches are apart anyway.
    """
    parts, owners = [], []
    for number, column in enumerate(space.columns):
        values = rows[:, number]
        inactive = np.isnan(values)
        if column.is_categorical:
            options = np.arange(len(column.probabilities))
            part = (values[:, None] == options) * np.sqrt(0.5)
        else:
            latent = column.to_latent(np.where(inactive, 1.0, values))
            if not column.is_bounded:
                latent = 0.5 + 0.25 * np.clip(latent, -FARTHEST, FARTHEST)
            part = np.where(inactive, 0.5, latent)[:, None]
        parts.append(part)
        owners += [number] * part.shape[1]
    return np.concatenate(parts, axis=1), np.array(owners)


@dataclass(frozen=True, kw_only=True)
class Process:
    """A fitted process: `scales` (coordinates,), 1 / lengthscale of each; `noise` relative to the signal."""

    scales: Rows
    noise: float

    def covariance(self, first: Rows, second: Rows) -> Rows:
        """Matern 5/2 (Rasmussen and Williams, 4.17), (len(first), len(second)), with variance 1."""
        a, b = first * self.scales, second * self.scales
        squared = (a**2).sum(1)[:, None] + (b**2).sum(1)[None, :] - 2 * a @ b.T
        return _matern(np.maximum(squared, 0.0))


def _matern(squared: Rows) -> Rows:
    root = np.sqrt(5 * squared)
    return (1 + root + root**2 / 3) * np.exp(-root)


def fit(points: Rows, owners: NDArray[np.intp], targets: Rows) -> Process:
    """The process of the highest posterior density, by L-BFGS from one fixed start (so the same for the same data).

    `targets` are standardised losses, of mean about 0 and variance about 1. The signal's variance is profiled out.
    As in Hvarfner, Hellsten and Nardi (2024, arXiv 2402.02229) the prior of the lengthscales grows with the square
    root of the number of parameters.
    """
    n = len(points)
    number_of = np.unique(owners)
    lower = np.tril_indices(n, -1)
    differences = points[lower[0]] - points[lower[1]]
    squares = np.stack([(differences[:, owners == one] ** 2).sum(1) for one in number_of])
    centre = LENGTH_CENTRE + 0.5 * np.log(len(number_of))

    def cost(theta: Rows) -> tuple[float, Rows]:
        weights, noise = np.exp(-2 * theta[:-1]), np.exp(theta[-1])
        root = np.sqrt(5 * (weights @ squares))
        decay = np.exp(-root)
        matrix = np.empty((n, n))
        matrix[lower] = (1 + root + root**2 / 3) * decay
        np.fill_diagonal(matrix, 1 + noise)
        try:
            factor = cholesky(matrix, lower=True, check_finite=False, overwrite_a=True)
        except LinAlgError:
            return 1e10, np.zeros_like(theta)
        alpha = cho_solve((factor, True), targets, check_finite=False)
        scale = max(float(targets @ alpha), 1e-12)  # 0 when all targets are equal.
        inverse = dpotri(factor, lower=1)[0]
        value = 0.5 * n * np.log(scale / n) + np.log(np.diag(factor)).sum()
        inner = (inverse[lower] - (n / scale) * alpha[lower[0]] * alpha[lower[1]]) * (1 + root) * decay
        slopes = (5 / 3) * weights * (squares @ inner)
        noise_slope = 0.5 * noise * (np.trace(inverse) - (n / scale) * float(alpha @ alpha))
        off = theta[:-1] - centre
        quiet = theta[-1] - NOISE_CENTRE
        value += float((off**2).sum()) / (2 * LENGTH_WIDTH**2) + quiet**2 / (2 * NOISE_WIDTH**2)
        return value, np.append(slopes + off / LENGTH_WIDTH**2, noise_slope + quiet / NOISE_WIDTH**2)

    start = np.append(np.full(len(number_of), centre), np.log(1e-3))
    bounds = [(-4.0, 6.0)] * len(number_of) + [(np.log(SMALLEST_NOISE), np.log(2.0))]
    found = minimize(
        cost, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": FIT_STEPS, "maxls": 10}
    )
    column_scale = dict(zip(number_of.tolist(), np.exp(-found.x[:-1]), strict=True))
    return Process(
        scales=np.array([column_scale[one] for one in owners.tolist()]), noise=float(np.exp(found.x[-1]))
    )


class Belief:
    """What a process believes of the loss; trials still running are believed to end with the mean that it expects.

    So a running point attracts no second one (Ginsbourger, Le Riche and Carraro 2010: the "Kriging believer").
    `means` (n,) are the losses that it believes in at the observed points, without their noise; `best` is the least
    of these and of those at the running points.
    """

    def __init__(self, process: Process, points: Rows, targets: Rows, running: Rows) -> None:
        self.process = process
        everything = np.concatenate([points, running])
        matrix = process.covariance(everything, everything)
        matrix[np.diag_indices_from(matrix)] += process.noise
        n = len(points)
        self._factor = cholesky(matrix, lower=True, check_finite=False)
        head = self._factor[:n, :n]
        half = solve_triangular(head, targets, lower=True, check_finite=False)
        self.scale = max(float(half @ half) / n, 1e-12)
        # Believed values leave the mean as it is: the weights of the running points are 0.
        weights = solve_triangular(head, half, lower=True, trans=1, check_finite=False)
        self._weights = np.concatenate([weights, np.zeros(len(running))])
        self._points = everything
        self.means = process.covariance(points, points) @ weights
        self.best = float(
            min(self.means.min(), (process.covariance(running, points) @ weights).min(initial=np.inf))
        )

    def predict(self, points: Rows) -> tuple[Rows, Rows]:
        """Mean and standard deviation (without noise) at points, both (n,)."""
        cross = self.process.covariance(self._points, points)
        mean = self._weights @ cross
        half = solve_triangular(self._factor, cross, lower=True, check_finite=False)
        variance = np.maximum(1 - (half**2).sum(0), 1e-12)
        return mean, np.sqrt(self.scale * variance)

    def log_improvement(self, points: Rows) -> Rows:
        """Logarithm of the expected improvement on the best mean (Ament et al. 2023, arXiv 2310.20708), (n,)."""
        mean, deviation = self.predict(points)
        z = (self.best - mean) / deviation
        return np.log(deviation) + _log_h(z)


def _log_h(z: Rows) -> Rows:
    """log(phi(z) + z Phi(z)), also where z is far below 0."""
    safe = np.maximum(z, -1.0)
    near = np.log(np.exp(-0.5 * safe**2) / _SQRT_2PI + safe * ndtr(safe))
    low = np.minimum(z, -1.0)
    # phi(z) + z Phi(z) = phi(z) (1 + z Phi(z) / phi(z)), with Phi(z) / phi(z) = sqrt(pi / 2) erfcx(-z / sqrt(2)).
    ratio = np.maximum(1 + low * np.sqrt(np.pi / 2) * erfcx(-low / np.sqrt(2)), 1e-300)
    ratio = np.where(low < -1e4, 1 / low**2, ratio)
    far = -0.5 * low**2 - np.log(_SQRT_2PI) + np.log(ratio)
    return np.asarray(np.where(z > -1.0, near, far))
