"""Hosts of a test: OpenSSH servers, each in a network namespace of its own, with own address, name, user and home.

`ip netns exec` binds the files of /etc/netns/NAME over those of /etc: so each host has users of its own, and the
machine's stay as they are. Needs root, iproute2 and openssh-server.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SHELL = "/bin/sh"
START_S = 20.0
FIRST_UID = 21001
SSHD = """\
Port {port}
ListenAddress {address}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
StrictModes no
UsePAM no
PidFile none
PasswordAuthentication {password}
KbdInteractiveAuthentication no
MaxStartups 200
Subsystem sftp internal-sftp
"""


def run(*command: str | Path, **more: object) -> str:
    """Run a command that must succeed; return what it printed."""
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, check=False, **more
    )  # type: ignore[call-overload]
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return str(done.stdout)


@dataclass
class Host:
    """One host: its namespace, its server, its user.

    `outside`: its end of the cable here. `setup`: shell commands that run before its server starts, in its own mount
    namespace. `settings`: more lines of its sshd_config.
    """

    name: str
    user: str
    address: str
    folder: Path
    outside: str
    port: int = 22
    password: str | None = None
    setup: str = "true"
    settings: str = ""
    server: subprocess.Popen[bytes] | None = field(default=None)

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def key(self) -> str:
        """The public host key, as in known_hosts: kind and key."""
        return " ".join((self.folder / "host_key.pub").read_text().split()[:2])

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        config = self.folder / "sshd_config"
        allowed = "yes" if self.password else "no"
        text = SSHD.format(port=self.port, address=self.address, folder=self.folder, password=allowed)
        config.write_text(f"{text}{self.settings}\n")
        inside = f"hostname {self.name} && {self.setup} && exec /usr/sbin/sshd -D -e -f {config}"
        with open(self.folder / "sshd.log", "wb") as log:
            self.server = subprocess.Popen(
                ["ip", "netns", "exec", self.name, "unshare", "--uts", SHELL, "-c", inside],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_S
        while "Server listening" not in (self.folder / "sshd.log").read_text():
            assert self.server.poll() is None, (self.folder / "sshd.log").read_text()
            assert time.monotonic() < deadline, "sshd does not come up"
            time.sleep(0.02)

    def stop(self) -> None:
        """Kill the server. Connections that are open go on."""
        if self.server is not None:
            self.server.kill()
            self.server.wait()
            self.server = None

    def new_key(self, kind: str = "ed25519") -> None:
        """Give the host another key, as a machine set up anew has."""
        for name in ("host_key", "host_key.pub"):
            (self.folder / name).unlink(missing_ok=True)
        run("ssh-keygen", "-q", "-t", kind, "-N", "", "-C", "", "-f", self.folder / "host_key")

    def cut(self) -> None:
        """Cut its network: packets are lost, nobody is told."""
        run("ip", "netns", "exec", self.name, "ip", "link", "set", "eth0", "down")

    def mend(self) -> None:
        run("ip", "netns", "exec", self.name, "ip", "link", "set", "eth0", "up")

    def pids(self) -> list[int]:
        """Every process of the host."""
        return [int(pid) for pid in run("ip", "netns", "pids", self.name).split()]

    def workers(self) -> list[str]:
        """The command lines of the host's workers and their children."""
        lines = []
        for pid in self.pids():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                lines.append(Path(f"/proc/{pid}/cmdline").read_bytes().decode().replace("\0", " "))
        return [line for line in lines if "hyperfarm worker" in line or "hyperfarm.worker" in line]


class Net:
    """Some hosts on a bridge. The tests' own end has the address `gateway`."""

    def __init__(self, folder: Path, number: int) -> None:
        self.folder, self.number = folder, number
        self.tag = f"hf{os.getpid() % 100000}"
        self.bridge, self.prefix = f"{self.tag}br", f"10.77.{number}"
        self.gateway = f"{self.prefix}.1"
        self.hosts: list[Host] = []
        self.key = folder / "id_ed25519"
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", self.key)
        run("ip", "link", "add", self.bridge, "type", "bridge")
        run("ip", "address", "add", f"{self.gateway}/24", "dev", self.bridge)
        run("ip", "link", "set", self.bridge, "up")

    def add(self, name: str, *, user: str | None = None, start: bool = True, **more: Any) -> Host:
        """A new host, with its server running; `more` are fields of Host."""
        number = len(self.hosts) + 1
        full = f"{self.tag}{name}"
        folder = self.folder / name
        (folder / "home").mkdir(parents=True)
        address = f"{self.prefix}.{number + 10}"
        host = Host(full, user or f"user{number}", address, folder, f"{self.tag}v{number}", **more)
        self.hosts.append(host)
        host.new_key()
        shutil.copy(self.key.with_suffix(".pub"), folder / "authorized_keys")
        self._users(host, FIRST_UID + number)
        run("ip", "netns", "add", full)
        run("ip", "link", "add", host.outside, "type", "veth", "peer", "name", "eth0", "netns", full)
        run("ip", "link", "set", host.outside, "master", self.bridge, "up")
        inside = ("ip", "netns", "exec", full, "ip")
        run(*inside, "link", "set", "lo", "up")
        run(*inside, "address", "add", f"{address}/24", "dev", "eth0")
        run(*inside, "link", "set", "eth0", "up")
        if start:
            host.start()
        return host

    def _users(self, host: Host, uid: int) -> None:
        """The host's own /etc/passwd and /etc/shadow."""
        etc = Path("/etc/netns") / host.name
        etc.mkdir(parents=True)
        secret = run("openssl", "passwd", "-6", host.password).strip() if host.password else "*"
        users = {"root": (0, "/root", "*"), "sshd": (100, "/run/sshd", "*"), "nobody": (65534, "/", "*")}
        users[host.user] = (uid, str(host.home), secret)
        lines = [f"{name}:x:{number}:{number}::{home}:{SHELL}" for name, (number, home, _) in users.items()]
        (etc / "passwd").write_text("\n".join(lines) + "\n")
        hidden = [f"{name}:{word}:19000:0:99999:7:::" for name, (_, _, word) in users.items()]
        (etc / "shadow").write_text("\n".join(hidden) + "\n")
        os.chown(host.home, uid, uid)

    def known_hosts(self) -> str:
        """The lines for all hosts."""
        names = [one.address if one.port == 22 else f"[{one.address}]:{one.port}" for one in self.hosts]
        return "".join(f"{name} {host.key}\n" for name, host in zip(names, self.hosts, strict=True))

    def close(self) -> None:
        """Kill every process of the hosts, and remove them."""
        for host in self.hosts:
            host.stop()
            with contextlib.suppress(AssertionError, ProcessLookupError):
                for pid in host.pids():
                    os.kill(pid, signal.SIGKILL)
            for what in (["link", "delete", host.outside], ["netns", "delete", host.name]):
                subprocess.run(["ip", *what], check=False, capture_output=True)
            shutil.rmtree(Path("/etc/netns") / host.name, ignore_errors=True)
        subprocess.run(["ip", "link", "delete", self.bridge], check=False, capture_output=True)


@contextlib.contextmanager
def network(number: int) -> Iterator[Net]:
    """A network with the addresses 10.77.`number`.*, removed at the end."""
    Path("/run/sshd").mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="hyperfarm-net-"))
    folder.chmod(0o755)
    net = None
    try:
        net = Net(folder, number)
        yield net
    finally:
        if net is not None:
            net.close()
        shutil.rmtree(folder, ignore_errors=True)
