"""From what objectives return to what BSON can hold, and back.

`to_plain` runs in the objective's process; `encode_keys`/`decode_keys` where documents are written and read.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import math
import numbers
import os
import re
from collections.abc import Callable, Mapping, Set
from typing import Any

MAX_DEPTH = 60
INT64_MAX = 2**63 - 1
MAX_DECIMAL_BITS = 10_000
"""Python refuses to write much larger integers in decimal."""
_SIMPLE = (bool, float, bytes)


def to_plain(value: Any, *, where: str = "result", note: Callable[[str], None] = lambda _: None) -> Any:
    """Return `value` as None, bool, int, float, str, bytes, datetime, or lists and dicts of those.

    NumPy and tensor scalars become numbers, arrays become nested lists, tuples and sets become lists, times
    with a zone become UTC, keys become strings. What cannot be stored becomes a short text in its place, and
    `note` is told one sentence about it: a long training run is never lost to one odd value.
    """
    return _plain(value, where, note, 0)


def _plain(value: Any, where: str, note: Callable[[str], None], depth: int) -> Any:
    if value is None or type(value) in _SIMPLE:
        return value
    if isinstance(value, enum.Enum):
        return _plain(value.value, where, note, depth)
    if isinstance(value, numbers.Integral):
        return _plain_int(int(value), where, note)
    if isinstance(value, numbers.Real):
        return _plain_real(value, where, note)
    if isinstance(value, (str, os.PathLike)):
        return _plain_text(str(value), where, note)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    if isinstance(value, dt.datetime):
        return _plain_datetime(value, where, note)
    if isinstance(value, dt.date):
        return dt.datetime(value.year, value.month, value.day, tzinfo=dt.timezone.utc)
    if depth >= MAX_DEPTH:
        note(f"{where} is nested deeper than {MAX_DEPTH} levels; what lies below is not stored")
        return _text_of(value)
    if isinstance(value, Mapping):
        return _plain_mapping(value, where, note, depth)
    if isinstance(value, (list, tuple, Set)):
        return [_plain(item, f"{where}[{i}]", note, depth + 1) for i, item in enumerate(value)]
    return _plain_foreign(value, where, note, depth)


def _plain_mapping(
    value: Mapping[Any, Any], where: str, note: Callable[[str], None], depth: int
) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for key, item in value.items():
        name = _plain_text(key if isinstance(key, str) else _text_of(key, str), f"a key of {where}", note)
        if name in plain:
            note(f"{where} has several keys that become {name!r} as text; the last one is stored")
        plain[name] = _plain(item, f"{where}[{name!r}]", note, depth + 1)
    return plain


def _plain_text(value: str, where: str, note: Callable[[str], None]) -> str:
    """Text as UTF-8 can hold it: file names that are not UTF-8 come in with lone surrogates."""
    try:
        value.encode()
    except UnicodeEncodeError:
        note(f"{where} is not valid Unicode; what is not is stored as \\udcxx")
        return value.encode("utf-8", "backslashreplace").decode()
    return str(value)


def _plain_real(value: numbers.Real, where: str, note: Callable[[str], None]) -> float | str:
    try:
        return float(value)
    except OverflowError:
        note(f"{where} is a number beyond the range of a float; it is stored as text")
        return _text_of(value)


def _plain_datetime(value: dt.datetime, where: str, note: Callable[[str], None]) -> dt.datetime | str:
    try:
        # From subclasses (pandas.Timestamp) to the class itself; no zone but UTC passes every reader.
        moment = dt.datetime.combine(value.date(), value.timetz())
        return moment if moment.tzinfo is None else moment.astimezone(dt.timezone.utc)
    except (OverflowError, ValueError):
        note(f"{where} is a time beyond the years 1 to 9999; it is stored as text")
        return _text_of(value)


def _plain_int(value: int, where: str, note: Callable[[str], None]) -> int | str:
    if -INT64_MAX - 1 <= value <= INT64_MAX:
        return value
    note(f"{where} is an integer beyond 64 bits; it is stored as text")
    return str(value) if value.bit_length() < MAX_DECIMAL_BITS else hex(value)


def _plain_foreign(value: Any, where: str, note: Callable[[str], None], depth: int) -> Any:
    """Convert objects of other libraries: anything with NumPy's `tolist`, a tensor's `numpy`, a dataclass."""
    if isinstance(value, (complex, type)) or callable(value):
        return _unstorable(value, where, note)
    for method in ("tolist", "numpy"):
        convert = getattr(value, method, None)
        if callable(convert):
            try:
                return _plain(convert(), where, note, depth + 1)
            except Exception as error:  # noqa: BLE001 - any library's conversion may fail in its own way
                note(f"{where}.{method}() failed: {error}")
                return _text_of(value)
    if dataclasses.is_dataclass(value):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return _plain(fields, where, note, depth + 1)
    return _unstorable(value, where, note)


def _unstorable(value: Any, where: str, note: Callable[[str], None]) -> str:
    hint = "; save a model with trial.save_model(model)" if hasattr(value, "get_weights") else ""
    note(f"{where} is a {type(value).__name__}, which cannot be stored; a text stands in its place{hint}")
    return _text_of(value)


def _text_of(value: Any, write: Callable[[Any], str] = repr) -> str:
    try:
        return write(value)[:200].encode("utf-8", "backslashreplace").decode()
    except Exception:  # noqa: BLE001 - a broken __repr__ must not lose the result
        return f"<{type(value).__name__}>"


def is_number(value: Any) -> bool:
    """True for a finite or infinite real number that is not a bool (NaN is not a number here)."""
    return not isinstance(value, bool) and isinstance(value, numbers.Real) and not math.isnan(value)


_UNSAFE = re.compile(r"[.\x00]|^\$|%(?=24|25|2E|00)")
_ESCAPED = re.compile(r"%(24|25|2E|00)")


def encode_key(key: str) -> str:
    """Return `key` in a form that MongoDB takes as one plain field name (`.`, leading `$` and NUL escaped)."""
    return _UNSAFE.sub(lambda match: f"%{ord(match.group()):02X}", key)


def decode_key(key: str) -> str:
    """Undo `encode_key`."""
    return _ESCAPED.sub(lambda match: chr(int(match.group(1), 16)), key)


def encode_keys(value: Any) -> Any:
    """Return a copy of `value` with all keys of all dicts encoded."""
    return _map_keys(value, encode_key)


def decode_keys(value: Any) -> Any:
    """Undo `encode_keys`."""
    return _map_keys(value, decode_key)


def _map_keys(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, dict):
        return {change(key): _map_keys(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [_map_keys(item, change) for item in value]
    return value
