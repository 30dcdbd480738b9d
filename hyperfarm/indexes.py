"""The indexes of a farm's database. store.py names, beside each query, the index that serves it."""

from __future__ import annotations

from typing import Any

from pymongo import ASCENDING, IndexModel
from pymongo.database import Database

from hyperfarm.jobs import JobState

_UP = ASCENDING
INDEXES: dict[str, list[IndexModel]] = {
    "jobs": [
        IndexModel(
            [("exp_key", _UP), ("tid", _UP)],
            name="queue",
            partialFilterExpression={"state": int(JobState.NEW)},
        ),
        IndexModel(
            [("lease.expires", _UP)],
            name="lease_expiry",
            partialFilterExpression={"state": int(JobState.RUNNING)},
        ),
        IndexModel(
            [("lease.token", _UP)],
            name="lease_token",
            partialFilterExpression={"lease.token": {"$exists": True}},
        ),
        IndexModel(
            [("exp_key", _UP), ("slot", _UP)],
            name="slot",
            unique=True,
            partialFilterExpression={"slot": {"$exists": True}},
        ),
        IndexModel(
            [("exp_key", _UP), ("result.status", _UP), ("result.loss", _UP), ("tid", _UP)], name="best"
        ),
        IndexModel(
            [("exp_key", _UP), ("artifacts.kind", _UP), ("result.loss", _UP), ("tid", _UP)],
            name="models",
            partialFilterExpression={"artifacts.kind": "model"},
        ),
        IndexModel([("exp_key", _UP), ("tid", _UP), ("version", _UP), ("state", _UP)], name="view"),
    ],
    "job_ids": [IndexModel([("a", _UP)], name="counter", unique=True)],
    "reports": [IndexModel([("exp_key", _UP), ("tid", _UP), ("token", _UP)], name="trial")],
    "farm.files": [IndexModel([("metadata.exp_key", _UP)], name="owner")],
    "fs.files": [IndexModel([("metadata.exp_key", _UP)], name="owner")],
}


def ensure_indexes(database: Database[dict[str, Any]]) -> None:
    """Make the indexes that are missing; it costs one short round trip per collection when all are there."""
    for collection, indexes in INDEXES.items():
        present = database[collection].index_information()
        missing = [index for index in indexes if index.document["name"] not in present]
        if missing:
            database[collection].create_indexes(missing)
