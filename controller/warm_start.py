"""Finished trials of other experiments as evidence for the algorithm of this one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from hyperopt.base import Trials

from hyperfarm.cli_options import no_such_experiment
from hyperfarm.controller.known_space import KnownSpace, describe, read
from hyperfarm.controller.space import Column, OutsideSpace
from hyperfarm.errors import UsageError
from hyperfarm.jobs import JobDoc, JobState, is_ok
from hyperfarm.mongo import Document
from hyperfarm.protocols import FMIN_DOMAIN
from hyperfarm.store import Store
from hyperfarm.trials import MongoTrials
from hyperfarm.values import is_number

_FIELDS = ("state", "result.status", "result.loss", "misc.vals", "refresh_time")


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Trials of other experiments as the algorithm sees them, and a line for each experiment on what was taken."""

    docs: Sequence[JobDoc]
    told: Sequence[str]


NO_EVIDENCE = Evidence(docs=(), told=())


class TrialsWithEvidence(Trials):  # type: ignore[misc]
    """The trials of a search behind those of other experiments, for algorithms alone."""

    def __init__(self, own: Trials, evidence: Sequence[JobDoc]) -> None:
        self._own, self._evidence = own, list(evidence)
        super().__init__(exp_key=own._exp_key, refresh=False)

    def refresh(self) -> None:
        """Show what the search's own trials show now; no document is copied."""
        self._dynamic_trials = self._evidence + self._own._dynamic_trials
        self._trials = self._evidence + self._own._trials


def evidence_for(trials: MongoTrials, names: Sequence[str], space: Any) -> Evidence:
    """What the search of `trials` over a hyperopt space learns from other experiments.

    From those named, or without names from those that it was told of before. Raises UsageError for a name that is
    none, and what `compile_space` raises.
    """
    entries = remember(trials.store, trials.exp_key, names)
    return gather(trials.store, trials.exp_key, entries, describe(space)) if entries else NO_EVIDENCE


def remember(store: Store, exp_key: str | None, names: Sequence[str]) -> list[Document]:
    """Write down which experiments this one learns from, and up to when; return what holds from now on.

    Only trials that had ended when an experiment was first named count: so a search that is carried on knows what
    it knew. Without names it goes on with those of before. Raises UsageError for a name that is none.
    """
    doc = store.experiment(exp_key) or {}
    known: list[Document] = doc.get("warm_start") or []
    if not names or [one["exp_key"] for one in known] == list(names):
        return known
    check_names(store, exp_key, names)
    before = {one["exp_key"]: one for one in known}
    now = store.now()
    entries = [before.get(name, {"exp_key": name, "until": now}) for name in dict.fromkeys(names)]
    store.update_experiment(exp_key, {"warm_start": entries})
    return entries


def check_names(store: Store, exp_key: str | None, names: Sequence[str]) -> None:
    """Raise UsageError for a name that is no experiment to learn from; those named before may be gone by now."""
    known = (store.experiment(exp_key) or {}).get("warm_start") or []
    before = {one["exp_key"] for one in known}
    for name in names:
        if name == exp_key:
            raise UsageError(f"{name} is this experiment itself: it learns from its own trials anyway")
        if name not in before and not _is_there(store, name):
            raise no_such_experiment(name, [one["_id"] for one in store.experiments()])


def _is_there(store: Store, name: str) -> bool:
    """An experiment of ours, or one of hyperopt's own, which has jobs only."""
    return store.experiment(name) is not None or store.count_jobs(name, list(JobState)) > 0


def gather(store: Store, exp_key: str | None, entries: Sequence[Document], known: KnownSpace) -> Evidence:
    """Read the successful trials of the experiments that `remember` returned, as far as this space holds them."""
    docs: list[JobDoc] = []
    told = []
    for entry in entries:
        name = entry["exp_key"]
        there = store.experiment(name) or {}
        theirs = read(there["columns"]) if there.get("columns") else None
        rows = [
            row
            for row in store.job_rows(name, _FIELDS)
            if is_ok(row) and is_number(row["result"].get("loss")) and _had_ended(row, entry["until"])
        ]
        points, left_out = take_over([_point(row) for row in rows], known, theirs)
        docs += [
            _as_evidence(exp_key, known, row, point)
            for row, point in zip(rows, points, strict=True)
            if point is not None
        ]
        told.append(tell(name, len(rows), left_out, differences(known, theirs)))
    # Before all trials of any experiment, whose ids begin at 0.
    for number, doc in enumerate(docs):
        tid = number - len(docs)
        doc["tid"] = doc["misc"]["tid"] = tid
        doc["misc"]["idxs"] = {label: [tid] * len(vals) for label, vals in doc["misc"]["vals"].items()}
    return Evidence(docs=docs, told=told)


