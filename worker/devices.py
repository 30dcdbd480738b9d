"""Which GPUs this host has, and which slot gets which."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence

VARIABLE = "CUDA_VISIBLE_DEVICES"
ASK_S = 30.0


def present(environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Return this host's GPUs: those that CUDA_VISIBLE_DEVICES allows, or else what `nvidia-smi -L` lists."""
    if VARIABLE in environment:
        named = (name.strip() for name in environment[VARIABLE].split(","))
        return tuple(name for name in named if name and not name.startswith("-"))
    try:
        listed = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=ASK_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
    if listed.returncode != 0:
        return ()
    lines = (line for line in listed.stdout.splitlines() if line.startswith("GPU "))
    return tuple(line[4:].partition(":")[0] for line in lines)


def cores() -> int:
    """Return how many cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def automatic_slots(devices: Sequence[str]) -> int:
    """One slot for each GPU; on a host without any, one for each core."""
    return len(devices) or cores()


def share(devices: Sequence[str], slots: int) -> list[tuple[str, ...]]:
    """Return the devices of each slot: all are given out evenly; where there are too few, slots share one."""
    if not devices:
        return [()] * slots
    if len(devices) < slots:
        return [(devices[slot % len(devices)],) for slot in range(slots)]
    return [tuple(devices[slot::slots]) for slot in range(slots)]
