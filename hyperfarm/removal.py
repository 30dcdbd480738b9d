"""Deleting an experiment so that nothing of it is left."""

from __future__ import annotations

from hyperfarm.blobs import Blobs
from hyperfarm.store import Store


def remove(store: Store, blobs: Blobs, exp_key: str | None) -> int:
    """Delete the experiment with its jobs, reports and blobs; return how many jobs it had.

    Jobs go first: from then on running workers cannot write about them, and remove what they upload.
    """
    attachments = blobs.attachment_ids(exp_key)
    removed = store.remove_jobs(exp_key)
    blobs.delete_experiment(exp_key, attachments)
    store.remove_experiment(exp_key)
    return removed
