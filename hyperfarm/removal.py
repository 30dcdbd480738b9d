"""Deleting an experiment so that nothing of it is left."""

from __future__ import annotations

import time

from hyperfarm.blobs import Blobs
from hyperfarm.store import Store

SWEEP_AGAIN_S = 1.5
"""Longer than a controller takes to notice that its experiment is gone."""
ACTIVE_S = 5.0
MOST_SWEEPS = 20


def remove(store: Store, blobs: Blobs, exp_key: str | None) -> int:
    """Delete the experiment with its jobs, reports and blobs; return how many jobs it had.

    The experiment's document goes first: controllers end when it is gone. While jobs are found that had not
    ended, or had changed a moment ago, somebody may still be adding to them, so the rest is swept again.
    """
    store.remove_experiment(exp_key)
    total = 0
    for _ in range(MOST_SWEEPS):
        # At the very moment of a look, a busy search may have neither a waiting nor a running job.
        active = store.changed_lately(exp_key, ACTIVE_S)
        attachments = blobs.attachment_ids(exp_key)
        removed, unfinished = store.remove_jobs(exp_key)
        blobs.delete_experiment(exp_key, attachments)
        total += removed
        if not unfinished and not active:
            break
        time.sleep(SWEEP_AGAIN_S)
    return total
