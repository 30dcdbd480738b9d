"""Connections to real SSH servers: commands, files, jump hosts, and every way in which they fail."""

from __future__ import annotations

import base64
import gc
import os
import shlex
import signal
import socket
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from gevent.pool import Pool

from hyperfarm.deploy.connection import Connection, HostKeyRefused, Unreachable, shown_key
from hyperfarm.deploy.known_hosts import Verdict, fingerprint
from hyperfarm.deploy.ssh_config import route
from tests.deploy.conftest import address, way
from tests.deploy.net import Net

BIG = os.urandom(1 << 20)


def refused(route_, **options) -> str:
    with pytest.raises(Unreachable) as caught:
        Connection(route_, **options)
    return str(caught.value)


def log_of(host) -> str:
    return (host.folder / "sshd.log").read_text()


def test_a_command_runs_in_the_users_home_with_input_output_and_exit_code(net: Net) -> None:
    host = net.add("a")
    with Connection(way(net, host)) as connection:
        ran = connection.run("pwd; whoami; cat; echo trouble >&2; exit 7", b"line one\nline two")
    assert ran.out.splitlines() == [str(host.home), host.user, "line one", "line two"]
    assert (ran.err, ran.code) == ("trouble", 7)


def test_much_output_and_input_come_through_whole(net: Net) -> None:
    with Connection(way(net, net.add("a"))) as connection:
        ran = connection.run("sha256sum; seq 200000; seq 100000 >&2", BIG)
    digest = (
        subprocess.run(["sha256sum"], input=BIG, capture_output=True, check=True).stdout.split()[0].decode()
    )
    lines = ran.out.splitlines()
    assert lines[0].split()[0] == digest
    assert lines[1:] == [str(number) for number in range(1, 200001)]
    assert len(ran.err.splitlines()) == 100000


def test_a_file_is_its_owners_alone_and_replaces_the_one_before(net: Net) -> None:
    host = net.add("a")
    with Connection(way(net, host)) as connection:
        connection.put(b"old", "it's a file")
        connection.put(BIG, "it's a file")
    file = host.home / "it's a file"
    assert file.read_bytes() == BIG
    assert file.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in host.home.iterdir()] == ["it's a file"]


def test_a_full_disk_leaves_the_old_file_and_no_half_one(net: Net) -> None:
    host = net.add("a")
    inside = ["nsenter", f"--mount=/proc/{host.pids()[0]}/ns/mnt", f"--net=/run/netns/{host.name}"]
    full = host.home / "small"
    full.mkdir()
    subprocess.run([*inside, "mount", "-t", "tmpfs", "-o", "size=64k,mode=777", "none", full], check=True)
    with Connection(way(net, host)) as connection:
        connection.put(b"old", "small/file")
        with pytest.raises(Unreachable, match="is the disk full"):
            connection.put(BIG, "small/file")
        assert connection.run("cat small/file; ls small").out == "oldfile"


def test_by_way_of_a_jump_host(net: Net) -> None:
    gate, inner = net.add("gate", port=2222), net.add("inner")
    with Connection(way(net, inner, gate)) as connection:
        assert connection.run("whoami").out == inner.user
        connection.put(BIG, "file")
        assert connection.run("echo $SSH_CONNECTION").out.split()[0] == gate.address
    assert (inner.home / "file").read_bytes() == BIG


def test_no_connection_writes_into_the_next_one(net: Net) -> None:
    """The number of a socket is given out again as soon as it is closed."""
    gate, inner = net.add("gate"), net.add("inner", settings="MaxSessions 20")
    over, before = way(net, inner, gate), len(os.listdir("/proc/self/fd"))

    def user(_: int) -> str:
        with Connection(over) as connection:
            return connection.run("whoami").out

    for _ in range(8):
        with Connection(over) as connection:  # Only now is the one before freed.
            assert connection.run("whoami").out == inner.user
    assert Pool(6).map(user, range(18)) == [inner.user] * 18
    assert "Bad packet length" not in log_of(gate) + log_of(inner)
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before + 8  # gevent's own


def test_a_server_that_dies_in_the_middle_is_one_sentence(net: Net) -> None:
    host = net.add("a")
    with Connection(way(net, host)) as connection:
        connection.run("true")
        for pid in host.pids():
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(Unreachable, match="the connection broke"):
            connection.run("true", deadline_s=10)


def test_an_unknown_key_is_refused_before_anything_is_sent(net: Net) -> None:
    host = net.add("a")
    told = refused(way(net, host, known_hosts=()))
    key = host.key.split()[1]
    assert fingerprint(base64.b64decode(key)) in told
    assert "keys --accept-new" in told
    assert host.user not in log_of(host)


def test_a_changed_key_is_refused_before_anything_is_sent(net: Net) -> None:
    host = net.add("a")
    before = way(net, host)
    for kind in ("ed25519", "ecdsa", "rsa"):
        host.stop()
        host.new_key(kind)
        host.start()
        with pytest.raises(HostKeyRefused, match="HAS CHANGED") as caught:
            Connection(before, password="hunter2")
        assert caught.value.verdict is Verdict.CHANGED
        assert host.user not in log_of(host)


