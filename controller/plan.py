"""What the search does next, decided from what is known; pure, without a database or a clock."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

QUEUE_AHEAD_FROM = 0.05
"""A job is queued ahead only when at least this many trials end during one reaction of the controller."""
AHEAD_SAFETY = 2.0


class Reason(Enum):
    """Why a search has ended."""

    COMPLETE = "all trials are finished"
    TIMEOUT = "the time is up"
    THRESHOLD = "the loss threshold is reached"
    EARLY_STOP = "no progress: early_stop_fn said stop"
    EXHAUSTED = "the algorithm has no further points"
    CANCELLED = "the experiment was cancelled"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True, kw_only=True)
class Situation:
    """What the controller knows at one moment.

    `budget` max_evals; `taken` slots of the budget with a job, of which `finished` have ended, `queued`
    wait, `parked` wait out a back-off and `running` run. `live_slots` of all live workers that serve this
    experiment and do not rest, of which `busy_elsewhere` run other experiments. `rate` trials finished per
    second of late; `reaction_s` the time from a trial's end to its successor in the queue.
    """

    budget: float
    taken: int
    finished: int
    queued: int
    parked: int
    running: int
    live_slots: int
    busy_elsewhere: int
    rate: float
    reaction_s: float


def is_complete(now: Situation) -> bool:
    """True when every slot of the budget has a finished trial."""
    return now.finished >= now.budget


def jobs_wanted(now: Situation, max_concurrent: float = math.inf) -> int:
    """Return how many suggestions to ask for: enough that no slot waits, and no more.

    No more than `max_concurrent` jobs then wait, wait out a back-off, or run: workers claim what is queued, so what
    is not queued cannot run.

    A suggestion made early knows less, so the queue holds what free slots will take at once, plus what
    ends while the controller reacts. One job waits whenever there may be takers that we do not see: no
    registered worker at all (hyperopt's own workers do not register), or slots busy with other
    experiments, which come to us only if we have something queued.
    """
    capacity = max(0, now.live_slots - now.busy_elsewhere)
    ending = now.rate * now.reaction_s
    ahead = math.ceil(AHEAD_SAFETY * ending) if ending >= QUEUE_AHEAD_FROM else 0
    target = max(0, capacity - now.running) + min(ahead, 2 * max(capacity, 1) + 64)
    unseen_takers = now.live_slots == 0 or now.busy_elsewhere > 0 or now.running > capacity
    if target == 0 and unseen_takers:
        target = 1
    left = now.budget - now.taken
    room = max_concurrent - now.queued - now.parked - now.running
    return int(max(0, min(target - now.queued, left, room)))
