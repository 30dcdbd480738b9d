"""hosts.txt: which hosts there are, and how each is to be used. Pure: reads text, returns hosts.

A line is a host in parallel-ssh's syntax, `[user@]host[:port]` or the old `host[:port] user`, with an IPv6
address in brackets, and then any number of `key=value`. A line that begins with `*` holds defaults for all
hosts below it. `#` begins a comment.
"""

from __future__ import annotations

import fnmatch
import ipaddress
import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from hyperfarm.errors import UsageError

DEFAULT_WORKDIR = ".hyperfarm"
"""Relative to the user's home on the host."""
HIGHEST_PORT, MOST_SLOTS = 65535, 1024
MOST_TOLD = 20
_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?\.?")
_USER = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.@$\\-]*")
_LABEL = re.compile(r"[A-Za-z0-9_.-]+")
_DEVICE = re.compile(r"[A-Za-z0-9_./:-]+")


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where an SSH server is. What is None comes from ~/.ssh/config, or is SSH's default."""

    host: str
    user: str | None = None
    port: int | None = None

    def __str__(self) -> str:
        user = f"{self.user}@" if self.user else ""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{user}{host}" + (f":{self.port}" if self.port else "")


@dataclass(frozen=True, kw_only=True)
class Host:
    """One host of hosts.txt.

    `slots` None: as many as there are GPUs, or else cores (`slots=auto`). `devices`: which GPUs the slots share
    out among them; None: all that there are (`devices=auto`); empty: none. `workdir` is relative to the user's
    home there.
    """

    address: Address
    line: int
    slots: int | None = None
    devices: tuple[str, ...] | None = None
    python: str | None = None
    workdir: str = DEFAULT_WORKDIR
    jump: Address | None = None
    labels: tuple[str, ...] = field(default=())
    worker_command: str | None = None

    @property
    def name(self) -> str:
        """What this host is called everywhere: its address as in hosts.txt."""
        return str(self.address)


class _Mistake(Exception):
    """One sentence about one place of the file."""


def read(file: str | Path) -> list[Host]:
    """Return the hosts of a file, in its order. Raises UsageError with all mistakes and their lines."""
    try:
        text = Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(f"the list of hosts cannot be read: {reason}: {file}") from error
    return parse(text, str(file))


def parse(text: str, name: str = "hosts.txt") -> list[Host]:
    """Return the hosts of this text. Raises UsageError with all mistakes and their lines, or without any host."""
    mistakes: list[str] = []
    hosts: dict[tuple[Address, str], Host] = {}
    defaults: dict[str, Any] = {}
    for number, line in enumerate(text.splitlines(), 1):
        found: list[str] = []
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            mistakes.append(f"line {number}: {str(error).lower()}")
            continue
        if not words:
            continue
        if words[0] == "*":
            defaults = {**defaults, **_settings(words[1:], found)}
        else:
            host = _host(words, number, defaults, found)
            if host is not None:
                first = hosts.setdefault((host.address, host.workdir), host)
                if first is not host:
                    found.append(
                        f"{host.name} stands on line {first.line} already; give each its own workdir="
                    )
        mistakes += [f"line {number}: {mistake}" for mistake in found]
    if mistakes:
        more = [f"and {len(mistakes) - MOST_TOLD} more"] if len(mistakes) > MOST_TOLD else []
        raise UsageError("\n  ".join([f"{name} has mistakes:", *mistakes[:MOST_TOLD], *more]))
    if not hosts:
        raise UsageError(
            f"{name} names no host; write one line for each, such as: me@gpu1.example.org slots=auto"
        )
    return list(hosts.values())


def select(hosts: Iterable[Host], only: Iterable[str]) -> list[Host]:
    """Return those that one of the patterns names: a label, or a shell pattern of host or address.

    Without patterns: all. Raises UsageError for a pattern that names nobody.
    """
    every, patterns = list(hosts), list(only)
    if not patterns:
        return every
    for pattern in patterns:
        if not any(_is_meant(host, pattern) for host in every):
            labels = sorted({label for host in every for label in host.labels})
            told = f"; its labels are {', '.join(labels)}" if labels else ""
            raise UsageError(f"--only {pattern} names no host of the list{told}")
    return [host for host in every if any(_is_meant(host, pattern) for pattern in patterns)]


def _is_meant(host: Host, pattern: str) -> bool:
    if pattern in host.labels:
        return True
    return any(fnmatch.fnmatchcase(text, pattern) for text in (host.address.host, host.name))


