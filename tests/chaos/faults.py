"""The kinds of faults: each a context manager that does the harm on entering and undoes it on leaving."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import psutil

from tests.chaos.cluster import Cluster
from tests.chaos.disk import Disk
from tests.chaos.farm import Farm, Program

READS = ("find", "aggregate", "getMore")
WRITES = ("findAndModify", "update", "insert", "delete")
GOING_AWAY_CODES = (91, 11600, 11602, 189, 10107, 13435)
NETWORK_CODES = (6, 7, 89, 9001, 262)
OUT_OF_DISK_SPACE = 14031
TERM_PATIENCE_S = 25.0


class NothingToDo(Exception):
    """The target is not there at the moment; the fault does not count."""


@dataclass(kw_only=True)
class World:
    """All that a fault can reach."""

    cluster: Cluster
    farm: Farm
    disks: list[Disk]
    database: str
    stop: threading.Event = field(default_factory=threading.Event)
    late: list[str] = field(default_factory=list)
    """Supervisors that did not end after SIGTERM as they should."""

    def family(self, target: int) -> list[psutil.Process]:
        """The supervisor of a host and all processes below it."""
        pid = self.farm.workers[target].pid
        with contextlib.suppress(psutil.NoSuchProcess):
            if pid is not None:
                supervisor = psutil.Process(pid)
                return [supervisor, *supervisor.children(recursive=True)]
        return []


Act = Callable[[World, random.Random, int], AbstractContextManager[None]]


def _send(program: Program, number: int) -> None:
    if program.pid is None:
        raise NothingToDo
    program.signal(number)


@contextlib.contextmanager
def kill_child(world: World, dice: random.Random, target: int) -> Iterator[None]:
    children = world.farm.workers[target].children()
    if not children:
        raise NothingToDo
    with contextlib.suppress(psutil.NoSuchProcess):
        dice.choice(children).kill()
    yield


@contextlib.contextmanager
def kill_supervisor(world: World, _dice: random.Random, target: int) -> Iterator[None]:
    _send(world.farm.workers[target], signal.SIGKILL)
    yield


@contextlib.contextmanager
def kill_controller(world: World, _dice: random.Random, _target: int) -> Iterator[None]:
    _send(world.farm.controller, signal.SIGKILL)
    yield


@contextlib.contextmanager
def term_supervisor(world: World, dice: random.Random, target: int) -> Iterator[None]:
    """A drain, cut short by a second SIGTERM now and then; the supervisor has to end either way."""
    program = world.farm.workers[target]
    _send(program, signal.SIGTERM)
    process = program.process
    yield
    assert process is not None
    if process.poll() is None and dice.random() < 0.5:
        process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + TERM_PATIENCE_S
    while process.poll() is None and time.monotonic() < deadline:
        threading.Event().wait(0.1)
    if process.poll() is None:
        world.late.append(f"{program.name} ran on {TERM_PATIENCE_S:.0f} s after SIGTERM")
        process.kill()


@contextlib.contextmanager
def _stopped(processes: list[psutil.Process]) -> Iterator[None]:
    if not processes:
        raise NothingToDo
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.suspend()
    try:
        yield
    finally:
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()


@contextlib.contextmanager
def stop_supervisor(world: World, dice: random.Random, target: int) -> Iterator[None]:
    family = world.family(target)
    with _stopped(family if dice.random() < 0.5 else family[:1]):
        yield


@contextlib.contextmanager
def stop_controller(world: World, _dice: random.Random, _target: int) -> Iterator[None]:
    pid = world.farm.controller.pid
    with _stopped([] if pid is None else [psutil.Process(pid)]):
        yield


@contextlib.contextmanager
def kill_mongod(world: World, _dice: random.Random, target: int) -> Iterator[None]:
    member = world.cluster.members[target]
    member.kill()
    try:
        yield
    finally:
        world.cluster.restart(member)


@contextlib.contextmanager
def step_down(world: World, _dice: random.Random, _target: int) -> Iterator[None]:
    if not world.cluster.step_down():
        raise NothingToDo
    yield


@contextlib.contextmanager
def _failing(world: World, mode: Any, **data: Any) -> Iterator[None]:
    world.cluster.fail(mode, **data)
    try:
        yield
    finally:
        world.cluster.stop_failing()


def _mode(dice: random.Random) -> Any:
    """More than the one failure that a driver's retry hides, or all for as long as the fault lasts."""
    return dice.choice(["alwaysOn", {"times": dice.randint(2, 12)}])


def _some(dice: random.Random, commands: tuple[str, ...]) -> list[str]:
    return dice.sample(commands, dice.randint(1, len(commands)))


def fail_connection(world: World, dice: random.Random, _target: int) -> AbstractContextManager[None]:
    return _failing(world, _mode(dice), failCommands=_some(dice, READS + WRITES), closeConnection=True)


def fail_going_away(world: World, dice: random.Random, _target: int) -> AbstractContextManager[None]:
    commands, code = _some(dice, READS + WRITES), dice.choice(GOING_AWAY_CODES)
    return _failing(world, _mode(dice), failCommands=commands, errorCode=code)


