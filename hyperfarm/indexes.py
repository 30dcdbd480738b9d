"""The indexes of a farm's database. store.py names, beside each query, the index that serves it."""

from __future__ import annotations

from typing import Any

from pymongo import ASCENDING, IndexModel
from pymongo.database import Database
from pymongo.errors import OperationFailure

from hyperfarm.errors import DatabaseError
from hyperfarm.jobs import JobState

_UP = ASCENDING
NEWS = "news"
"""A small capped collection: a document is put there whenever idle workers should look at the queue."""
NEWS_BYTES, NEWS_DOCUMENTS = 1 << 16, 1000
NAMESPACE_EXISTS, UNAUTHORIZED = 48, 13
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
            unique=True,
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
    "fs.files": [
        IndexModel([("metadata.exp_key", _UP)], name="owner"),
        IndexModel([("exp_key", _UP)], name="experiment"),
    ],
}


def ensure_indexes(database: Database[dict[str, Any]]) -> None:
    """Make the indexes that are missing; it costs one short round trip per collection when all are there.

    A user without the right to make them (a worker's) needs it only when some are missing: then DatabaseError.
    """
    try:
        _ensure_indexes(database)
        _ensure_news(database)
    except OperationFailure as error:
        if error.code != UNAUTHORIZED:
            raise
        raise DatabaseError(
            f"the database {database.name} has no farm yet, or lacks something new, and this user may not "
            "make it: run `hyperfarm ls` once as the user of the controller, then try again"
        ) from error


def _ensure_indexes(database: Database[dict[str, Any]]) -> None:
    for collection, indexes in INDEXES.items():
        present = database[collection].index_information()
        missing = [index for index in indexes if index.document["name"] not in present]
        if missing:
            database[collection].create_indexes(missing)


def _ensure_news(database: Database[dict[str, Any]]) -> None:
    """Make the capped collection; it is never empty, as a cursor cannot wait at the end of nothing."""
    news = database[NEWS]
    if not news.options().get("capped"):
        try:
            # The server alone knows whether it is there by now: many hosts may open a new database at once.
            database.create_collection(
                NEWS, check_exists=False, capped=True, size=NEWS_BYTES, max=NEWS_DOCUMENTS
            )
        except OperationFailure as error:
            if error.code != NAMESPACE_EXISTS:
                raise
            if not news.options().get("capped"):  # Somebody has dropped it, and then somebody rang.
                database.command("convertToCapped", NEWS, size=NEWS_BYTES)
    if news.find_one() is None:
        news.insert_one({})
