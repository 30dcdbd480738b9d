"""The experiments and the workers of a farm at one moment, one entry each, for tables and for programs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from hyperfarm.analysis.reading import Document, Experiment, budget_of
from hyperfarm.jobs import JobDoc
from hyperfarm.presence import serves, silence_s
from hyperfarm.store import Store

WORKER_FIELDS = ("host", "pid", "slots", "devices", "exp_keys", "python", "versions")


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """What goes on at the moment `at` of the database's clock: the living workers, the busiest experiments first.

    A worker's `runs` are the jobs that it holds, with the seconds until each lease ends.
    """

    at: datetime
    experiments: Sequence[Document]
    workers: Sequence[Document]


def take_snapshot(store: Store, experiment: Experiment | None = None) -> Snapshot:
    """Look at all experiments and workers, or at one experiment and the workers that serve it."""
    entries, workers = experiment_entries(store), store.live_workers()
    if experiment is not None:
        entries = [entry for entry in entries if entry["exp_key"] == experiment.exp_key]
        workers = [worker for worker in workers if serves(worker, experiment.exp_key)]
    running = store.running_jobs()
    at = store.now()
    workers = sorted(workers, key=lambda worker: (str(worker.get("host")), worker.get("pid") or 0))
    return Snapshot(
        at=at,
        experiments=sorted(entries, key=_rank),
        workers=[worker_entry(worker, running, at) for worker in workers],
    )


def _rank(entry: Document) -> tuple[bool, bool, float]:
    """What runs comes first, then what waits; the latest change first."""
    changed = entry["last_change"]
    return not entry["running"], not entry["waiting"], -changed.timestamp() if changed else 0.0


def worker_entry(worker: Document, running: Sequence[JobDoc], at: datetime) -> Document:
    """One worker, for a program. Its rate is that of its whole life."""
    refused = [{name: one.get(name) for name in ("exp_key", "reason")} for one in worker.get("refused") or ()]
    runs = [
        {
            **{name: job.get(name) for name in ("exp_key", "tid", "attempt")},
            "lease_left_s": (job["lease"]["expires"] - at).total_seconds(),
        }
        for job in running
        if job["lease"].get("worker") == worker["_id"]
    ]
    done, failed, uptime_s = (worker.get(name) or 0 for name in ("done", "failed", "uptime_s"))
    return {
        **{name: worker.get(name) for name in WORKER_FIELDS},
        "busy": len(runs),
        "runs": runs,
        "done": done,
        "failed": failed,
        "cut_off": worker.get("cut_off") or 0,
        "per_min": 60 * (done + failed) / uptime_s if uptime_s else 0.0,
        "heartbeat_age_s": silence_s(worker, at),
        "draining": bool(worker.get("draining")),
        "refused": refused,
        "paused": worker.get("paused") or [],
    }


def experiment_entries(store: Store) -> list[Document]:
    """One entry per experiment, by time of creation; those without a document come first, by name."""
    docs = {doc["_id"]: doc for doc in store.experiments()}
    summaries = {row["_id"]: row for row in store.summaries()}
    foreign = sorted((key for key in summaries if key not in docs), key=str)
    return [_entry(store, key, docs.get(key, {}), summaries.get(key, {})) for key in [*foreign, *docs]]


def _entry(store: Store, key: str | None, doc: Document, row: Document) -> Document:
    best: Any = row.get("best")
    if not isinstance(best, (int, float)) or math.isnan(best):
        # NaN sorts below every number in MongoDB, so one NaN hides the best of the others.
        job = store.best_job(key) if row.get("ok") else None
        best = None if job is None else job["result"]["loss"]
    return {
        "exp_key": key,
        "state": doc.get("state"),
        "max_evals": budget_of(doc),
        "trials": row.get("total", 0),
        "done": row.get("ok", 0),
        "failed": row.get("failed", 0),
        "running": row.get("running", 0),
        "waiting": row.get("new", 0),
        "cancelled": row.get("cancelled", 0),
        "best_loss": best,
        "created": doc.get("created"),
        "last_change": row.get("last") or doc.get("created"),
    }