def fail_network_code(world: World, dice: random.Random, _target: int) -> AbstractContextManager[None]:
    commands, code = _some(dice, READS + WRITES), dice.choice(NETWORK_CODES)
    return _failing(world, _mode(dice), failCommands=commands, errorCode=code)


def fail_write_concern(world: World, dice: random.Random, _target: int) -> AbstractContextManager[None]:
    """The write is done, and the answer says that it may yet be undone."""
    error = {"code": dice.choice((91, 64)), "errmsg": "the write concern was not satisfied"}
    return _failing(world, _mode(dice), failCommands=_some(dice, WRITES), writeConcernError=error)


def fail_blob_space(world: World, dice: random.Random, _target: int) -> AbstractContextManager[None]:
    """The database's disk is full, for blobs at least."""
    where = f"{world.database}.farm.{dice.choice(('chunks', 'files'))}"
    data = {"failCommands": ["insert"], "errorCode": OUT_OF_DISK_SPACE, "namespace": where}
    return _failing(world, _mode(dice), **data)


@contextlib.contextmanager
def cut_network(world: World, _dice: random.Random, target: int) -> Iterator[None]:
    world.cluster.members[target].proxy.cut()
    yield


@contextlib.contextmanager
def broken_network(world: World, dice: random.Random, target: int) -> Iterator[None]:
    """Refused, slow, silent (both ways or one) or half-closed, for a while; then it works again."""
    proxy = world.cluster.members[target].proxy
    kind = dice.choice(("refuse", "delay", "hold", "hold requests", "hold answers", "half-close"))
    if kind == "refuse":
        proxy.refuse()
    elif kind == "delay":
        proxy.delay(dice.uniform(0.02, 0.5))
    elif kind == "half-close":
        proxy.half_close(towards_client=dice.random() < 0.5)
    else:
        proxy.hold(requests=kind != "hold answers", answers=kind != "hold requests")
    try:
        yield
    finally:
        if dice.random() < 0.5:
            proxy.cut()  # What was held back is lost; otherwise it arrives late.
        proxy.heal()


@contextlib.contextmanager
def outage(world: World, _dice: random.Random, _target: int) -> Iterator[None]:
    """No member can be reached, by nobody, for long."""
    for member in world.cluster.members:
        member.proxy.refuse()
    try:
        yield
    finally:
        for member in world.cluster.members:
            member.proxy.heal()


@contextlib.contextmanager
def full_disk(world: World, dice: random.Random, target: int) -> Iterator[None]:
    disk = world.disks[target]
    disk.fill(dice, world.family(target))
    try:
        yield
    finally:
        disk.free(world.family(target))


@dataclass(frozen=True, kw_only=True)
class Kind:
    """`on` what it works: 'worker', 'controller', 'mongod', 'failpoint', 'disk'; faults on one thing take turns."""

    act: Act
    on: str
    weight: float
    longest_s: float
    """0: it is done in a moment."""


KINDS: dict[str, Kind] = {
    "kill child": Kind(act=kill_child, on="worker", weight=4, longest_s=0),
    "kill supervisor": Kind(act=kill_supervisor, on="worker", weight=2, longest_s=0),
    "kill controller": Kind(act=kill_controller, on="controller", weight=2, longest_s=0),
    "term supervisor": Kind(act=term_supervisor, on="worker", weight=2, longest_s=2),
    "stop supervisor": Kind(act=stop_supervisor, on="worker", weight=3, longest_s=20),
    "stop controller": Kind(act=stop_controller, on="controller", weight=1, longest_s=15),
    "kill mongod": Kind(act=kill_mongod, on="mongod", weight=2, longest_s=10),
    "step down": Kind(act=step_down, on="failpoint", weight=2, longest_s=0),
    "connections closed": Kind(act=fail_connection, on="failpoint", weight=2, longest_s=6),
    "server going away": Kind(act=fail_going_away, on="failpoint", weight=2, longest_s=6),
    "network error codes": Kind(act=fail_network_code, on="failpoint", weight=1, longest_s=6),
    "write concern errors": Kind(act=fail_write_concern, on="failpoint", weight=2, longest_s=6),
    "no space for blobs": Kind(act=fail_blob_space, on="failpoint", weight=1, longest_s=4),
    "network cut": Kind(act=cut_network, on="mongod", weight=2, longest_s=0),
    "network broken": Kind(act=broken_network, on="mongod", weight=4, longest_s=15),
    "outage": Kind(act=outage, on="mongod", weight=0.7, longest_s=60),
    "disk full": Kind(act=full_disk, on="disk", weight=1, longest_s=8),
}
NEEDS_REPLICATION = frozenset({"step down"})


def resume_all(world: World) -> None:
    """Let every stopped process of the farm go on, whatever became of the fault that stopped it."""
    for program in world.farm.programs:
        if program.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(program.pid, signal.SIGCONT)
