"""Candidates: rows near good ones, from which an algorithm chooses."""

from __future__ import annotations

import numpy as np

from hyperfarm.controller.space import Column, Rows, Space

_NORMAL_SPREAD = 4.0
"""A step of a normal kind, in standard deviations, for a step of 1 in a bounded kind."""


def near(space: Space, rng: np.random.Generator, parents: Rows, steps: Rows, share: Rows) -> Rows:
    """One row near each of `parents` (n, columns), where the space allows.

    Each active parameter moves with probability `share` (n,), at least one of them: numbers by a normal step of
    `steps` (n,) times their range, never to the same value of a quantised kind; choices are drawn anew from the
    prior. Parameters that become active are drawn from the prior.
    """
    size, width = parents.shape
    moves = rng.uniform(size=(size, width)) < share[:, None]
    # At least one: the one with the largest of as many random numbers, among the active.
    priority = np.where(np.isnan(parents), -1.0, rng.uniform(size=(size, width)))
    moves[np.arange(size), priority.argmax(1)] = True
    rows = np.full_like(parents, np.nan)
    for number, column in enumerate(space.columns):
        active = space.is_active(rows, number)
        before = parents[:, number]
        fresh = active & np.isnan(before)
        moved = active & ~fresh & moves[:, number]
        rows[active, number] = before[active]
        if fresh.any():
            rows[fresh, number] = column.sample(rng, int(fresh.sum()))
        if moved.any():
            rows[moved, number] = _moved(column, rng, before[moved], steps[moved])
    return rows


def _moved(column: Column, rng: np.random.Generator, values: Rows, steps: Rows) -> Rows:
    if column.is_categorical:
        return column.sample(rng, len(values))
    latent = column.to_latent(values)
    step = steps * rng.standard_normal(len(values))
    if not column.is_bounded:
        moved = column.from_latent(latent + _NORMAL_SPREAD * step)
    else:
        target = np.abs(latent + step)  # Reflected at both ends.
        target = np.where(target > 1, np.abs(2 - target), target)
        moved = column.from_latent(np.clip(target, 0, 1))
    if column.q is None:
        return moved
    k = np.round(values / column.q)
    one_on = k + np.where(step > 0, 1, -1)
    first, last = column.steps or (0 if column.is_log else -np.inf, np.inf)
    one_on = np.where((one_on < first) | (one_on > last), 2 * k - one_on, one_on)
    return np.where(moved == k * column.q, np.clip(one_on, first, last) * column.q, moved) + 0.0
