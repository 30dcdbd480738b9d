"""Deleting an experiment so that nothing of it is left."""

from __future__ import annotations

import time

from hyperfarm.blobs import Blobs
from hyperfarm.store import Store

SWEEP_AGAIN_S = 1.5
"""Longer than a controller takes to notice that its experiment is gone."""
MOST_SWEEPS = 20


def remove(store: Store, blobs: Blobs, exp_key: str | None) -> int:
    """Delete the experiment with its jobs, reports and blobs; return how many jobs it had.

    The experiment's document goes first: controllers end when it is gone. While jobs are found that had not
    ended, somebody may still be adding to them, so the rest is swept again after a moment.
    """
    store.remove_experiment(exp_key)
    total = 0
    for _ in range(MOST_SWEEPS):
        attachments = blobs.attachment_ids(exp_key)
        removed, unfinished = store.remove_jobs(exp_key)
        blobs.delete_experiment(exp_key, attachments)
        total += removed
        if not unfinished:
            break
        time.sleep(SWEEP_AGAIN_S)
    return total
