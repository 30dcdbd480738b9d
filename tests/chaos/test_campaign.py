"""A short campaign with a fixed seed, and what it is made of: its plan and its proxy."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.chaos import campaign, outcome
from tests.chaos.cluster import free_port
from tests.chaos.disk import Disk
from tests.chaos.farm import forget_clock, wrong_clock
from tests.chaos.faults import KINDS
from tests.chaos.nemesis import plan
from tests.chaos.proxy import Proxy, ProxyLoop
from tests.support import eventually

SEED = 2
SILENT_S = 0.3


@pytest.mark.timeout(420)
def test_the_books_balance_after_a_minute_of_chaos(tmp_path: Path) -> None:
    done = campaign.carry_out(campaign.make(SEED, 1.0, tmp_path))
    told = "\n".join(f"{finding.kind}: {finding.text}\n{finding.detail}" for finding in done.findings)
    assert not done.findings, f"{told}\nlogs: {tmp_path}"
    assert done.trials == done.max_evals
    assert sum(done.faults.values()) >= 10
    assert done.executions > done.trials  # Something was indeed cut off, and done again.
    row = outcome.table([tmp_path / f"seed{SEED}-{done.topology}.json"]).splitlines()[-1]
    assert row.startswith(f"| {SEED} | {done.topology} |")
    assert row.endswith("| none |")


def test_a_plan_depends_on_the_seed_alone() -> None:
    assert plan(7, 600, "three", 3) == plan(7, 600, "three", 3)
    assert plan(7, 600, "three", 3) != plan(8, 600, "three", 3)
    assert {fault.kind for fault in plan(7, 3600, "three", 3)} == KINDS.keys()
    assert all(fault.at_s + fault.lasts_s <= 600 for fault in plan(7, 600, "three", 3))
    assert "step down" not in {fault.kind for fault in plan(7, 3600, "standalone", 3)}


@pytest.mark.parametrize("skew_s", [600, -600])
def test_a_wrong_clock_is_wrong_and_its_monotonic_clock_is_right(skew_s: int) -> None:
    command = [sys.executable, "-c", "import time; print(time.time(), time.monotonic())"]
    with subprocess.Popen(
        command, env={**os.environ, **wrong_clock(skew_s)}, stdout=subprocess.PIPE, text=True
    ) as shown:
        wall, monotonic = map(float, shown.communicate()[0].split())
    forget_clock(shown.pid)
    assert abs(wall - time.time() - skew_s) < 30
    assert 0 <= time.monotonic() - monotonic < 30


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    """A proxy before a server that sends back what it gets."""
    server = socket.create_server(("127.0.0.1", 0))

    def echo(peer: socket.socket) -> None:
        with peer, contextlib.suppress(ConnectionError):
            while data := peer.recv(1 << 16):
                peer.sendall(data)

    def serve() -> None:
        while True:
            try:
                peer, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=echo, args=[peer], daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    with ProxyLoop() as loop:
        yield Proxy(loop, free_port(set()), server.getsockname()[1])
    server.shutdown(socket.SHUT_RDWR)
    server.close()


def connected(proxy: Proxy) -> socket.socket:
    peer = socket.create_connection(("127.0.0.1", proxy.port), timeout=5)
    peer.sendall(b"hello")
    assert peer.recv(5) == b"hello"
    peer.settimeout(SILENT_S)
    return peer


def test_the_proxy_cuts_and_refuses(proxy: Proxy) -> None:
    with connected(proxy) as peer:
        proxy.cut()
        with pytest.raises(ConnectionResetError):
            peer.recv(1)
    proxy.refuse()
    with pytest.raises(ConnectionRefusedError):
        connected(proxy)
    proxy.heal()
    connected(proxy).close()


@pytest.mark.parametrize("direction", ["requests", "answers"])
def test_what_the_proxy_holds_back_arrives_late(proxy: Proxy, direction: str) -> None:
    with connected(proxy) as peer:
        proxy.hold(requests=direction == "requests", answers=direction == "answers")
        peer.sendall(b"late")
        with pytest.raises(TimeoutError):
            peer.recv(4)
        proxy.heal()
        assert eventually(lambda: peer.recv(4), "the bytes arrive", 5) == b"late"


def test_the_proxy_half_closes(proxy: Proxy) -> None:
    with connected(proxy) as peer:
        proxy.half_close(towards_client=True)
        assert peer.recv(1) == b""
        peer.sendall(b"the other direction still takes this")


WRITER = """
import errno, sys
for name in sys.stdin:
    try:
        with open(name.strip(), "wb") as out:
            out.write(bytes(20_000))
        print("written", flush=True)
    except OSError as error:
        print(errno.errorcode[error.errno], flush=True)
"""


@pytest.mark.parametrize("may_mount", [True, False])
def test_a_full_disk_takes_no_file_until_it_is_freed(tmp_path: Path, may_mount: bool) -> None:
    with Disk(tmp_path / "tmp", may_mount=may_mount) as disk:
        command = [sys.executable, "-c", WRITER]
        with subprocess.Popen(
            command, cwd=disk.path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        ) as host:
            family = [psutil.Process(host.pid)]

            def written(name: str) -> str:
                host.stdin.write(f"{name}\n")
                return host.stdout.readline().strip()

            assert written("one") == "written"
            disk.fill(random.Random(1), family)
            assert written("two") == ("ENOSPC" if disk.is_mounted else "EFBIG")
            disk.free(family)
            assert written("three") == "written"
            host.stdin.close()
    assert not disk.path.exists()
