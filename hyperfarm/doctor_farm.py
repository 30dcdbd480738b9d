"""The checks of `hyperfarm doctor` about workers, trials and this host: each decides from facts alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from hyperfarm.doctor import Check, counted, good, problem, warning
from hyperfarm.presence import listed, name_of, pauses, refuses, serves, silence_s
from hyperfarm.store import LIVE_AFTER_S

Worker = Mapping[str, Any]

LATELY = timedelta(days=1)
"""What happened before is history, and no reason to warn."""
LONG_EXPIRED_S = 300.0
"""Whoever looks takes an expired lease back much sooner."""
LOW_BYTES = 1 << 30
LOW_SHARE = 0.05
FULL_BYTES = 100 << 20


@dataclass(frozen=True, kw_only=True)
class Versions:
    """What a host runs. `python` in full: 3.11.2."""

    python: str
    hyperfarm: str
    hyperopt: str


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """Trials of one experiment that have something in common: how many, one of them, since when."""

    exp_key: str | None
    count: int
    tid: int
    since: datetime | None = None


# ---- workers ---------------------------------------------------------------------------------------------


def living(workers: Sequence[Worker], now: datetime) -> list[Worker]:
    """The workers whose last heartbeat is young enough; `now` is the database's clock."""
    return [worker for worker in workers if silence_s(worker, now) < LIVE_AFTER_S]


def check_workers(workers: Sequence[Worker], waiting: Sequence[str | None], now: datetime) -> Check:
    """Somebody works where something waits (`waiting`: exp_keys), and nobody fell silent of late."""
    name, alive = "workers", living(workers, now)
    slots, busy = (sum(worker.get(what) or 0 for worker in alive) for what in ("slots", "busy"))
    hosts = counted(len({worker.get("host") for worker in alive}), "host")
    told = (
        f"{len(alive)} alive on {hosts}, {busy} of {counted(slots, 'slot')} busy" if alive else "none alive"
    )
    left = [key for key in waiting if not any(serves(worker, key) for worker in alive)]
    if left:
        return problem(
            name,
            f"{told}; nobody serves what waits: {listed(map(str, left))}",
            "start a worker: `hyperfarm worker --mongo URL` on any host (without --exp-key it serves all)",
        )
    silent = [worker for worker in workers if LIVE_AFTER_S <= silence_s(worker, now) < LATELY.total_seconds()]
    if silent:
        names = [f"{name_of(worker)} for {silence_s(worker, now) / 60:.0f} min" for worker in silent]
        return warning(
            name,
            f"{told}; silent without having said goodbye: {listed(names)}",
            "they were killed, or lost the database: look at their output, and start them again if they are "
            "gone; their trials are given to others",
        )
    return good(name, told)


def check_versions(workers: Sequence[Worker], here: Versions, now: datetime) -> Check | None:
    """The living workers run what this host runs; None without any."""
    name, alive = "versions", living(workers, now)
    if not alive:
        return None
    differing, pythons = [], False
    for worker in alive:
        versions = worker.get("versions") or {}
        told = []
        if _minor(str(worker.get("python"))) != _minor(here.python):
            pythons = True
            told.append(f"Python {worker.get('python')} (here {here.python})")
        for what, ours in (("hyperfarm", here.hyperfarm), ("hyperopt", here.hyperopt)):
            if versions.get(what) != ours:
                told.append(f"{what} {versions.get(what, 'unknown')} (here {ours})")
        if told:
            differing.append(f"{name_of(worker)} runs {', '.join(told)}")
    ours = f"Python {_minor(here.python)}, hyperfarm {here.hyperfarm}, hyperopt {here.hyperopt}"
    if not differing:
        return good(name, f"{ours}, here and at {counted(len(alive), 'worker')}")
    advice = "install the same versions on all hosts"
    if pythons:
        advice += "; a worker runs only experiments that were started with its own minor version of Python"
    return warning(name, listed(differing), advice)


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def check_refusals(workers: Sequence[Worker], waiting: Sequence[str | None], now: datetime) -> Check | None:
    """No living worker refuses an experiment; a problem when one waits that all of them refuse."""
    name, alive = "refusals", living(workers, now)
    if not alive:
        return None
    told = [f"{name_of(worker)} refuses {one.get('exp_key')}: {one.get('reason')}"
            for worker in alive for one in worker.get("refused") or ()]  # fmt: skip
    if not told:
        return good(name, "no worker refuses an experiment")
    advice = "do what the reason says on that host; the worker tries again within a minute"
    able = {key: [worker for worker in alive if serves(worker, key)] for key in waiting}
    stuck = [key for key, these in able.items() if these and all(refuses(worker, key) for worker in these)]
    if stuck:
        return problem(
            name, f"every worker refuses what waits: {', '.join(map(str, stuck))}; {listed(told)}", advice
        )
    return warning(name, listed(told), advice)


