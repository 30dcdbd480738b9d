"""What the trials of the benchmarks do; imported by the workers of both sides."""

from __future__ import annotations

import time


def noop(x: float) -> float:
    """Cost nothing, so that all that is left is the farm's own cost."""
    return x**2


def sleep02(x: float) -> float:
    """Keep a slot busy for 0.2 s without using the processor."""
    time.sleep(0.2)
    return x**2
