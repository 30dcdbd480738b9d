"""Points that the caller wants tried first (hyperopt's `points_to_evaluate`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hyperfarm.errors import UsageError
from hyperfarm.jobs import JobDoc
from hyperfarm.values import to_plain


def check_points(points: Sequence[Mapping[str, Any]], domain: Any) -> list[dict[str, Any]]:
    """Return the points as plain values. Raises UsageError for one that the space cannot take.

    A point names the value of every parameter that is active there (of a choice, the index of the option).
    """
    from hyperopt import pyll

    checked = []
    for number, point in enumerate(points, 1):
        if not isinstance(point, Mapping):
            raise UsageError(
                f"points_to_evaluate: number {number} is no dict of parameters, but {point!r:.80}"
            )
        unknown = [str(name) for name in point if name not in domain.params]
        if unknown:
            raise UsageError(
                f"points_to_evaluate: number {number} names {', '.join(unknown)}; the space has "
                f"{', '.join(sorted(domain.params))}"
            )
        plain = to_plain(dict(point))
        memo = domain.memo_from_config(plain)
        try:
            pyll.rec_eval(domain.expr, memo=memo, print_node_on_error=False)
        except Exception as error:
            missing = sorted(set(domain.params) - set(point))
            if missing and isinstance(error, AssertionError):  # So hyperopt says that it needs one of them.
                raise UsageError(
                    f"points_to_evaluate: number {number} lacks a value of one of: {', '.join(missing)}"
                ) from error
            raise UsageError(
                f"points_to_evaluate: the space cannot take number {number}: {type(error).__name__}: {error}"
            ) from error
        checked.append(plain)
    return checked


def doc_of_point(trials: Any, domain: Any, tid: int, point: Mapping[str, Any]) -> JobDoc:
    """The job document of a point, as hyperopt's algorithms make theirs."""
    idxs = {label: [tid] if label in point else [] for label in domain.params}
    vals = {label: [point[label]] if label in point else [] for label in domain.params}
    misc = {"tid": tid, "cmd": domain.cmd, "workdir": domain.workdir, "idxs": idxs, "vals": vals}
    docs: list[JobDoc] = trials.new_trial_docs([tid], [None], [domain.new_result()], [misc])
    return docs[0]
