"""Finding an experiment, its trials and its best one; what a job's fields mean to a reader."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from hyperfarm.analysis.space import Space, read_space
from hyperfarm.cli_options import no_such_experiment
from hyperfarm.errors import UsageError
from hyperfarm.jobs import JobDoc, JobState, is_ok, is_parked
from hyperfarm.store import Store
from hyperfarm.values import encode_key

Document = dict[str, Any]

NO_KEY = "None"
"""How a person names the jobs without an exp_key (hyperopt's default)."""
ROW_FIELDS = (
    "state", "owner", "attempt", "book_time", "refresh_time", "duration", "misc.vals",
    "result.status", "result.loss", "result.pruned",
)  # fmt: skip
"""What tables and plots need of every job: never a whole result, which may be large."""
UNLIMITED_FROM = 2**53
"""A budget from here on means that there is none."""
MISSING: Any = object()


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """An experiment by its exp_key. `doc` is empty when only its jobs are known (hyperopt's own classes)."""

    exp_key: str | None
    doc: Document
    space: Space

    @property
    def name(self) -> str:
        """The exp_key as it is shown and typed."""
        return NO_KEY if self.exp_key is None else self.exp_key


def find_experiment(store: Store, name: str) -> Experiment:
    """Return the experiment: it has a document, or jobs. Raises ExperimentNotFound with near names."""
    keys: list[str | None] = [name, None] if name == NO_KEY else [name]
    for key in keys:
        doc = store.experiment(key)
        if doc is not None or _has_jobs(store, key):
            doc = doc or {}
            return Experiment(exp_key=key, doc=doc, space=read_space(doc.get("space")))
    known = {doc["_id"] for doc in store.experiments()} | {row["_id"] for row in store.summaries()}
    raise no_such_experiment(name, known)


def budget_of(doc: Document) -> int | None:
    """The number of trials that the experiment's document allows; None for no limit, or none known."""
    budget = doc.get("max_evals")
    return budget if isinstance(budget, int) and budget < UNLIMITED_FROM else None


def _has_jobs(store: Store, key: str | None) -> bool:
    if key is None:  # `job_versions(None)` would mean the jobs of all experiments.
        return any(row["_id"] is None for row in store.summaries())
    return next(store.job_versions(key), None) is not None


def find_rows(store: Store, experiment: Experiment, paths: Iterable[str] = ()) -> list[JobDoc]:
    """All trials by tid, with ROW_FIELDS and the values at these dotted `paths` of the results."""
    fields = list(ROW_FIELDS)
    for path in paths:
        fields += [f"result.{spelling}" for spelling in _spellings(path)]
    return store.job_rows(experiment.exp_key, _without_overlap(fields))


def _spellings(path: str) -> list[str]:
    """The names under which a path may be stored: each dot separates two keys, or belongs to one."""
    parts = path.split(".")
    if not all(parts) or len(parts) > 6:
        return []
    spellings = [encode_key(parts[0])]
    for part in parts[1:]:
        spellings = [head + dot + encode_key(part) for head in spellings for dot in (".", encode_key("."))]
    return spellings


def _without_overlap(fields: Iterable[str]) -> list[str]:
    """Leave out fields that lie within another: MongoDB refuses such a projection."""
    kept: list[str] = []
    for name in sorted(set(fields), key=len):
        if not any(name.startswith(f"{outer}.") for outer in kept):
            kept.append(name)
    return kept


def find_trial(store: Store, experiment: Experiment, tid: int) -> JobDoc:
    """Return a trial's whole document. Raises UsageError that names the trials there are."""
    # Beyond 64 bits MongoDB would refuse the question.
    job = store.job(experiment.exp_key, tid) if abs(tid) < 2**63 else None
    if job is not None:
        return job
    tids = [row["tid"] for row in store.job_rows(experiment.exp_key, ())]
    if not tids:
        raise UsageError(f"{experiment.name} has no trials yet")
    if len(tids) == 1:
        there = f"there is only trial {tids[0]}"
    elif len(tids) == tids[-1] - tids[0] + 1:
        there = f"there are trials {tids[0]} to {tids[-1]}"
    else:
        there = f"there are {len(tids)} trials between {tids[0]} and {tids[-1]}"
    raise UsageError(f"{experiment.name} has no trial {tid}; {there}")


def find_best(store: Store, experiment: Experiment) -> JobDoc:
    """Return the whole document of the best trial. Raises UsageError when no trial has finished well."""
    best = store.best_job(experiment.exp_key)
    if best is not None:
        return best
    rows = find_rows(store, experiment)
    if not rows:
        raise UsageError(f"{experiment.name} has no trials yet")
    counts = count(rows)
    told = ", ".join(f"{number} {what}" for what, number in counts.items())
    raise UsageError(f"no trial of {experiment.name} has finished with a loss yet ({told})")


def outcome(row: JobDoc) -> str:
    """One word for where a trial stands: its state, or `failed` or `pruned` for a result without success."""
    state = JobState(row["state"])
    if state is JobState.DONE and not is_ok(row | {"result": row.get("result") or {}}):
        return "pruned" if (row.get("result") or {}).get("pruned") else "failed"
    return {JobState.NEW: "waiting", JobState.ERROR: "failed"}.get(state, state.label)


def waits_until(job: JobDoc) -> datetime | None:
    """When the back-off of a trial that was cut off ends, by the database's clock; None when it waits out none."""
    until = job.get("not_before") if is_parked(job) else None
    return until if isinstance(until, datetime) else None


def owner_of(job: JobDoc) -> str | None:
    """Who has or had the trial, None for nobody: a trial that waits out a back-off has no worker."""
    owner = job.get("owner")
    if not owner or is_parked(job):
        return None
    return ":".join(map(str, owner)) if isinstance(owner, (list, tuple)) else str(owner)


def count(rows: Iterable[JobDoc]) -> dict[str, int]:
    """How many trials there are of each `outcome`, in the order of a trial's life; none with zero."""
    counted = Counter(outcome(row) for row in rows)
    order = ("done", "failed", "pruned", "running", "waiting", "cancelled")
    return {what: counted[what] for what in order if counted[what]}


def succeeded(row: JobDoc) -> bool:
    """True for a trial that finished with status 'ok'."""
    return outcome(row) == "done"


def loss_of(row: JobDoc) -> float | None:
    """The loss that a trial has returned (it may be NaN or infinite), None without one."""
    loss = (row.get("result") or {}).get("loss")
    return float(loss) if isinstance(loss, (int, float)) and not isinstance(loss, bool) else None


def best_row(rows: Iterable[JobDoc]) -> JobDoc | None:
    """The successful row with the lowest loss (the earliest of equals), NaN apart; as `Store.best_job`."""
    losses = [(loss, row) for row in rows if succeeded(row) and (loss := loss_of(row)) is not None]
    comparable = [pair for pair in losses if not math.isnan(pair[0])]
    return min(comparable, key=lambda pair: (pair[0], pair[1]["tid"]))[1] if comparable else None


def parameters_of(row: JobDoc) -> dict[str, Any]:
    """The parameters that take part in the trial, by label; a choice is given by its index."""
    vals: Mapping[str, Any] = (row.get("misc") or {}).get("vals") or {}
    return {label: value[0] for label, value in vals.items() if isinstance(value, list) and value}


def duration_of(row: JobDoc) -> float | None:
    """Seconds that the objective took; for jobs of hyperopt's own workers, from claim to result."""
    duration = row.get("duration")
    if duration is not None:
        return float(duration)
    begun, ended = row.get("book_time"), row.get("refresh_time")
    foreign = "attempt" not in row and JobState(row["state"]) in (JobState.DONE, JobState.ERROR)
    return (ended - begun).total_seconds() if foreign and begun and ended else None


def at_path(value: Any, path: str) -> Any:
    """The value at a dotted path, MISSING when there is none; a key may itself contain dots."""
    if not path:
        return value
    parts = path.split(".")
    if isinstance(value, dict):
        for length in range(len(parts), 0, -1):
            key = ".".join(parts[:length])
            if key in value:
                found = at_path(value[key], ".".join(parts[length:]))
                if found is not MISSING:
                    return found
    return MISSING
