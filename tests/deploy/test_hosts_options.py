"""What `hyperfarm hosts` says without touching a host, and what it does there without installing anything."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.deploy.net import Net
from tests.deploy.user import User
from tests.support import eventually


@pytest.fixture
def user(net: Net, wheels: Path) -> User:
    return User(net, 1, wheels)  # There is no database.


def test_mistakes_are_told_before_anything_is_done(user: User) -> None:
    assert "No such file" in user.hyperfarm("hosts", "up", code=2)
    user.write("gpu1 slots=many", "gpu2:x")
    told = user.hyperfarm("hosts", "down", code=2)
    assert "line 1: slots=many" in told
    assert "line 2: 'gpu2:x' has no usable port" in told
    user.write("gpu1 labels=fast")
    assert "its labels are fast" in user.hyperfarm("hosts", "status", "--only", "slow", code=2)
    assert "asks on a terminal" in user.hyperfarm("hosts", "exec", "--ask-password", "true", code=2)
    user.env["HYPERFARM_MONGO"] = ""
    assert "the hosts need a MongoDB that they reach" in user.hyperfarm("hosts", "up", code=2)


def test_a_plan_connects_to_nobody(user: User) -> None:
    user.write("gpu1 slots=2 devices=0,1", "me@gpu2:2222 jump=gate", 'gpu3 worker_command="run me"')
    told = user.hyperfarm("hosts", "up", "--dry-run", "--", "--exp-key", "digits").splitlines()
    own = "~/.hyperfarm/venv/bin/hyperfarm worker --name"
    assert told == [
        f"gpu1: {own} gpu1 --slots 2 --devices 0,1 --exp-key digits",
        f"me@gpu2:2222 over gate: {own} me@gpu2:2222 --slots auto --devices auto --exp-key digits",
        "gpu3: /bin/sh -c run me",
    ]


def test_keys_are_pinned_once_and_a_changed_one_never(net: Net, user: User) -> None:
    gate, inner = net.add("gate", port=2222), net.add("inner")
    known = user.home / ".ssh" / "known_hosts"
    known.write_text("# mine\n")
    user.write(f"{inner.user}@{inner.address} jump={gate.user}@{gate.address}:2222")
    assert "--accept-new adds it" in user.hyperfarm("hosts", "keys", code=4)
    assert known.read_text() == "# mine\n"
    assert "added" in user.hyperfarm("hosts", "keys", "--accept-new")
    lines = known.read_text().splitlines()
    assert lines == ["# mine", f"[{gate.address}]:2222 {gate.key}", f"{inner.address} {inner.key}"]
    assert "known" in user.hyperfarm("hosts", "keys", "--accept-new")
    inner.stop()
    inner.new_key()
    inner.start()
    assert "CHANGED" in user.hyperfarm("hosts", "keys", "--accept-new", code=4)
    assert known.read_text().splitlines() == lines


def test_commands_and_files_for_some_of_the_hosts(net: Net, user: User) -> None:
    first, second = net.add("first"), net.add("second")
    (user.home / ".ssh" / "known_hosts").write_text(net.known_hosts())
    user.write(f"{first.user}@{first.address} labels=fast", f"{second.user}@{second.address}")
    told = user.hyperfarm(
        "hosts", "exec", "--", "echo $HOME; exit $((1 - $(hostname | grep -c first)))", code=3
    )
    assert f"exit 0\n{first.home}\n" in told
    assert f"exit 1\n{second.home}\n" in told
    (user.home / "data.csv").write_bytes(b"1,2\n")
    user.hyperfarm("hosts", "push", "--only", "fast", "data.csv", "~/data.csv")
    assert (first.home / "data.csv").read_bytes() == b"1,2\n"
    assert not list(second.home.iterdir())
    user.hyperfarm("hosts", "push", "data.csv", "no/such/folder", code=4)
    told = user.hyperfarm("hosts", "status", code=4)
    assert told.count("nothing of hyperfarm is there") == 2
    assert "what the workers say is not known: no MongoDB answers" in told


def test_a_password_is_asked_for_once_on_a_terminal(net: Net, user: User) -> None:
    hosts = [net.add(name, password="open sesame") for name in ("a", "b")]
    (user.home / ".ssh" / "known_hosts").write_text(net.known_hosts())
    (user.home / ".ssh" / "config").write_text("")
    user.write(*(f"{host.user}@{host.address}" for host in hosts))
    assert "it refuses to let" in user.hyperfarm("hosts", "exec", "true", code=4)
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "hyperfarm.cli", "hosts", "exec", "--ask-password", "whoami"]
    process = subprocess.Popen(
        command, cwd=user.home, env=user.env, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    os.set_blocking(ours, False)
    seen = b""

    def told(text: bytes) -> bool:
        nonlocal seen
        try:
            seen += os.read(ours, 65536)
        except (BlockingIOError, OSError):
            time.sleep(0.02)
        return text in seen

    eventually(lambda: told(b"Password for the hosts"), "the question")
    os.write(ours, b"open sesame\n")
    assert process.wait(30) == 0
    eventually(lambda: told(hosts[1].user.encode()), "the answer of the second host")
    os.close(ours)
    assert b"open sesame" not in seen
