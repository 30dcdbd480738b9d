"""`hyperfarm hosts up --systemd` on hosts where a real `systemd --user` manages real workers.

Such a host has a /run and a cgroup tree of its own, and we start the user's manager as user@.service would. What
does not run there is systemd-logind, which needs PID 1: so `loginctl` is a stub that notes what it was asked, and
remembers who lingers. A reboot is the manager stopped, its folder in /run/user emptied, and the manager started.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

from tests.deploy.net import Host, Net, run
from tests.deploy.user import User
from tests.support import eventually, gone

MANAGER = Path("/lib/systemd/systemd")
USER = "sd"
STRANGE = "a \"b\" 'c' %h 100% $HOME ${HOME} $$ \\n \\ ;"
FOLDER = "100%h it's m\\ine\\"
"""All that means something in a unit's file."""
LOGINCTL = """\
#!/bin/sh
echo "$*" >> {folder}/asked
case "$*" in
  "show-user {user} "*) test -e {folder}/lingers && echo yes ;;
  *" enable-linger {user}") test -e {folder}/refuses && echo "Access denied" >&2 && exit 1; touch {folder}/lingers ;;
  *) exit 1 ;;
esac
"""
SCRIPT = """\
import pathlib
import time
from hyperfarm import hp

space = {{"x": hp.uniform("x", -5, 5)}}


def objective(point):
    while not pathlib.Path({go!r}).exists():
        time.sleep(0.05)
    return point["x"] ** 2
"""