def _host(words: list[str], line: int, defaults: Mapping[str, Any], found: list[str]) -> Host | None:
    """The host of one line; its mistakes are added to `found`."""
    rest = words[1:]
    try:
        where = address(words[0])
        if rest and "=" not in rest[0]:
            if where.user is not None:
                raise _Mistake(
                    f"{rest[0]!r} is neither key=value nor a user: {words[0]} names its user already"
                )
            where = Address(host=where.host, user=_user(rest[0]), port=where.port)
            rest = rest[1:]
    except _Mistake as mistake:
        found.append(str(mistake))
        where = None
    settings = {**defaults, **_settings(rest, found)}
    return Host(address=where, line=line, **settings) if where and not found else None


def _settings(words: list[str], found: list[str]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        try:
            if not equals:
                raise _Mistake(f"{word!r} is not key=value")
            if key not in _READERS:
                raise _Mistake(f"{key!r} is no setting of a host; there are {', '.join(_READERS)}")
            if key in settings:
                raise _Mistake(f"{key}= stands there twice")
            settings[key] = _READERS[key](value)
        except _Mistake as mistake:
            found.append(str(mistake))
    return settings


def address(text: str) -> Address:
    """Read `[user@]host[:port]`; an IPv6 address stands in brackets, or alone without a port."""
    user, at, rest = text.rpartition("@")
    if at and not user:
        raise _Mistake(f"{text!r} has no user before the @")
    inner, port = rest, ""
    if rest.startswith("["):
        inner, bracket, port = rest[1:].partition("]")
        if not bracket or (port and not port.startswith(":")):
            raise _Mistake(f"{text!r} is no address; IPv6 goes like [fe80::1]:22")
        _ip6(inner, text)
    elif rest.count(":") > 1:
        _ip6(rest, text)
    else:
        inner, colon, number = rest.partition(":")
        port = colon + number
        if not _NAME.fullmatch(inner):
            raise _Mistake(f"{text!r} is no host; write [user@]host[:port]")
    return Address(host=inner, user=_user(user) if at else None, port=_port(port[1:], text) if port else None)


def _ip6(inner: str, text: str) -> None:
    try:
        ipaddress.IPv6Address(inner)
    except ValueError:
        raise _Mistake(f"{text!r} is no address; IPv6 goes like [fe80::1]:22") from None


def _user(text: str) -> str:
    if not _USER.fullmatch(text):
        raise _Mistake(f"{text!r} is no user name")
    return text


def _port(text: str, where: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= HIGHEST_PORT):
        raise _Mistake(f"{where!r} has no usable port; it is a number from 1 to {HIGHEST_PORT}")
    return int(text)


def _slots(value: str) -> int | None:
    if value == "auto":
        return None
    if not (value.isascii() and value.isdigit() and 0 < int(value) <= MOST_SLOTS):
        raise _Mistake(f"slots={value} is neither auto nor a number from 1 to {MOST_SLOTS}")
    return int(value)


def _devices(value: str) -> tuple[str, ...] | None:
    if value in ("auto", "none"):
        return None if value == "auto" else ()
    return _list("devices", value, _DEVICE, "auto, none, or GPUs such as 0,1")


def _labels(value: str) -> tuple[str, ...]:
    return _list("labels", value, _LABEL, "words with commas between, such as gpu,rack2")


def _list(key: str, value: str, wanted: re.Pattern[str], hint: str) -> tuple[str, ...]:
    parts = tuple(value.split(","))
    if not all(wanted.fullmatch(part) for part in parts):
        raise _Mistake(f"{key}={value} is not understood: {hint}")
    if len(set(parts)) < len(parts):
        raise _Mistake(f"{key}={value} names something twice")
    return parts


def _text(key: str) -> Callable[[str], str]:
    def check(value: str) -> str:
        if not value.strip() or any(ord(letter) < 32 for letter in value):
            raise _Mistake(f"{key}= is empty, or has control characters")
        return value

    return check


def _workdir(value: str) -> str:
    path = _text("workdir")(value).removeprefix("~/").rstrip("/")
    if path in ("", "~", ".") or ".." in path.split("/"):
        raise _Mistake(f"workdir={value} must be a folder of its own; it may be removed by down --purge")
    return path


_READERS: dict[str, Callable[[str], Any]] = {
    "slots": _slots,
    "devices": _devices,
    "python": _text("python"),
    "workdir": _workdir,
    "jump": address,
    "labels": _labels,
    "worker_command": _text("worker_command"),
}
assert set(_READERS) <= {one.name for one in fields(Host)}