def _had_ended(row: JobDoc, until: Any) -> bool:
    """Trials without a time (hyperopt's `inject_results`) were there as soon as they were known."""
    return row.get("refresh_time") is None or row["refresh_time"] <= until


def _point(row: JobDoc) -> dict[str, Any]:
    return {label: values[0] for label, values in row["misc"]["vals"].items() if len(values)}


def take_over(
    points: Sequence[Mapping[str, Any]], known: KnownSpace, theirs: KnownSpace | None
) -> tuple[list[dict[str, int | float] | None], Counter[str]]:
    """Return each point as one of this space, None for what it does not hold, and how often which reason was met.

    An option is the same option if it says the same, wherever it stands among the others.
    """
    moved = {} if theirs is None else _moved_options(known, theirs)
    # The index of an option here, a number there: neither says anything of the other.
    other_kind = set() if theirs is None else theirs.options.keys() ^ known.options.keys()
    taken: list[dict[str, int | float] | None] = []
    reasons: Counter[str] = Counter()
    for point in points:
        own = {label: _moved(value, moved.get(label)) for label, value in point.items()}
        own |= dict.fromkeys(other_kind & own.keys())
        try:
            taken.append(known.space.point(known.space.row(own)))
        except OutsideSpace as error:
            taken.append(None)
            reasons[_reason(own, known, str(error))] += 1
    return taken, reasons


def _moved(value: Any, indices: Sequence[int | None] | None) -> Any:
    """What a stored value is in this space; None if it is an option that is not there."""
    if indices is None:
        return value
    return indices[value] if isinstance(value, int) and 0 <= value < len(indices) else None


def _moved_options(known: KnownSpace, theirs: KnownSpace) -> dict[str, list[int | None]]:
    """For each choice of both spaces whose options differ: our index of each of theirs, None where we have none."""
    moved: dict[str, list[int | None]] = {}
    for label, there in theirs.options.items():
        here = known.options.get(label)
        if here is None or list(here) == list(there):
            continue
        plain = [(type(one), one) for one in here]
        moved[label] = [
            plain.index((type(one), one)) if one is not None and (type(one), one) in plain else
            (number if one is None and number < len(here) and here[number] is None else None)
            for number, one in enumerate(there)
        ]  # fmt: skip
    return moved


def _reason(point: Mapping[str, Any], known: KnownSpace, error: str) -> str:
    """Why the space does not hold a point, in words that are the same for like points."""
    for label, value in point.items():
        if label in known.space.index:
            try:
                known.space.columns[known.space.index[label]].check(value)
            except OutsideSpace:
                return f"{label} is outside"
    return error.partition(";")[0]


def differences(known: KnownSpace, theirs: KnownSpace | None) -> list[str]:
    """What does not agree in two spaces, a few words for each parameter."""
    if theirs is None:
        return []
    ours = {column.label: column for column in known.space.columns}
    others = {column.label: column for column in theirs.space.columns}
    said = [f"{label} is new" for label in ours if label not in others]
    said += [f"{label} is gone" for label in others if label not in ours]
    for label in ours.keys() & others.keys():
        one, other = ours[label], others[label]
        if one.distribution != other.distribution:
            said.append(f"{label} is {one.distribution} here and {other.distribution} there")
        elif list(known.options.get(label, ())) != list(theirs.options.get(label, ())):
            said.append(f"{label} has other options")
        elif _shape(one) != _shape(other):
            said.append(f"{label} has another range")
    return sorted(said)


def _shape(column: Column) -> list[Any]:
    return [getattr(column, field.name) for field in fields(Column) if field.name != "conditions"]


def tell(name: str, count: int, left_out: Mapping[str, int], differ: Sequence[str]) -> str:
    """One line on what was taken over from an experiment."""
    used = count - sum(left_out.values())
    text = f"from {name}: {used} of {count} trials used"
    why = [f"{number} left out: {reason}" for reason, number in sorted(left_out.items())]
    return "; ".join([text, *differ, *why])


def _as_evidence(exp_key: str | None, known: KnownSpace, row: JobDoc, point: Mapping[str, Any]) -> JobDoc:
    """A finished trial of this experiment, as far as an algorithm can see."""
    vals = {
        column.label: [point[column.label]] if column.label in point else [] for column in known.space.columns
    }
    return {
        "state": int(JobState.DONE),
        "spec": None,
        "result": {"status": "ok", "loss": row["result"]["loss"]},
        "misc": {"cmd": ["domain_attachment", FMIN_DOMAIN], "workdir": None, "vals": vals},
        "exp_key": exp_key,
        "owner": None,
        "version": 0,
        "book_time": None,
        "refresh_time": row.get("refresh_time"),
    }
