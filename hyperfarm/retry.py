"""Waiting for a MongoDB that is away for a while."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import TypeVar

from hyperfarm.errors import DatabaseUnavailable, OutcomeUnknown

T = TypeVar("T")
log = logging.getLogger("hyperfarm")

PATIENCE_S = 600.0
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0
SLICE_S = 0.1


def patiently(
    call: Callable[[], T],
    *,
    patience_s: float = PATIENCE_S,
    stop: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """Call until it works; `call` must be safe to repeat.

    Repeats after DatabaseUnavailable and OutcomeUnknown only, with growing pauses, and says once what it
    waits for. The error comes through after `patience_s` seconds, or as soon as `stop()` is true.
    """
    deadline = clock() + patience_s
    pause = FIRST_PAUSE_S
    told = False
    while True:
        try:
            value = call()
        except (DatabaseUnavailable, OutcomeUnknown) as error:
            if stop() or clock() >= deadline:
                raise
            if not told and pause > 1.0:
                limit = "" if math.isinf(patience_s) else f" (up to {patience_s:.0f} s)"
                log.warning("waiting for MongoDB%s: %s", limit, error)
                told = True
            until = clock() + pause
            while clock() < until and not stop():
                sleep(SLICE_S)
            pause = min(2 * pause, LONGEST_PAUSE_S)
        else:
            if told:
                log.warning("MongoDB is back")
            return value
