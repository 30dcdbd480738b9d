"""The life of a job: its states, the events that move it, and nothing else (no database, no clock).

A job is one evaluation of the objective. `TRANSITIONS` is the whole truth about what may happen to it;
store.py carries each event out as one conditional statement.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import Enum, IntEnum
from typing import Any

from hyperfarm.errors import InvalidTransition

JobDoc = dict[str, Any]
"""A document of the collection `jobs`, as MongoDB holds it."""

DEFAULT_MAX_ATTEMPTS = 3
DEFAULT_LEASE_S = 90.0


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
