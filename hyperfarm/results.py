"""What an objective may return, by hyperopt's conventions, and what it means."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from hyperfarm.errors import InvalidResult

STATUSES = ("new", "running", "suspended", "ok", "fail")
"""hyperopt's STATUS_STRINGS; an objective returns 'ok' or 'fail'."""


def interpret(returned: Any, *, hyperopt_losses: bool) -> dict[str, Any]:
    """Return the result as a dict with `status`, and with a float `loss` when the status is 'ok'.

    A number is a loss. A dict without a status counts as 'ok'. With `hyperopt_losses` NaN and infinities are
    losses like any other, as hyperopt has it; otherwise NaN and -infinity, which can only come from a
    mistake, are refused. Raises InvalidResult with a sentence for the author of the objective.
    """
    if isinstance(returned, Mapping):
        result = dict(returned)
        result.setdefault("status", "ok")
        if result["status"] not in STATUSES:
            raise InvalidResult(
                f"the objective returned status {result['status']!r}; it must be 'ok' or 'fail'"
            )
        if result["status"] != "ok":
            return result
        if "loss" not in result:
            names = ", ".join(map(repr, result)) or "nothing"
            raise InvalidResult(f"the objective returned a dict without 'loss' (it has {names})")
        result["loss"] = _number(result["loss"], "a dict whose 'loss' is")
    else:
        result = {"status": "ok", "loss": _number(returned, "")}
    if not hyperopt_losses and (math.isnan(result["loss"]) or result["loss"] == -math.inf):
        raise InvalidResult(f"the objective returned a loss of {result['loss']}, which cannot be compared")
    return result


def _number(value: Any, how: str) -> float:
    wrong = value is None or isinstance(value, (str, bytes, Mapping, list, tuple, set))
    try:
        if not wrong:
            return float(value)
    except (TypeError, ValueError, OverflowError):
        pass
    shown = "None" if value is None else f"a {type(value).__name__}"
    said = " ".join(part for part in ("the objective returned", how, shown) if part)
    raise InvalidResult(f"{said}; it must return a number, or a dict with 'loss' and 'status'")
