"""What ~/.ssh/config says of a host. OpenSSH's own `ssh -G` reads it: Include, Match and patterns work as ever."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hyperfarm.deploy.hosts_file import Address, address
from hyperfarm.deploy.known_hosts import known_name
from hyperfarm.errors import SettingsError, UsageError

ASK_S = 20.0


@dataclass(frozen=True, kw_only=True)
class Route:
    """How to reach an SSH server: all that is needed to connect, to know its key, and to log in.

    `known_as` is its name in known_hosts. `keys`: private key files to try, in order; the agent is asked first
    unless `agent` is False. `jump`: the way there goes over another server.
    """

    host: str
    port: int
    user: str
    known_as: str
    keys: tuple[Path, ...]
    known_hosts: tuple[Path, ...]
    agent: bool
    jump: Route | None = None

    def __str__(self) -> str:
        return str(Address(host=self.host, user=self.user, port=self.port))


def route(wanted: Address, jump: Address | None = None) -> Route:
    """Return the way to a host. What its address or `jump` says wins over ~/.ssh/config.

    Raises SettingsError when ssh refuses its configuration, and UsageError for a way that is not supported.
    """
    return _route(wanted, jump, ())


def _route(wanted: Address, jump: Address | None, behind: tuple[str, ...]) -> Route:
    told = _ask(wanted)
    host, port = told["hostname"][0], int(told["port"][0])
    alias = told.get("hostkeyalias", [""])[0]
    jump = jump or _jump(wanted, told)
    if jump is not None and jump.host in behind:
        raise UsageError(f"{wanted}: the way there goes round in circles, over {' and '.join(behind)}")
    if jump is None and told.get("proxycommand", ["none"])[0] != "none":
        raise UsageError(f"{wanted}: ProxyCommand is not supported; write ProxyJump, or jump= in hosts.txt")
    return Route(
        host=host,
        port=port,
        user=told["user"][0],
        known_as=alias.lower() or known_name(host, port),
        keys=tuple(path for value in told.get("identityfile", []) if (path := _here(value)).is_file()),
        known_hosts=tuple(_files(told, "userknownhostsfile") + _files(told, "globalknownhostsfile")),
        agent=bool(os.environ.get("SSH_AUTH_SOCK")) and told.get("identityagent", [""])[0] != "none",
        jump=_route(jump, None, (*behind, wanted.host)) if jump is not None else None,
    )


def _jump(wanted: Address, told: dict[str, list[str]]) -> Address | None:
    """The ProxyJump of a host, if it has one; `Host *` may name it for the jump host itself too."""
    named = told.get("proxyjump", ["none"])[0]
    if named == "none":
        return None
    if "," in named:
        raise UsageError(
            f"{wanted}: ProxyJump over several hosts is not supported; give each the next as its own"
        )
    jump = address(named.removeprefix("ssh://"))
    return None if jump.host == wanted.host else jump


def _ask(wanted: Address) -> dict[str, list[str]]:
    """All that `ssh -G` tells about a host, by keyword."""
    command = shutil.which("ssh")
    if command is None:
        raise SettingsError("the command ssh is missing: install OpenSSH's client, it reads ~/.ssh/config")
    options = [*_own_home(), *(["-p", str(wanted.port)] if wanted.port else [])]
    options += ["-l", wanted.user] if wanted.user else []
    asked = subprocess.run(
        [command, "-G", *options, "--", wanted.host],
        capture_output=True,
        text=True,
        timeout=ASK_S,
        check=False,
    )
    if asked.returncode != 0:
        why = " ".join(asked.stderr.split()) or f"exit code {asked.returncode}"
        raise SettingsError(f"ssh cannot tell how to reach {wanted}: {why}")
    told: dict[str, list[str]] = {}
    for line in asked.stdout.splitlines():
        key, _, value = line.partition(" ")
        told.setdefault(key, []).append(value)
    return told


def _own_home() -> Sequence[str]:
    """ssh looks into the home of the password file; where HOME is another folder, its file is named."""
    file = Path.home() / ".ssh" / "config"
    if Path(pwd.getpwuid(os.getuid()).pw_dir) == Path.home():
        return ()
    return ("-F", str(file) if file.is_file() else "none")


def _files(told: dict[str, list[str]], key: str) -> list[Path]:
    return [_here(word) for value in told.get(key, []) for word in value.split() if word != "none"]


def _here(text: str) -> Path:
    """A path of the user's, with this HOME in the place of the password file's."""
    recorded, home = pwd.getpwuid(os.getuid()).pw_dir, str(Path.home())
    text = text.strip('"')
    if text.startswith(f"{recorded}/.ssh/"):
        text = "~" + text[len(recorded) :]
    return Path(home + text[1:] if text.startswith("~/") else text)
