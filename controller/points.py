"""Points that somebody wants tried: hyperopt's `points_to_evaluate`, and those put into the queue by hand."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hyperfarm.controller.known_space import KnownSpace, describe
from hyperfarm.controller.space import OutsideSpace
from hyperfarm.errors import UsageError
from hyperfarm.jobs import JobDoc, JobState
from hyperfarm.protocols import FMIN_DOMAIN
from hyperfarm.values import to_plain

Point = dict[str, int | float]


def points_of_space(points: Sequence[Mapping[str, Any]], space: Any) -> list[Point]:
    """Return `points_to_evaluate` as plain values, checked against a hyperopt space (see `check_points`)."""
    return check_points(points, describe(space), "points_to_evaluate: number") if points else []


def check_points(points: Sequence[Any], known: KnownSpace, what: str = "point") -> list[Point]:
    """Return the points as trials hold them.

    A point names the value of every parameter that is active there; of a choice, the index of the option (or
    the option itself: `KnownSpace.checked`). Raises UsageError, in which `what` precedes the point's number.
    """
    checked = []
    for number, point in enumerate(points, 1):
        if not isinstance(point, Mapping):
            raise UsageError(f"{what} {number} is no dict of parameters, but {point!r:.80}")
        try:
            checked.append(known.checked(to_plain(dict(point))))
        except OutsideSpace as error:
            raise UsageError(f"{what} {number}: {error}") from error
    return checked


def read_points(text: str) -> list[Any]:
    """The points in JSON text, in the file that `@FILE` names, or on standard input (`-`).

    One point, or a list of points. Raises UsageError for what is no JSON or cannot be read.
    """
    where = repr(text) if len(text) <= 60 else f"{text[:60]!r}..."
    try:
        if text == "-":
            where, text = "standard input", sys.stdin.read()
        elif text.startswith("@"):
            where = text[1:]
            text = Path(where).read_text("utf-8")
        found = json.loads(text)
    except OSError as error:
        raise UsageError(f"cannot read the points in {where}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{where} is no JSON: {error}; write a point like '{{\"lr\": 0.01}}'") from error
    return found if isinstance(found, list) else [found]


def doc_of_point(trials: Any, domain: Any, tid: int, point: Mapping[str, Any]) -> JobDoc:
    """The job document of a point, as hyperopt's algorithms make theirs."""
    return job_of_point(trials._exp_key, list(domain.params), tid, point)


def job_of_point(exp_key: str | None, labels: Sequence[str], tid: int, point: Mapping[str, Any]) -> JobDoc:
    """The same, for a space that has these labels."""
    vals = {label: [point[label]] if label in point else [] for label in labels}
    idxs = {label: [tid] if values else [] for label, values in vals.items()}
    cmd = ["domain_attachment", FMIN_DOMAIN]
    return {
        "state": int(JobState.NEW),
        "tid": tid,
        "spec": None,
        "result": {"status": "new"},
        "misc": {"tid": tid, "cmd": cmd, "workdir": None, "idxs": idxs, "vals": vals},
        "exp_key": exp_key,
        "owner": None,
        "version": 0,
        "book_time": None,
        "refresh_time": None,
    }
