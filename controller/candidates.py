"""Candidates: rows near good ones, from which an algorithm chooses."""

from __future__ import annotations

import numpy as np

from hyperfarm.controller.space import Column, Rows, Space

_NORMAL_SPREAD = 4.0
"""A step of a normal kind, in standard deviations, for a step of 1 in a bounded kind."""


def near(space: Space, rng: np.random.Generator, parents: Rows, steps: Rows, share: Rows) -> Rows:
    """One row near each of `parents` (n, columns), where the space allows.

    Each active parameter moves with probability `share` (n,), at least one of them: numbers by a normal step of
    `steps` (n,) times their range, never to the same value of a quantised kind; choices to another option of the
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
        return column.from_latent(latent + _NORMAL_SPREAD * step)
    target = latent + step
    target = np.abs(target)  # Reflected at both ends.
    target = np.where(target > 1, np.abs(2 - target), target)
    moved = column.from_latent(np.clip(target, 0, 1))
    if column.q is None:
        return moved
    stuck = moved == values
    one_on = values + np.where(step > 0, column.q, -column.q)
    assert column.steps is not None
    low, high = column.steps[0] * column.q, column.steps[1] * column.q
    one_on = np.where((one_on < low) | (one_on > high), 2 * values - one_on, one_on)
    return np.where(stuck, np.clip(one_on, low, high), moved)
