"""Hosts with real SSH servers; see net.py."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hyperfarm.deploy.hosts_file import Address
from hyperfarm.deploy.known_hosts import known_name
from hyperfarm.deploy.ssh_config import Route
from tests.deploy.database import mongod_at
from tests.deploy.net import Host, Net, network, run

NEEDED = ("sshd", "ip", "ssh", "ssh-keygen", "unshare", "openssl")


@pytest.fixture(scope="session")
def net_number() -> int:
    """Test processes that run side by side have networks of their own."""
    return 20 + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))


@pytest.fixture
def net(net_number: int) -> Iterator[Net]:
    """An empty network. Where it cannot be made, CI fails and everybody else skips."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    missing = [name for name in NEEDED if shutil.which(name, path=path) is None]
    if missing or os.geteuid() != 0:
        reason = (
            f"needs root and {', '.join(missing) or 'nothing else'} (apt-get install openssh-server iproute2)"
        )
        assert not os.environ.get("CI"), reason
        pytest.skip(reason)
    with network(net_number) as made:
        yield made


@pytest.fixture(autouse=True)
def ssh_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with an empty .ssh, and no agent."""
    home = tmp_path / "controller"
    (home / ".ssh").mkdir(parents=True, mode=0o700)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return home


def way(net: Net, host: Host, jump: Host | None = None, **changes: object) -> Route:
    """The way to a host of the network, with the network's key and known_hosts."""
    known = net.folder / "known_hosts"
    known.write_text(net.known_hosts())
    fields: dict[str, object] = {
        "host": host.address,
        "port": host.port,
        "user": host.user,
        "known_as": known_name(host.address, host.port),
        "keys": (net.key,),
        "known_hosts": (known,),
        "agent": False,
        "jump": way(net, jump) if jump else None,
    }
    return Route(**{**fields, **changes})  # type: ignore[arg-type]


def address(host: Host) -> Address:
    return Address(host=host.address, user=host.user, port=host.port)


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `hyperfarm hosts wheelhouse` makes."""
    folder = tmp_path_factory.mktemp("wheels")
    run(sys.executable, "-m", "hyperfarm.cli", "hosts", "wheelhouse", folder)
    return folder


@pytest.fixture
def database(net: Net) -> Iterator[int]:
    with mongod_at(net.gateway, net.folder / "mongod") as port:
        yield port
