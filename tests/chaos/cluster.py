"""The MongoDB of a campaign: one or three mongods on the loopback address, each behind a proxy.

The members of a replica set are registered under the addresses of their proxies, so that the traffic of
clients and of replication passes them. The campaign itself speaks to the mongods directly.
"""

from __future__ import annotations

import contextlib
import random
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

from pymongo import MongoClient
from pymongo.errors import OperationFailure, PyMongoError

from hyperfarm.mongod_fetch import Mongod, find_mongod
from tests.chaos.proxy import Proxy, ProxyLoop
from tests.support import eventually

SET = "chaos"
APP = "hyperfarm"
"""The farm's name for its connections: fail points hit these only, never the campaign's own."""
START_S = 60.0
OPTIONS = ["--bind_ip", "127.0.0.1", "--nounixsocket", "--quiet", "--wiredTigerCacheSizeGB", "0.25"]
PARAMETERS = {
    "enableTestCommands": "1",
    "diagnosticDataCollectionEnabled": "false",
    "shutdownTimeoutMillisForSignaledShutdown": "0",
}
ALREADY_INITIALIZED = 23
POLL_S = 0.05
Command = dict[str, Any]


def free_port(taken: set[int]) -> int:
    """A port below those that the kernel gives to outgoing connections, so that it stays free."""
    while True:
        port = random.randrange(20000, 30000)
        with socket.socket() as probe:
            if port not in taken and probe.connect_ex(("127.0.0.1", port)) != 0:
                taken.add(port)
                return port


class Member:
    """One mongod and its proxy."""

    def __init__(self, loop: ProxyLoop, folder: Path, name: str, replicated: bool, taken: set[int]) -> None:
        self.name, self.folder, self.log = name, folder / name, folder / f"{name}.log"
        self.port = free_port(taken)
        self.proxy = Proxy(loop, free_port(taken), self.port)
        self.replicated = replicated
        self.process: subprocess.Popen[bytes] | None = None
        self.folder.mkdir(parents=True)
        self._direct: MongoClient[Command] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.proxy.port}"

    def start(self, mongod: Mongod, env: dict[str, str]) -> None:
        command = [str(mongod.path), "--dbpath", str(self.folder), "--port", str(self.port), *OPTIONS]
        for name, value in PARAMETERS.items():
            command += ["--setParameter", f"{name}={value}"]
        if self.replicated:
            command += ["--replSet", SET, "--oplogSize", "256"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env=mongod.environment() | env,
                start_new_session=True,
            )

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def command(self, name: str, value: Any = 1, **more: Any) -> Command:
        """Run a command of the database `admin`, past the proxy."""
        if self._direct is None:
            self._direct = MongoClient(
                "127.0.0.1",
                self.port,
                directConnection=True,
                serverSelectionTimeoutMS=500,
                socketTimeoutMS=20_000,
                appname="campaign",
            )
        return self._direct.admin.command(name, value, **more)

    def is_healthy(self) -> bool:
        """True when it serves: as the primary, a secondary, or alone."""
        try:
            hello = self.command("hello")
        except PyMongoError:
            return False
        return bool(hello["isWritablePrimary"] or hello.get("secondary"))

    def is_primary(self) -> bool:
        try:
            return bool(self.command("hello")["isWritablePrimary"])
        except PyMongoError:
            return False

    def close(self) -> None:
        if self._direct is not None:
            self._direct.close()
        self.kill()


class Cluster:
    """All members of a topology ('three', 'one' or 'standalone'); a context manager that leaves nothing."""

    def __init__(self, topology: str, folder: Path, env: dict[str, str]) -> None:
        self.topology, self.replicated = topology, topology != "standalone"
        self._env = {**env, "TMPDIR": str(folder)}
        self._mongod = find_mongod(lambda text: print(text, flush=True))
        self._stack = contextlib.ExitStack()
        loop = self._stack.enter_context(ProxyLoop())
        taken: set[int] = set()
        count = 3 if topology == "three" else 1
        self.members = [
            Member(loop, folder, f"mongod{number}", self.replicated, taken) for number in range(count)
        ]

    def __enter__(self) -> Cluster:
        try:
            for member in self.members:
                self._stack.callback(member.close)
                member.start(self._mongod, self._env)
            for member in self.members:
                eventually(lambda member=member: self._answers(member), f"{member.name} answers", START_S)
            if self.replicated:
                self._initiate()
            eventually(self.is_healthy, "the database takes writes", START_S)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @staticmethod
    def _answers(member: Member) -> bool:
        if member.process is not None and member.process.poll() is not None:
            raise RuntimeError(f"{member.name} ended: {member.log.read_text()[-1000:]}")
        with contextlib.suppress(PyMongoError):
            return bool(member.command("ping"))
        return False

    def _initiate(self) -> None:
        members = [{"_id": number, "host": member.address} for number, member in enumerate(self.members)]
        settings = {"electionTimeoutMillis": 2000, "heartbeatIntervalMillis": 1000}
        config = {"_id": SET, "members": members, "settings": settings}
        try:
            self.members[0].command("replSetInitiate", config)
        except OperationFailure as error:
            if error.code != ALREADY_INITIALIZED:
                raise

    def url(self, database: str) -> str:
        """How the farm is told to connect: through the proxies."""
        hosts = ",".join(member.address for member in self.members)
        options = f"replicaSet={SET}" if self.replicated else "directConnection=true"
        return f"mongodb://{hosts}/{database}?{options}"

    # ---- faults ------------------------------------------------------------------------------------

    def restart(self, member: Member) -> None:
        """Start a killed member again on its folder and port; returns when it serves."""
        member.start(self._mongod, self._env)
        deadline = time.monotonic() + START_S
        while not member.is_healthy():
            assert member.process is not None
            if member.process.poll() is not None or time.monotonic() > deadline:
                # A member that did not find itself under its registered address waits for ever.
                member.kill()
                deadline = time.monotonic() + START_S
                member.start(self._mongod, self._env)
            time.sleep(POLL_S)

    def step_down(self) -> bool:
        """Make the primary step down; False when there is none."""
        primary = next((member for member in self.members if member.is_primary()), None)
        if primary is None:
            return False
        with contextlib.suppress(PyMongoError):
            primary.command("replSetStepDown", 3, secondaryCatchUpPeriodSecs=1, force=True)
        return True

    def fail(self, mode: Any, **data: Any) -> None:
        """Set the fail point `failCommand` for the farm's connections on all members that are up."""
        for member in self.members:
            with contextlib.suppress(PyMongoError):
                member.command("configureFailPoint", "failCommand", mode=mode, data={**data, "appName": APP})

    def stop_failing(self) -> None:
        for member in self.members:
            with contextlib.suppress(PyMongoError):
                member.command("configureFailPoint", "failCommand", mode="off")

    # ---- health ------------------------------------------------------------------------------------

    def is_healthy(self) -> bool:
        """True when every member serves and one takes writes."""
        return all(member.is_healthy() for member in self.members) and any(
            member.is_primary() for member in self.members
        )

    def heal(self) -> None:
        """Undo every fault; returns when all members serve."""
        for member in self.members:
            member.proxy.heal()
        self.stop_failing()
        for member in self.members:
            if member.process is None or member.process.poll() is not None:
                self.restart(member)
        eventually(self.is_healthy, "the database is whole again", START_S)
