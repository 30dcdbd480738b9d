"""Values in a form that a person or a program can read: short texts, and strict JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from hyperfarm.analysis.reading import Experiment, loss_of, parameters_of
from hyperfarm.blobs import REF
from hyperfarm.jobs import JobDoc

SHORT = 70


def as_json(value: Any) -> str:
    """Return one strict JSON text: NaN and infinities become null, datetimes ISO 8601, bytes their size."""
    return json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, bytes):
        return {"bytes": len(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value)


def brief(value: Any, length: int = SHORT) -> str:
    """Return a value as one line of at most about `length` characters."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, datetime):
        return moment(value)
    if isinstance(value, bytes):
        return f"<{size(len(value))} of bytes>"
    if isinstance(value, Mapping) and REF in value:
        return f"<{size(value['size'])} in GridFS>"
    if isinstance(value, list):
        text = (
            "[" + ", ".join(brief(item, 20) for item in value[:20]) + (", ...]" if len(value) > 20 else "]")
        )
        return text if len(text) <= length else f"{shortened(text, length - 15)} ({len(value)} items)"
    if isinstance(value, Mapping):
        text = ", ".join(f"{key}: {brief(item, 30)}" for key, item in list(value.items())[:20])
        return shortened("{" + text + "}", length)
    return shortened(str(value), length)


def shortened(text: str, length: int) -> str:
    """Return the text in one line, cut to `length` characters."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 3] + "..."


def size(count: int) -> str:
    """Return a number of bytes for a person: 512 bytes, 1.2 MB."""
    if count < 1000:
        return f"{count} bytes"
    amount = count / 1000
    for unit in ("kB", "MB", "GB"):
        if amount < 999.5:
            return f"{amount:.3g} {unit}"
        amount /= 1000
    return f"{amount:.3g} TB"


def seconds(value: float | None) -> str:
    """Return a duration for a person: 0.12 s, 75 s, 12 min 5 s, 3 h 20 min; empty for None."""
    if value is None:
        return ""
    if value < 100:
        return f"{value:.3g} s"
    whole = round(value)
    if whole < 6000:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def moment(value: datetime | None) -> str:
    """Return a time to the second, in UTC."""
    return "" if value is None else value.strftime("%Y-%m-%d %H:%M:%S UTC")


def loss_text(row: JobDoc) -> str:
    """The loss of a trial, empty when there is none."""
    loss = loss_of(row)
    return "" if loss is None else f"{loss:.6g}"


def chosen(experiment: Experiment, row: JobDoc) -> dict[str, str]:
    """What the indices of choices stand for, by label, as far as the text of the space tells."""
    told = {}
    for label, value in parameters_of(row).items():
        options = experiment.space.choices.get(label, [])
        if isinstance(value, int) and 0 <= value < len(options):
            told[label] = options[value]
    return told


def parameter_texts(experiment: Experiment, row: JobDoc) -> dict[str, str]:
    """The parameters of a trial as a person reads them, a choice by its name."""
    names = chosen(experiment, row)
    return {
        label: shortened(names.get(label, brief(value, 30)), 30)
        for label, value in parameters_of(row).items()
    }
