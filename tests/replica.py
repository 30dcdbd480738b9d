"""A replica set of three mongods on the loopback address, whose primary a test may depose or kill."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pymongo import MongoClient
from pymongo.errors import ConnectionFailure, OperationFailure, PyMongoError

from hyperfarm.mongod_fetch import find_mongod
from tests.support import eventually

SET = "three"
START_S = 90.0
OPTIONS = ["--bind_ip", "127.0.0.1", "--nounixsocket", "--quiet", "--wiredTigerCacheSizeGB", "0.25"]
OPTIONS += ["--replSet", SET, "--oplogSize", "128"]
PARAMETERS = {
    "enableTestCommands": "1",
    "diagnosticDataCollectionEnabled": "false",
    "shutdownTimeoutMillisForSignaledShutdown": "0",
}
Answer = dict[str, Any]


class Member:
    """One mongod of the set."""

    def __init__(self, folder: Path, port: int) -> None:
        folder.mkdir(parents=True)
        mongod = find_mongod(print)
        self.port = port
        self.client: MongoClient[Answer] = MongoClient(
            "127.0.0.1", port, directConnection=True, serverSelectionTimeoutMS=500, socketTimeoutMS=30_000
        )
        command = [str(mongod.path), "--dbpath", str(folder), "--port", str(port), *OPTIONS]
        for name, value in PARAMETERS.items():
            command += ["--setParameter", f"{name}={value}"]
        with (folder / "mongod.log").open("wb") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=mongod.environment(),
                start_new_session=True,
            )

    def hello(self) -> Answer:
        """What it says of itself; nothing when it does not answer."""
        try:
            return self.client.admin.command("hello")
        except PyMongoError:
            return {}

    def close(self) -> None:
        self.client.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()


class ReplicaSet:
    """Three members, of which one leads."""

    def __init__(self, members: list[Member]) -> None:
        self.members = members
        self.hosts = [f"127.0.0.1:{member.port}" for member in members]

    def url(self, database: str) -> str:
        return f"mongodb://{','.join(self.hosts)}/{database}?replicaSet={SET}"

    def initiate(self) -> None:
        """Make the set, and wait until a primary has all members behind it."""
        first = self.members[0]
        for member in self.members:
            eventually(member.hello, f"the member at {member.port} answers", START_S)
        config = {
            "_id": SET,
            "members": [{"_id": number, "host": host} for number, host in enumerate(self.hosts)],
            "settings": {"electionTimeoutMillis": 3000, "heartbeatIntervalMillis": 500},
        }
        first.client.admin.command("replSetInitiate", config)
        self.primary()
        eventually(self._complete, "all members are up", START_S)

    def _complete(self) -> bool:
        told = [member.hello() for member in self.members]
        return all(one.get("isWritablePrimary") or one.get("secondary") for one in told)

    def primary(self) -> Member:
        """The member that takes writes now; waits for one."""
        found: Member = eventually(
            lambda: next((one for one in self.members if one.hello().get("isWritablePrimary")), None),
            "a primary",
            START_S,
        )
        return found

    def step_down(self) -> Member:
        """Depose the primary for at least some seconds; return it when it is no primary any more."""
        deposed = self.primary()

        def refused() -> bool:
            # No other member may be up to date at this very moment: ask again.
            try:
                deposed.client.admin.command("replSetStepDown", 5, secondaryCatchUpPeriodSecs=4)
            except ConnectionFailure:
                return False
            except OperationFailure:
                return bool(deposed.hello().get("isWritablePrimary"))
            return False

        eventually(lambda: not refused(), "the primary steps down", START_S)
        return deposed

    def kill_primary(self) -> Member:
        """Kill the primary's process with SIGKILL; return it."""
        killed = self.primary()
        killed.process.kill()
        killed.process.wait()
        return killed


@contextlib.contextmanager
def three_members(folder: Path) -> Iterator[ReplicaSet]:
    """A replica set in `folder`; nothing of it is left running when the block ends."""
    with contextlib.ExitStack() as stack:
        members = []
        for number, port in enumerate(_free_ports(3)):
            members.append(member := Member(folder / f"member{number}", port))
            stack.callback(member.close)
        made = ReplicaSet(members)
        made.initiate()
        yield made


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
