"""Putting points into the queue of an experiment by hand, whether its controller runs or not."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from hyperfarm.cli_options import no_such_experiment
from hyperfarm.controller.experiment import UNLIMITED
from hyperfarm.controller.known_space import read
from hyperfarm.controller.points import check_points, job_of_point
from hyperfarm.errors import ExperimentConflict, UsageError
from hyperfarm.jobs import STUDY_OWNER, JobDoc, JobState
from hyperfarm.mongo import Document
from hyperfarm.store import Store

MOST_TRIES = 20


def enqueue(store: Store, exp_key: str, points: Sequence[Any], *, extend: bool = False) -> list[JobDoc]:
    """Queue points (label to value, see `check_points`) as jobs of the experiment; return their documents.

    Each takes a slot of the budget at once; a controller sees it by its view. `extend` raises the budget by the
    number of points. They stay in the queue when a controller ends. Raises UsageError (no such experiment, a point
    outside the space) and ExperimentConflict (the budget has no room), and then nothing is queued.
    """
    experiment = store.experiment(exp_key)
    if experiment is None:
        raise no_such_experiment(exp_key, [doc["_id"] for doc in store.experiments()])
    if not points:
        raise UsageError("there is no point to queue; write one like '{\"lr\": 0.01}'")
    if not experiment.get("columns"):
        raise UsageError(
            f"what the space of {exp_key} is stands nowhere in the database, so no point can be checked; carry the "
            "search on with this version of hyperfarm, or give its points as points_to_evaluate"
        )
    known = read(experiment["columns"])
    checked = check_points(points, known)
    labels = [column.label for column in known.space.columns]
    if extend:
        _extend(store, exp_key, len(points))
    tids = store.new_tids(len(points))
    docs = [
        {**job_of_point(exp_key, labels, tid, point), **_fields(experiment)}
        for tid, point in zip(tids, checked, strict=True)
    ]
    waiting = docs
    for _ in range(MOST_TRIES):
        budget, taken = _budget(store, exp_key)
        if budget - len(taken) < len(waiting):
            break
        free = (slot for slot in itertools.count() if slot not in taken)
        for doc in waiting:
            doc["slot"] = next(free)
        inserted = store.insert_jobs(waiting)
        # A slot that a controller has taken at this very moment: its job gets another one.
        waiting = [doc for doc in waiting if doc["tid"] not in inserted]
        if not waiting:
            return docs
    store.delete_jobs({"exp_key": exp_key, "tid": {"$in": tids}, "state": int(JobState.NEW)})
    budget, taken = _budget(store, exp_key)
    raise ExperimentConflict(
        f"the budget of {exp_key} ({budget} trials) has room for {max(0, budget - len(taken))} more, not for "
        f"{len(points)}: give --extend (extend=True) to raise it by as many"
    )


def _fields(experiment: Document) -> Document:
    """What the farm's fields of a new job are, besides its slot."""
    fields = {"attempt": 0, "enqueued": True, **experiment.get("trial_limits", {})}
    if experiment.get("ask_and_tell"):
        return {**fields, "ask_and_tell": True, "owner": STUDY_OWNER}
    return {**fields, "bundle": experiment["bundles"][-1]["revision"]}


def _extend(store: Store, exp_key: str, count: int) -> None:
    """Raise the budget; the controller's command goes on naming the one it was begun with."""
    for _ in range(MOST_TRIES):
        doc = store.experiment(exp_key)
        if doc is None or doc["max_evals"] == UNLIMITED:
            return
        more = {"max_evals": doc["max_evals"] + count, "extra_evals": doc.get("extra_evals", 0) + count}
        if store.update_experiment(exp_key, more, only_if={"max_evals": doc["max_evals"]}):
            return
    raise ExperimentConflict(f"the budget of {exp_key} is being changed by others all the time; try again")


def _budget(store: Store, exp_key: str) -> tuple[int, set[int]]:
    """The budget, and its slots that have a job or are kept for the points that the search itself begins with."""
    doc = store.experiment(exp_key) or {"max_evals": 0}
    taken = {row["slot"] for row in store.job_rows(exp_key, ["slot"]) if "slot" in row}
    return doc["max_evals"], taken | set(range(min(doc.get("first_points", 0), doc["max_evals"])))
