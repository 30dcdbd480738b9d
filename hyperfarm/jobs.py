"""The life of a job: its states, the events that move it, and nothing else (no database, no clock).

A job is one evaluation of the objective. `TRANSITIONS` is the whole truth about what may happen to it;
store.py carries each event out as one conditional statement.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import Enum, IntEnum
from typing import Any, TypeVar

from hyperfarm.errors import InvalidTransition, UsageError

N = TypeVar("N", int, float)
JobDoc = dict[str, Any]
"""A document of the collection `jobs`, as MongoDB holds it."""

DEFAULT_MAX_ATTEMPTS = 3
KEPT_HISTORY = 10
DEFAULT_LEASE_S = 90.0
PARKED_OWNER = "hyperfarm:parked"
"""Owns a job that waits out a back-off: hyperopt's own workers claim only what has no owner."""
STUDY_OWNER = "hyperfarm:study"
"""Owns a waiting job of a study (ask and tell): there is no code that a worker could run, so none may claim it."""
BACKOFF_FIRST_S = 2.0
BACKOFF_FACTOR = 4
LONGEST_BACKOFF_S = 120.0


class JobState(IntEnum):
    """Where a job stands. The first four numbers are hyperopt's own."""

    NEW = 0
    """Waits in the queue for a worker."""
    RUNNING = 1
    """A worker holds its lease and runs the objective."""
    DONE = 2
    """The objective returned a result (its status may still be 'fail')."""
    ERROR = 3
    """The objective raised, or every attempt was cut off."""
    CANCELLED = 4
    """A user withdrew it; its slot of the budget is free again."""

    @property
    def is_finished(self) -> bool:
        """True when nothing but a retry by a user moves the job again."""
        return self in (JobState.DONE, JobState.ERROR, JobState.CANCELLED)

    @property
    def label(self) -> str:
        """The word that tables show."""
        return self.name.lower()


class Event(Enum):
    """What can happen to a job."""

    CLAIM = "claim"
    FINISH = "finish"
    FAIL = "fail"
    RELEASE = "release"
    REQUEUE = "requeue"
    GIVE_UP = "give up"
    CANCEL = "cancel"


TRANSITIONS: Mapping[tuple[JobState, Event], JobState] = {
    (JobState.NEW, Event.CLAIM): JobState.RUNNING,
    (JobState.NEW, Event.CANCEL): JobState.CANCELLED,
    (JobState.RUNNING, Event.FINISH): JobState.DONE,
    (JobState.RUNNING, Event.FAIL): JobState.ERROR,
    (JobState.RUNNING, Event.RELEASE): JobState.NEW,
    (JobState.RUNNING, Event.REQUEUE): JobState.NEW,
    (JobState.RUNNING, Event.GIVE_UP): JobState.ERROR,
    (JobState.RUNNING, Event.CANCEL): JobState.CANCELLED,
}


def next_state(state: JobState, event: Event, history: object = ()) -> JobState:
    """Return the state that `event` leads to.

    Raises InvalidTransition, with the job's history in the message, when the table has no such step.
    """
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise InvalidTransition(
            f"a job that is {state.label} cannot {event.value}; its history: {history or 'none'}"
        ) from None


def after_lost_attempt(attempt: int, max_attempts: int) -> Event:
    """Decide what follows when an attempt was cut off (worker died, lease expired).

    `attempt` counts from 1 and is the attempt that was cut off.
    """
    return Event.REQUEUE if attempt < max_attempts else Event.GIVE_UP


def backoff_s(attempt: int) -> float:
    """Return how long a job waits after its attempt number `attempt` (from 1) was cut off, in seconds.

    Grows by BACKOFF_FACTOR up to LONGEST_BACKOFF_S: what took the worker away may take the next one too.
    """
    return float(min(BACKOFF_FIRST_S * BACKOFF_FACTOR ** min(attempt - 1, 20), LONGEST_BACKOFF_S))


