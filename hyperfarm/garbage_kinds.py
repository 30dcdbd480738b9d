"""The kinds of garbage, and what is known of each; pure (garbage.py finds and removes them)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")

OLDER_THAN_S = 3600.0
UNFENCED_S = 900.0
"""What no token fences is left alone for so long, if it may still be in the making."""
_BATCH = 500
_BATCH_BYTES = 256 << 20
"""One statement deletes no more than this: it must be answered in time."""


class Blob(NamedTuple):
    """A file in GridFS. `what`: its kind; `token`: of the attempt that made it, None when no attempt did."""

    bucket: str
    id: Any
    what: str
    exp_key: str | None
    tid: int | None
    token: str | None
    age_s: float
    size: int


class Upload(NamedTuple):
    """Chunks without a file; `newest` is the `_id` of the last of them."""

    bucket: str
    id: Any
    newest: Any
    age_s: float
    size: int


class Reports(NamedTuple):
    """The reports of one attempt."""

    exp_key: str | None
    tid: int
    token: str
    number: int
    size: int


class Row(NamedTuple):
    """How much there is of one kind; `exp_key` is "" for what belongs to no experiment."""

    what: str
    exp_key: str | None
    number: int
    size: int


@dataclass(kw_only=True)
class Garbage:
    """What may be removed, and in `waiting` what only time can tell from something in the making."""

    blobs: list[Blob] = field(default_factory=list)
    uploads: list[Upload] = field(default_factory=list)
    reports: list[Reports] = field(default_factory=list)
    workers: list[Any] = field(default_factory=list)
    waiting: list[Blob | Upload] = field(default_factory=list)

    def rows(self) -> list[Row]:
        """What may be removed, by kind and experiment."""
        things: list[Blob | Upload] = [*self.blobs, *self.uploads]
        found = [_entry(one) for one in things]
        found += [("report", one.exp_key, one.number, one.size) for one in self.reports]
        return _summed(found + [("worker", "", 1, 0)] * len(self.workers))

    def waiting_rows(self) -> list[Row]:
        return _summed([_entry(one) for one in self.waiting])


def _entry(one: Blob | Upload) -> tuple[str, str | None, int, int]:
    if isinstance(one, Blob):
        return one.what, one.exp_key, 1, one.size
    return "upload", "", 1, one.size


def _summed(entries: Sequence[tuple[str, str | None, int, int]]) -> list[Row]:
    counts: Counter[tuple[str, str | None]] = Counter()
    sizes: Counter[tuple[str, str | None]] = Counter()
    for what, exp_key, count, size in entries:
        counts[what, exp_key] += count
        sizes[what, exp_key] += size
    return [
        Row(*key, counts[key], sizes[key]) for key in sorted(counts, key=lambda key: (str(key[1]), key[0]))
    ]


class Running:
    """The attempts that run, by what was read of the jobs."""

    def __init__(self) -> None:
        self._tokens: set[str | None] = set()
        self._trials: set[tuple[str, Any]] = set()

    def add(self, token: str | None, exp_key: object, tid: object) -> None:
        self._tokens.add(token)
        self._trials.add((str(exp_key), tid))

    @property
    def any(self) -> bool:
        return bool(self._trials)

    def may_refer_to(self, blob: Blob) -> bool:
        """True when an attempt that runs has made the blob, or may have: it says so when it ends."""
        if blob.token is None:
            return (str(blob.exp_key), blob.tid) in self._trials
        return blob.token in self._tokens


def batches(items: Iterable[T], size: Callable[[T], int] = lambda _: 0) -> Iterator[list[T]]:
    """Lists of at most _BATCH items, and, past the first of each, _BATCH_BYTES."""
    batch: list[T] = []
    total = 0
    for item in items:
        if batch and (len(batch) == _BATCH or total + size(item) > _BATCH_BYTES):
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += size(item)
    if batch:
        yield batch
