"""Asking the host side: sends host_side.py to a host's Python with a request, and reads the answer."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

from hyperfarm.deploy import host_side
from hyperfarm.deploy.connection import Connection, Unreachable
from hyperfarm.errors import HyperfarmError

OLDEST = (3, 10)
NEWEST_MINOR = 14
PROBE = """\
for python in "$@"; do
  command -v "$python" >/dev/null 2>&1 || continue
  version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
  echo "$version $python"
done
"""
_BEGIN = "import sys; n = {length}; exec(compile(sys.stdin.buffer.read(n), 'host_side', 'exec'))"


class HostRefused(HyperfarmError):
    """The host answers, but cannot do what it is asked to; the message says why."""


class Remote:
    """The host side of one connection. Raises HostRefused when no usable Python is there."""

    def __init__(self, connection: Connection, workdir: str, python: str | None = None) -> None:
        self.connection, self.workdir = connection, workdir
        self.python = find_python(connection, python)

    def ask(self, action: str, deadline_s: float = 60.0, **request: Any) -> Any:
        """Carry out one of host_side.ACTIONS. Raises HostRefused with its reason, Unreachable when it breaks."""
        program = Path(host_side.__file__).read_bytes()
        request = {"action": action, "workdir": self.workdir, **request}
        begin = shlex.quote(_BEGIN.format(length=len(program)))
        command = f"{shlex.quote(self.python)} -c {begin}"
        ran = self.connection.run(command, program + json.dumps(request).encode(), deadline_s)
        for line in reversed(ran.out.splitlines()):
            if line.startswith(host_side.ANSWER):
                answer = json.loads(line.removeprefix(host_side.ANSWER))
                if "refused" in answer:
                    raise HostRefused(answer["refused"])
                return answer["ok"]
        said = " ".join((ran.err or ran.out).split())[-200:]
        raise Unreachable(f"its Python did not answer (exit code {ran.code}): {said}")


def find_python(connection: Connection, wanted: str | None) -> str:
    """Return the Python to use: the one that hosts.txt names, else one like ours, else the newest that is there."""
    ours = sys.version_info[1]
    minors = [ours, *(minor for minor in range(NEWEST_MINOR, OLDEST[1] - 1, -1) if minor != ours)]
    names = [wanted] if wanted else [*(f"python3.{minor}" for minor in minors), "python3", "python"]
    words = " ".join(shlex.quote(_at_home(name)) for name in names)
    ran = connection.run(f"sh -s -- {words}", PROBE.encode())
    found = [tuple(line.split(" ", 1)) for line in ran.out.splitlines() if " " in line]
    usable = [name for version, name in found if _version(version) >= OLDEST]
    if usable:
        return usable[0]
    there = f"; {found[0][1]} is {found[0][0]}" if found else ""
    if wanted:
        raise HostRefused(f"python={wanted} is no Python 3.10 or newer there{there}")
    raise HostRefused(
        f"no Python 3.10 or newer is there{there}: install one, or name it with python= in hosts.txt"
    )


def _at_home(name: str) -> str:
    """The shell quotes what we send, so it does not see a ~; commands begin in the home."""
    return name.removeprefix("~/") if name.startswith("~/") else name


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdigit())