@pytest.mark.parametrize("kind", ["ecdsa", "rsa"])
def test_a_host_that_is_known_by_its_lesser_key_shows_that_one(net: Net, kind: str) -> None:
    host = net.add("a")
    (host.folder / "host_key").rename(host.folder / "first")
    (host.folder / "host_key.pub").rename(host.folder / "first.pub")
    host.new_key(kind)
    host.stop()
    host.settings = f"HostKey {host.folder}/first"
    host.start()
    with Connection(way(net, host)) as connection:
        assert connection.run("true").code == 0


def test_a_jump_host_with_a_changed_key_is_refused(net: Net) -> None:
    gate, inner = net.add("gate"), net.add("inner")
    over = way(net, inner, gate)
    gate.stop()
    gate.new_key()
    gate.start()
    told = refused(over)
    assert told.startswith(f"jump host {gate.user}@{gate.address}:22: ITS HOST KEY HAS CHANGED")


def test_who_is_not_let_in_is_told_what_was_tried(net: Net) -> None:
    host = net.add("a")
    assert refused(way(net, host, keys=())).startswith(f"it refuses to let {host.user} in; tried: nothing")
    told = refused(way(net, host, user="nobody2"), password="hunter2")
    assert told == f"it refuses to let nobody2 in; tried: {net.key}, the password"


def test_a_password_where_the_host_takes_one(net: Net) -> None:
    host = net.add("a", password="open sesame")
    with Connection(way(net, host, keys=()), password="open sesame") as connection:
        assert connection.run("whoami").out == host.user
    assert "the password" in refused(way(net, host, keys=()), password="open barley")


def test_the_agent(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    host = net.add("a")
    sock = net.folder / "agent"
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", sock], stdout=subprocess.DEVNULL)
    try:
        monkeypatch.setenv("SSH_AUTH_SOCK", str(sock))
        deadline = time.monotonic() + 10
        while not sock.exists():
            assert time.monotonic() < deadline
        subprocess.run(["ssh-add", "-q", net.key], check=True, capture_output=True)
        with Connection(way(net, host, keys=(), agent=True)) as connection:
            assert connection.run("whoami").out == host.user
    finally:
        agent.kill()
        agent.wait()


def test_nothing_listens_nobody_answers_nobody_knows_the_name(net: Net) -> None:
    host = net.add("a")
    there = way(net, host)
    assert refused(way(net, host, port=23)) == "nothing listens on port 23: is sshd running there?"
    assert "is not known (DNS)" in refused(replace(way(net, host), host="nowhere.invalid"))
    host.cut()
    began = time.monotonic()
    assert "cannot be reached" in refused(there, connect_s=1.0)
    assert time.monotonic() - began < 5


def test_a_server_that_says_nothing(net: Net) -> None:
    host = net.add("a")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        began = time.monotonic()
        told = refused(replace(way(net, host), host="127.0.0.1", port=port), connect_s=1.0)
        assert time.monotonic() - began < 5
    assert told == f"no answer on port {port} of 127.0.0.1"


def test_a_command_past_its_deadline(net: Net) -> None:
    with Connection(way(net, net.add("a"))) as connection:
        with pytest.raises(Unreachable, match=r"no end after 0\.5 s: sleep 60"):
            connection.run("sleep 60", deadline_s=0.5)
        assert connection.run("echo still here").out == "still here"


def test_a_connection_that_breaks_while_a_command_runs(net: Net) -> None:
    host = net.add("a")
    with Connection(way(net, host)) as connection:
        threading.Timer(0.5, lambda: [os.kill(pid, 9) for pid in host.pids()]).start()
        with pytest.raises(Unreachable):
            connection.run("sleep 60", deadline_s=30)


def test_the_key_is_shown_without_logging_in(net: Net) -> None:
    host = net.add("a")
    assert shown_key(way(net, host, known_hosts=(), keys=())) == base64.b64decode(host.key.split()[1])
    assert host.user not in log_of(host)


def test_ssh_s_own_configuration_leads_the_way(net: Net, ssh_home: Path) -> None:
    gate, inner = net.add("gate", port=2222), net.add("inner", port=2022)
    (ssh_home / ".ssh" / "known_hosts").write_text(net.known_hosts())
    (ssh_home / ".ssh" / "config").write_text(f"""\
Host inner
  HostName {inner.address}
  User {inner.user}
  Port 2022
  ProxyJump gate
Host gate
  HostName {gate.address}
  User {gate.user}
  Port 2222
Host *
  IdentityFile {shlex.quote(str(net.key))}
""")
    from hyperfarm.deploy.hosts_file import Address

    found = route(Address(host="inner"))
    assert (found.host, found.port, found.user, found.keys) == (inner.address, 2022, inner.user, (net.key,))
    assert found.jump is not None
    assert found.jump.port == 2222
    with Connection(found) as connection:
        assert connection.run("whoami").out == inner.user
    assert route(Address(host="inner", user="other", port=7)).user == "other"
    assert route(address(inner), address(gate)).jump is not None
