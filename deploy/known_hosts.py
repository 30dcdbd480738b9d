"""Known host keys, in OpenSSH's files: whether a host is who it was, and pinning a new one.

The format is that of sshd(8), "SSH_KNOWN_HOSTS FILE FORMAT": names may be hashed (HMAC-SHA1), a port other than
22 is written `[host]:port`, patterns may hold `*`, `?` and `!`, and `@revoked` bars a key. Certificates
(`@cert-authority`) are not understood: a host known only by one counts as unknown.
"""

from __future__ import annotations

import base64
import binascii
import enum
import fcntl
import fnmatch
import hashlib
import hmac
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hyperfarm.errors import SettingsError

SSH_PORT = 22
REVOKED = "@revoked"


class Verdict(enum.Enum):
    """What the known keys say of a key that a host showed."""

    KNOWN = "known"
    UNKNOWN = "unknown"
    CHANGED = "changed"
    REVOKED = "revoked"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of a known_hosts file."""

    marker: str
    names: str
    kind: str
    key: bytes
    where: str

    def is_for(self, name: str) -> bool:
        if self.names.startswith("|1|"):
            return _is_hash_of(self.names, name)
        patterns = self.names.split(",")
        barred = any(_matches(name, one[1:]) for one in patterns if one.startswith("!"))
        return not barred and any(_matches(name, one) for one in patterns if not one.startswith("!"))


class KnownHosts:
    """The entries of some files; those that are missing hold none. Raises SettingsError for an unreadable one."""

    def __init__(self, files: Iterable[Path]) -> None:
        self._entries = [entry for file in files for entry in _read(file)]

    def check(self, name: str, key: bytes) -> tuple[Verdict, str]:
        """Return what is known of this key, and where a contradicting line stands ("" without one).

        `name` is one of `known_name`'s, or an alias. `key` is the public key as the host sent it (RFC 4253, 6.6).
        A host that is known by keys of other kinds only has CHANGED: it showed none of those that it had.
        """
        about = [entry for entry in self._entries if entry.is_for(name)]
        for entry in about:
            if entry.marker == REVOKED and hmac.compare_digest(entry.key, key):
                return Verdict.REVOKED, entry.where
        plain = [entry for entry in about if not entry.marker]
        if any(hmac.compare_digest(entry.key, key) for entry in plain):
            return Verdict.KNOWN, ""
        return (Verdict.CHANGED, plain[0].where) if plain else (Verdict.UNKNOWN, "")

    def kinds(self, name: str) -> list[str]:
        """Return the kinds of keys by which a host is known, such as ssh-ed25519: those to ask it for."""
        return list(dict.fromkeys(one.kind for one in self._entries if not one.marker and one.is_for(name)))


def known_name(host: str, port: int) -> str:
    """What a host is called in known_hosts."""
    return host.lower() if port == SSH_PORT else f"[{host.lower()}]:{port}"


def fingerprint(key: bytes) -> str:
    """A key's SHA-256 as OpenSSH writes it."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(key).digest()).decode().rstrip("=")


def kind_of(key: bytes) -> str:
    """Return the kind that a public key names itself (RFC 4253, 6.6), such as ssh-ed25519."""
    length = int.from_bytes(key[:4], "big")
    return key[4 : 4 + length].decode("ascii", "replace")


def pin(file: Path, name: str, key: bytes) -> None:
    """Add a host's key to a file. Lines of others are kept, also of others who add at the same moment."""
    line = f"{name} {kind_of(key)} {base64.b64encode(key).decode()}\n".encode()
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "r+b") as known:
            fcntl.flock(known, fcntl.LOCK_EX)
            begun = known.read()
            known.write(line if not begun or begun.endswith(b"\n") else b"\n" + line)
    except OSError as error:
        raise SettingsError(f"the host's key cannot be added: {error.strerror}: {file}") from error


def _read(file: Path) -> Sequence[Entry]:
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise SettingsError(f"the known host keys cannot be read: {error.strerror}: {file}") from error
    entries = (_entry(line, f"{file}:{number}") for number, line in enumerate(text.splitlines(), 1))
    return [entry for entry in entries if entry is not None]


def _entry(line: str, where: str) -> Entry | None:
    words = line.split()
    marker = words.pop(0) if words and words[0].startswith("@") else ""
    if len(words) < 3 or words[0].startswith("#"):
        return None
    try:
        key = base64.b64decode(words[2], validate=True)
    except binascii.Error:
        return None
    return Entry(marker=marker, names=words[0], kind=words[1], key=key, where=where)


def _matches(name: str, pattern: str) -> bool:
    """Like fnmatch, but brackets mean themselves: they hold host and port apart."""
    return fnmatch.fnmatchcase(name, pattern.lower().replace("[", "[[]"))


def _is_hash_of(hashed: str, name: str) -> bool:
    _, _, salt, digest = hashed.split("|", 3)
    try:
        made = hmac.new(base64.b64decode(salt), name.encode(), hashlib.sha1).digest()
        return hmac.compare_digest(made, base64.b64decode(digest))
    except (binascii.Error, ValueError):
        return False