def check_pauses(workers: Sequence[Worker], now: datetime) -> Check | None:
    """No slot of a living worker pauses."""
    alive = living(workers, now)
    told = pauses(alive)
    if not told:
        return good("slots", "none is paused") if alive else None
    return warning(
        "slots",
        f"paused: {listed(told)}",
        "the trials' processes crash on that host: see `hyperfarm logs EXP_KEY TRIAL`, its memory and its "
        "devices; a slot goes on by itself after its pause",
    )


# ---- trials ----------------------------------------------------------------------------------------------


def check_leases(expired: Sequence[Trouble], someone_lives: bool) -> Check:
    """No running trial has lost its worker for so long that somebody should have taken it back."""
    name = "leases"
    if not expired:
        return good(name, "no running trial has lost its worker")
    told = f"expired for over {LONG_EXPIRED_S / 60:.0f} min and not taken back: {_told(expired)}"
    if not someone_lives:
        return warning(
            name, told, "start a worker or the search again: either takes them back within a minute"
        )
    return problem(
        name,
        told,
        "the living workers should have taken them back: look at their output, restart one of them",
    )


def check_foreign(running: Sequence[Trouble], now: datetime) -> Check | None:
    """Trials without a lease run at hyperopt's own workers; a warning when one of them began long ago."""
    if not running:
        return None
    name, told = "foreign workers", f"running without a lease, at hyperopt's own workers: {_told(running)}"
    if all(one.since is not None and now - one.since < LATELY for one in running):
        return good(name, told)
    return warning(
        name,
        f"{told}; some began over a day ago",
        "if their worker is gone they run for ever: `hyperfarm cancel EXP_KEY`, or set their state to 0",
    )


def check_exhausted(given_up: Sequence[Trouble]) -> Check:
    """No trial of late was given up since every attempt was cut off."""
    name = "attempts"
    if not given_up:
        return good(name, "no trial was given up in the last day")
    one = given_up[0]
    return warning(
        name,
        f"given up in the last day, every attempt having been cut off: {_told(given_up)}",
        f"see why: `hyperfarm show {one.exp_key} {one.tid}` and `hyperfarm logs {one.exp_key} {one.tid}`",
    )


def _told(troubles: Sequence[Trouble]) -> str:
    return listed(
        f"{counted(one.count, 'trial')} of {one.exp_key} ({'trial' if one.count == 1 else 'the last'} {one.tid})"
        for one in troubles
    )


# ---- this host -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Disk:
    """Room in one place, in bytes; `remedy` says how to get more or go elsewhere."""

    name: str
    place: str
    free: float
    total: float
    remedy: str


def check_disk(disk: Disk) -> Check:
    """There is room left."""
    share = disk.free / disk.total if disk.total else 0.0
    told = f"{disk.free / (1 << 30):.1f} GB free ({share:.0%}) at {disk.place}"
    if disk.free < FULL_BYTES:
        return problem(disk.name, told, disk.remedy)
    if disk.free < LOW_BYTES or share < LOW_SHARE:
        return warning(disk.name, told, disk.remedy)
    return good(disk.name, told)


@dataclass(frozen=True, kw_only=True)
class Secret:
    """The farm's secret on this host. `fault`: why it cannot be used, None when it can."""

    file: str
    exists: bool
    fault: str | None = None


def check_secret(secret: Secret) -> Check:
    """There is a secret that this user alone can read, or none yet."""
    if secret.fault is not None:
        return problem(
            "secret",
            secret.fault,
            "without it this host can neither start searches nor check code that it is given",
        )
    if not secret.exists:
        return good(
            "secret",
            f"none yet ({secret.file}): the first search makes it; hosts that only work need the controller's",
        )
    return good("secret", f"{secret.file}, readable by you alone")


def check_signatures(faults: Mapping[str, str], checked: int, total: int, has_secret: bool) -> Check | None:
    """The newest code of the experiments is signed with our secret; `faults` by exp_key, None without any code.

    The `checked` newest of `total` experiments were looked at.
    """
    name = "signatures"
    if not total:
        return None
    if not has_secret:
        return warning(
            name,
            f"{counted(total, 'experiment')} with code, and no secret on this host to check it with",
            "copy the file `secret` from the configuration folder of the controller's host: workers here "
            "refuse all experiments without it",
        )
    if faults:
        return problem(
            name,
            listed(f"{key}: {fault}" for key, fault in faults.items()),
            "workers with this host's secret refuse these experiments",
        )
    which = f"the {checked} newest of " if checked < total else "all " if total > 1 else ""
    return good(name, f"code of {which}{counted(total, 'experiment')} is signed with this host's secret")
