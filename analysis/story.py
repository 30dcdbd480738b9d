"""The story of one trial: what became of each attempt, what it waits for, and what the next one begins from."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from hyperfarm.analysis.reading import loss_of, outcome, waits_until
from hyperfarm.analysis.telling import moment, seconds, shortened, size
from hyperfarm.jobs import KEPT_HISTORY, JobDoc, JobState

Told = list[tuple[str, str]]
LONGEST = 300
"""Characters of a reason; an error is told in full below the story."""


def attempts(job: JobDoc) -> Told:
    """(`attempt N`, what became of it), in order; the last line is how it stands now, when that is not told yet."""
    history = job.get("history") or []
    told = [(f"attempt {one.get('attempt', '?')}", _ended(one)) for one in history]
    if len(history) >= KEPT_HISTORY:
        told.insert(0, ("...", f"only the last {KEPT_HISTORY} that were cut off or given back are kept"))
    return told + _now(job)


def _ended(entry: Mapping[str, Any]) -> str:
    """How an attempt without a result ended."""
    how = {
        "release": "given back, not counted",
        "requeue": "cut off, to be tried again",
        "give up": "cut off, the last one",
    }
    event = str(entry.get("event"))
    return (
        f"{moment(entry.get('at'))}  {how.get(event, event)}: {shortened(str(entry.get('reason')), LONGEST)} "
        f"(worker {_short(entry.get('worker'))})"
    )


def _now(job: JobDoc) -> Told:
    """The attempt that runs or gave the outcome; nothing for a trial that waits or was given up."""
    state, attempt = JobState(job["state"]), job.get("attempt") or 0
    this, begun = f"attempt {attempt}", moment(job.get("book_time"))
    if state is JobState.RUNNING:
        worker = (job.get("lease") or {}).get("worker") or job.get("owner")
        return [(this, f"{begun}  runs (worker {_short(worker)})")]
    if state is JobState.CANCELLED:
        return [("cancelled", moment(job.get("refresh_time")))]
    accepted = job.get("accepted")
    if not accepted:
        return []
    return [
        (
            this,
            f"{moment(job.get('refresh_time'))}  {_outcome(job)} (worker {_short(accepted.get('worker'))})",
        )
    ]


def _outcome(job: JobDoc) -> str:
    word = outcome(job)
    loss, error = loss_of(job), job.get("error")
    if word == "failed" and error:
        text = ": ".join(map(str, error)) if isinstance(error, (list, tuple)) else str(error)
        return f"failed: {shortened(text, LONGEST)}"
    return word if loss is None else f"{word}, loss {loss:.6g}"


def _short(worker: object) -> str:
    """`host:process` of a worker's id `host:process:random`; hyperopt's own workers give a list."""
    parts = [str(part) for part in worker] if isinstance(worker, (list, tuple)) else str(worker).split(":")
    return ":".join(parts[:2]) if worker else "unknown"


def circumstances(job: JobDoc, now: datetime) -> Told:
    """What it may take, what it waits for, what the next attempt resumes from: only what there is to say.

    `now` is the database's clock.
    """
    told: Told = []
    limits = job.get("limits") or {}
    allowed = []
    if limits.get("timeout_s") is not None:
        allowed.append(f"{seconds(limits['timeout_s'])} for an attempt")
    if limits.get("memory") is not None:
        memory = limits["memory"]
        allowed.append(f"{size(memory) if isinstance(memory, int) else memory} of memory")
    if allowed:
        told.append(("limits", ", ".join(allowed)))
    following = f"attempt {(job.get('attempt') or 0) + 1}"
    until = waits_until(job)
    if until is not None and until > now:
        told.append(("next", f"waits until {moment(until)} before {following}"))
    elif job["state"] == JobState.NEW:
        told.append(("next", f"waits for a worker for {following}"))
    kept = job.get("checkpoint")
    if kept:
        made = f"{size(kept['size'])} of attempt {kept.get('attempt', '?')}, {moment(kept.get('at'))}"
        told.append(("checkpoint", f"{made}; the next attempt can resume from it"))
    if job.get("models_removed"):
        told.append(("model", "removed: others of this experiment had lower losses (keep_models)"))
    return told