class Systemd:
    """The user's systemd of a host that `with_systemd` has made."""

    def __init__(self, host: Host) -> None:
        assert host.server is not None
        self.host, self.uid = host, host.home.stat().st_uid
        self.root = Path(f"/proc/{host.server.pid}/root")
        self.runtime = f"/run/user/{self.uid}"
        self.cgroup = self.root / "sys/fs/cgroup" / host.name
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it in a cgroup that is the user's, and wait until it answers."""
        self.cgroup.mkdir()
        for path in (self.cgroup, *self.cgroup.iterdir()):
            os.chown(path, self.uid, self.uid)
        with open(self.host.folder / "systemd.log", "ab") as log:
            self.process = subprocess.Popen(
                self._inside(f"echo $$ > /sys/fs/cgroup/{self.host.name}/cgroup.procs", MANAGER, "--user"),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        eventually(lambda: self._runs() and self.private.exists(), "the user's systemd listens", 20)

    def _runs(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.host.folder / "systemd.log").read_text()
        return True

    @property
    def private(self) -> Path:
        return Path(f"{self.root}{self.runtime}/systemd/private")

    def stop(self) -> None:
        """Stop it as at shutdown: it stops its units, and nothing is left in /run."""
        if self.process is None:
            return
        self.process.terminate()
        assert self.process.wait(30) == 0
        self.process = None
        for path in Path(f"{self.root}{self.runtime}").iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        self._remove_cgroup()

    def kill(self) -> None:
        """Kill it and all that it runs."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            eventually(self._is_dead, "all its processes are dead")
            self._remove_cgroup()

    def _is_dead(self) -> bool:
        """Kill all that is there; true when nothing is there any more."""
        pids = [int(pid) for file in self.cgroup.rglob("cgroup.procs") for pid in file.read_text().split()]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not pids

    def _remove_cgroup(self) -> None:
        """Remove it from below; it is empty, but a process may still be on its way out."""
        for folder in sorted((path for path in self.cgroup.rglob("*") if path.is_dir()), reverse=True):
            eventually(lambda one=folder: self._removed(one), f"{folder} can be removed", 20)
        eventually(lambda: self._removed(self.cgroup), f"{self.cgroup} can be removed", 20)

    @staticmethod
    def _removed(folder: Path) -> bool:
        with contextlib.suppress(OSError):
            folder.rmdir()
        return not folder.exists()

    def systemctl(self, *words: str) -> str:
        return run(*self._inside("true", "systemctl", "--user", *words)).strip()

    def told(self, what: str) -> str:
        """A property of the one unit of ours."""
        return self.systemctl("show", f"--property={what}", "--value", "hyperfarm-*")

    def main_pid(self) -> int:
        """The unit's process; 0 without one."""
        return int(self.told("MainPID") or 0)

    def units(self) -> str:
        """All that systemd knows of our units, and their files."""
        lists = self.systemctl("list-units", "--all"), self.systemctl("list-unit-files")
        known = [line for text in lists for line in text.splitlines() if "hyperfarm-" in line]
        return "\n".join([*known, *(path.name for path in self.host.home.glob(".config/**/hyperfarm-*"))])

    def _inside(self, first: str, *command: str | Path) -> list[str]:
        """A command line that runs a command as the host's user, there, after a first one as root."""
        own = {"HOME": self.host.home, "PATH": "/usr/bin:/bin", "XDG_RUNTIME_DIR": self.runtime, "USER": USER}
        enter = ["nsenter", "--target", self.root.parent.name, "--mount", "--net", "--uts"]
        become = ["setpriv", f"--reuid={self.uid}", f"--regid={self.uid}", "--clear-groups", "env", "-i"]
        words = [*become, *(f"{name}={value}" for name, value in own.items()), *command]
        return [*enter, "/bin/sh", "-c", f'{first} && exec "$@"', "sh", *(str(word) for word in words)]


@contextlib.contextmanager
def with_systemd(net: Net, name: str) -> Iterator[Systemd]:
    """A new host with systemd."""
    host = net.add(name, user=USER, start=False)
    logind = logind_of(host)
    logind.mkdir(mode=0o777)
    logind.chmod(0o777)
    stub = logind / "loginctl"
    stub.write_text(LOGINCTL.format(folder=logind, user=USER))
    stub.chmod(0o755)
    host.setup = " && ".join(
        [
            "mount -t tmpfs none /run",
            "mkdir -p /run/sshd /run/systemd/system /run/user",
            f"install -d -m 700 -o {USER} /run/user/$(id -u {USER})",
            "mount -t cgroup2 none /sys/fs/cgroup",
            f"mount --bind {stub} /usr/bin/loginctl",
        ]
    )
    host.start()
    systemd = Systemd(host)
    try:
        systemd.start()
        yield systemd
    finally:
        systemd.kill()


def logind_of(host: Host) -> Path:
    """What the host's loginctl remembers."""
    return host.folder / "logind"


@pytest.fixture(autouse=True)
def _systemd_is_here() -> None:
    missing = [name for name in ("systemctl", "loginctl", "nsenter", "setpriv") if shutil.which(name) is None]
    if missing or not MANAGER.exists():
        reason = f"needs {', '.join(missing) or MANAGER} (apt-get install systemd)"
        assert not os.environ.get("CI"), reason
        pytest.skip(reason)


def line(host: Host, *settings: str) -> str:
    return " ".join([f"{host.user}@{host.address}", *settings])


@pytest.mark.timeout(300)
def test_a_unit_comes_back_by_itself_and_goes_without_a_trace(net: Net, database: int, wheels: Path) -> None:
    with with_systemd(net, "unit") as systemd, MongoClient(net.gateway, database) as client:
        host, farm = systemd.host, client["farm"]
        user = User(net, database, wheels)
        user.write(line(host, f"slots=1 workdir={shlex.quote(FOLDER)}"))
        options = ("--", "--exp-key", STRANGE, "--exp-key", ";", "--exp-key", "task")

        def registered() -> int:
            """The pid of the unit's process once it has registered."""
            pid = systemd.main_pid()
            return pid if farm.workers.count_documents({"pid": pid}) else 0

        assert "started" in user.up("--systemd", *options)
        assert (logind_of(host) / "lingers").exists()
        first = systemd.main_pid()
        assert farm.workers.find_one({"pid": first})["exp_keys"] == [STRANGE, ";", "task"]
        assert os.readlink(f"/proc/{first}/cwd") == str(host.home / FOLDER)
        assert f":{first}:" in user.hyperfarm("hosts", "logs")

        os.kill(first, signal.SIGKILL)
        second = eventually(lambda: registered() not in (0, first) and registered(), "it comes back", 30)
        assert "1 of 1 hosts" in user.hyperfarm("hosts", "status")
        assert " up " in user.up("--systemd", *options)
        assert systemd.main_pid() == second

        systemd.stop()
        assert gone([second])
        assert "no worker runs there" in user.hyperfarm("hosts", "status", code=4)
        systemd.start()
        eventually(lambda: registered() not in (0, second), "it comes back after a reboot", 30)
        assert "1 of 1 hosts" in user.hyperfarm("hosts", "status")

        assert "started" in user.up(*options)
        assert len(host.workers()) == 1
        assert not systemd.units()
        assert "started" in user.up("--systemd", *options)
        assert len(host.workers()) == 1

        os.kill(systemd.main_pid(), signal.SIGKILL)
        eventually(lambda: not systemd.main_pid(), "systemd waits to start it again")
        assert "stopped" in user.hyperfarm("hosts", "down")
        assert not host.workers()
        assert not systemd.units()

        assert_it_drains(systemd, user, farm, options)


def assert_it_drains(systemd: Systemd, user: User, farm: Any, options: tuple[str, ...]) -> None:
    """The first signal lets a trial finish, the second gives it back; then nothing is left."""
    go = systemd.host.folder / "go"
    (user.home / "task.py").write_text(SCRIPT.format(go=str(go)))
    hyperfarm = [sys.executable, "-m", "hyperfarm.cli"]
    search = subprocess.Popen(
        [*hyperfarm, "run", "task.py", "--max-evals", "1", "--workers", "0"],
        cwd=user.home,
        env=user.env,
        stdout=subprocess.DEVNULL,
    )
    try:
        user.up("--systemd", *options)
        assert systemd.told("TimeoutStopUSec") == "infinity"
        eventually(lambda: farm.jobs.find_one({"state": 1}), "a trial runs")
        pid = systemd.main_pid()
        told = user.hyperfarm("hosts", "down", "--grace", "1")
        assert "stopped" in told
        assert "killed" not in told
        assert farm.jobs.find_one({})["state"] == 0
        assert not farm.workers.count_documents({"pid": pid})

        user.up("--systemd", *options)
        eventually(lambda: farm.jobs.find_one({"state": 1}), "the trial runs again")
        down = subprocess.Popen([*hyperfarm, "hosts", "down", "--purge"], cwd=user.home, env=user.env)
        eventually(lambda: systemd.told("ActiveState") == "deactivating", "it drains")
        go.touch()
        assert down.wait(60) == 0
        assert search.wait(60) == 0
        assert farm.jobs.find_one({})["state"] == 2
    finally:
        search.kill()
        search.wait()
    assert not systemd.host.workers()
    assert not systemd.units()
    assert not (systemd.host.home / FOLDER).exists()


def test_a_host_that_cannot_is_one_row_and_its_worker_stays(net: Net, wheels: Path) -> None:
    plain = net.add("plain", setup="mount -t tmpfs none /run && mkdir /run/sshd")
    with with_systemd(net, "unit") as systemd:
        host, logind = systemd.host, logind_of(systemd.host)
        user = User(net, 1, wheels)  # A command of one's own needs no database.
        sleeps = "worker_command='echo $HOME 100%; exec sleep 1234'"
        user.write(line(plain, sleeps), line(host, sleeps))
        user.up()
        before = sleeping(plain), sleeping(host)
        assert all(before)

        (logind / "refuses").touch()
        table = user.up("--systemd", code=4)
        assert "there is no systemd; leave --systemd out" in row(table, plain)
        assert "run there once: sudo loginctl enable-linger sd" in row(table, host)
        assert (sleeping(plain), sleeping(host)) == before
        assert not systemd.units()

        (logind / "refuses").unlink()
        user.write(line(host, sleeps))
        assert "started" in user.up("--systemd")
        assert sleeping(host) == [systemd.main_pid()]
        assert f"{host.home} 100%\n" in user.hyperfarm("hosts", "logs")

        user.write(line(host, "worker_command='echo it is broken; exit 3'"))
        told = user.up("--systemd", code=4)
        assert "its worker ended at once" in told
        assert "it is broken" in told
        assert not sleeping(host)
        assert not systemd.units()

        user.write(line(host, """worker_command='trap "" TERM; sleep 1234; true'"""))
        assert "started" in user.up("--systemd")
        assert "it had to be killed" in user.hyperfarm("hosts", "down", "--now")
        assert not sleeping(host)
        assert not systemd.units()

        asked = (logind / "asked").read_text().splitlines()
        assert [words for words in asked if "enable" in words] == ["--no-ask-password enable-linger sd"] * 2


def row(table: str, host: Host) -> str:
    """The host's row of the table at the end."""
    return next(text for text in reversed(table.splitlines()) if text.startswith(host.user))


def sleeping(host: Host) -> list[int]:
    return [pid for pid in host.pids() if "sleep\0001234" in Path(f"/proc/{pid}/cmdline").read_text()]
