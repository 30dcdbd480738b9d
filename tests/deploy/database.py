"""A mongod that hosts in other network namespaces reach, with whatever options a test needs."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

from pymongo import MongoClient
from pymongo.errors import PyMongoError

from hyperfarm.mongod_fetch import find_mongod
from tests.support import eventually

START_S = 60.0


@contextlib.contextmanager
def mongod_at(address: str, folder: Path, *options: str, probe: str = "") -> Iterator[int]:
    """Run a standalone mongod at this address and on loopback; yields its port. `probe`: options of a URL."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.create_server((address, 0)) as free:
        port = free.getsockname()[1]
    found = find_mongod(print)
    command = [
        str(found.path),
        "--dbpath",
        str(folder),
        "--port",
        str(port),
        "--bind_ip",
        f"127.0.0.1,{address}",
    ]
    command += ["--nounixsocket", "--quiet", "--wiredTigerCacheSizeGB", "0.25", *options]
    with open(folder / "mongod.log", "wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=found.environment(), start_new_session=True
        )
    try:
        with MongoClient(
            f"mongodb://{address}:{port}/?directConnection=true{probe}", serverSelectionTimeoutMS=500
        ) as c:
            eventually(lambda: process.poll() is not None or _answers(c), "mongod answers", START_S)
        assert process.poll() is None, (folder / "mongod.log").read_text()[-2000:]
        yield port
    finally:
        process.kill()
        process.wait()


def _answers(client: MongoClient) -> bool:
    try:
        return bool(client.admin.command("ping"))
    except PyMongoError:
        return False