@dataclass(frozen=True, kw_only=True)
class TrialLimits:
    """What one trial may take, and how often it is tried; None: no limit.

    `timeout_s` seconds of wall time of one attempt; `memory` bytes resident in all its processes together;
    `keep_models` how many models of the experiment are kept (those of the lowest losses).
    """

    timeout_s: float | None = None
    memory: int | None = None
    max_attempts: int = DEFAULT_MAX_ATTEMPTS
    keep_models: int | None = None

    def __post_init__(self) -> None:
        """Raise UsageError for a limit that makes no sense."""
        if self.timeout_s is not None and not self.timeout_s > 0:
            raise UsageError(f"the trial timeout is {self.timeout_s}; it must be a number of seconds above 0")
        if self.memory is not None and self.memory < 1:
            raise UsageError(f"the trial memory is {self.memory}; it must be a number of bytes above 0")
        if self.max_attempts < 1:
            raise UsageError(f"max_attempts is {self.max_attempts}; it must be 1 or more")
        if self.keep_models is not None and self.keep_models < 0:
            raise UsageError(f"keep_models is {self.keep_models}; it must be 0 or more")

    @property
    def fields(self) -> JobDoc:
        """The fields of a job that hold these limits."""
        limits = {"timeout_s": self.timeout_s, "memory": self.memory, "keep_models": self.keep_models}
        given = {name: value for name, value in limits.items() if value is not None}
        return {"max_attempts": self.max_attempts, **({"limits": given} if given else {})}

    @classmethod
    def of(cls, doc: Mapping[str, Any]) -> TrialLimits:
        """The limits of a job document."""
        limits = doc.get("limits") or {}
        return cls(
            timeout_s=limits.get("timeout_s"),
            memory=limits.get("memory"),
            max_attempts=doc.get("max_attempts", DEFAULT_MAX_ATTEMPTS),
            keep_models=limits.get("keep_models"),
        )

    def tightened(self, timeout_s: float | None, memory: int | None) -> TrialLimits:
        """These limits or a host's own, whichever is lower."""
        return replace(self, timeout_s=_lower(self.timeout_s, timeout_s), memory=_lower(self.memory, memory))


def _lower(one: N | None, other: N | None) -> N | None:
    given = [value for value in (one, other) if value is not None]
    return min(given) if given else None


def is_parked(doc: Mapping[str, Any]) -> bool:
    """True for a job that waits out a back-off (or has done so, and nobody has claimed it yet)."""
    return bool(doc["state"] == JobState.NEW and doc.get("owner") == PARKED_OWNER)


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """What waits in the queue: experiments with a job that may be claimed now, and when the next may be.

    `next_s` seconds until a job's back-off ends, None when no job waits out a back-off.
    """

    exp_keys: list[str | None]
    next_s: float | None


@dataclass(frozen=True, kw_only=True)
class Lease:
    """The right to run a job and to write about it, until `expires` by the database's clock."""

    token: str
    worker: str
    expires: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A job that this worker has just claimed, with the lease that fences all it writes.

    `doc` is the job as it was after the claim.
    """

    doc: JobDoc
    lease: Lease

    @property
    def job_id(self) -> Any:
        return self.doc["_id"]

    @property
    def tid(self) -> int:
        return int(self.doc["tid"])

    @property
    def exp_key(self) -> str | None:
        key: str | None = self.doc["exp_key"]
        return key

    @property
    def attempt(self) -> int:
        return int(self.doc.get("attempt", 1))

    @property
    def max_attempts(self) -> int:
        return int(self.doc.get("max_attempts", DEFAULT_MAX_ATTEMPTS))


def is_ok(doc: Mapping[str, Any]) -> bool:
    """True for a finished job whose result counts as a success (hyperopt's status 'ok')."""
    return bool(doc["state"] == JobState.DONE and doc["result"].get("status") == "ok")


def is_failed(doc: Mapping[str, Any]) -> bool:
    """True for a finished job without a usable result: it raised, or its result says 'fail'."""
    return bool(doc["state"] == JobState.ERROR or (doc["state"] == JobState.DONE and not is_ok(doc)))
