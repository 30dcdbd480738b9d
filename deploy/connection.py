"""One SSH connection: parallel-ssh's client, which here looks at the host's key before it logs in.

parallel-ssh leaves host keys unchecked. `_Client` checks between the handshake and the login: a host that shows an
unknown or another key never learns so much as a user name. Everything is cooperative (gevent): many
connections work at the same time in one thread.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from gevent import Greenlet, get_hub, sleep, spawn
from gevent import Timeout as Deadline
from gevent.lock import BoundedSemaphore
from gevent.select import select
from gevent.socket import SHUT_RDWR, socket, socketpair
from pssh.clients.native import SSHClient
from pssh.exceptions import AuthenticationError, UnknownHostError
from pssh.exceptions import Timeout as PsshTimeout
from ssh2.exceptions import SSH2Error
from ssh2.exceptions import Timeout as SSH2Timeout
from ssh2.session import LIBSSH2_METHOD_HOSTKEY, LIBSSH2_SESSION_BLOCK_OUTBOUND, Session
from ssh2.sftp import (
    LIBSSH2_FXF_CREAT,
    LIBSSH2_FXF_TRUNC,
    LIBSSH2_FXF_WRITE,
    LIBSSH2_SFTP_S_IRUSR,
    LIBSSH2_SFTP_S_IWUSR,
)

from hyperfarm.deploy.known_hosts import KnownHosts, Verdict, fingerprint, kind_of
from hyperfarm.deploy.ssh_config import Route
from hyperfarm.errors import HyperfarmError

CONNECT_S, CLOSE_S = 10.0, 2.0
CHUNK, POLL_S = 1 << 20, 1.0
AT_ONCE_PER_JUMP = 5
"""sshd begins to refuse at ten connections that have not logged in (MaxStartups)."""
_RSA = ("rsa-sha2-512", "rsa-sha2-256", "ssh-rsa")
logging.getLogger("pssh").setLevel(logging.CRITICAL)  # What it has to say comes as an exception as well.
_jumping: dict[str, BoundedSemaphore] = {}


class Unreachable(HyperfarmError):
    """No connection to a host, or it broke; the message is the reason, fit for a row of a table."""


class HostKeyRefused(Unreachable):
    """The host's key is not the known one. `key` is what it showed, `verdict` says in what way."""

    def __init__(self, text: str, verdict: Verdict, key: bytes) -> None:
        super().__init__(text)
        self.verdict, self.key = verdict, key


@dataclass(frozen=True, kw_only=True)
class Ran:
    """How a command ended on a host: exit code, standard output, standard error."""

    code: int
    out: str
    err: str


class Connection:
    """A connection to one host, logged in. Raises Unreachable; so does every method when it breaks."""

    def __init__(self, route: Route, *, password: str | None = None, connect_s: float = CONNECT_S) -> None:
        self.route = route
        with contextlib.ExitStack() as held, _told(route):
            if route.jump is not None:
                held.enter_context(_jumping.setdefault(str(route.jump), BoundedSemaphore(AT_ONCE_PER_JUMP)))
            self._client = _Client(route, password, connect_s)

    def run(self, command: str, stdin: bytes = b"", deadline_s: float = 60.0) -> Ran:
        """Run a command of the remote shell to its end; past the deadline it is left behind, and this raises.

        All of `stdin` is sent before output is read: the command should read it first.
        """
        late = Unreachable(f"no end after {deadline_s:g} s: {command[:60]}")
        with _told(self.route), Deadline(deadline_s, late):
            channel = self._client.eagain(self._client.session.open_session)
            try:
                self._client.eagain(channel.execute, command)
                self._client.eagain_write(channel.write, stdin)
                self._client.eagain(channel.send_eof)
                out, err = self._read(channel)
            finally:
                with contextlib.suppress(SSH2Error), Deadline(CLOSE_S, False):
                    self._client.eagain(channel.close)
            self._client.eagain(channel.wait_closed)
            signal = channel.get_exit_signal()[1]
        if signal:
            raise Unreachable(f"a command was killed there ({signal.decode()}): {command[:60]}")
        return Ran(code=channel.get_exit_status(), out=out, err=err)

    def _read(self, channel: Any) -> tuple[str, str]:
        """Both outputs of a command, to their ends.

        One after the other in one greenlet: where several call into one libssh2 session, as parallel-ssh's own
        readers and writers do, a call that must be repeated (EAGAIN) is overtaken, and much data never arrive.
        """
        found: list[list[bytes]] = [[], []]
        while True:
            got = 0
            for pieces, read in zip(found, (channel.read, channel.read_stderr), strict=True):
                size, data = read()
                if size > 0:
                    pieces.append(data)
                    got += size
            if not got and channel.eof():
                return _text(found[0]), _text(found[1])
            if not got:
                self._client.poll()
            sleep(0)

    def put(self, data: bytes, path: str, deadline_s: float = 120.0) -> None:
        """Write a file that only its owner may read (0600), whole or not at all: it gets its name when complete.

        `path` is absolute or relative to the user's home; its folder must exist.
        """
        part = f"{path}.{secrets.token_hex(4)}.part"
        with (
            _told(self.route),
            Deadline(deadline_s, Unreachable(f"no end of a transfer after {deadline_s:g} s")),
        ):
            try:
                self._write(data, part)
            except SSH2Error as error:
                self.run(f"rm -f -- {shlex.quote(part)}")
                raise Unreachable(
                    f"{path} cannot be written there: is the disk full? ({_name(error)})"
                ) from error
        moved = self.run(f"mv -f -- {shlex.quote(part)} {shlex.quote(path)}")
        if moved.code != 0:
            raise Unreachable(f"{path} cannot be written there: {moved.err}")

    def _write(self, data: bytes, path: str) -> None:
        sftp = self._client.eagain(self._client.session.sftp_init)
        flags = LIBSSH2_FXF_CREAT | LIBSSH2_FXF_WRITE | LIBSSH2_FXF_TRUNC
        mode = LIBSSH2_SFTP_S_IRUSR | LIBSSH2_SFTP_S_IWUSR
        with self._client.eagain(sftp.open, path, flags, mode) as remote:
            for begin in range(0, len(data), CHUNK):
                self._client.eagain_write(remote.write, data[begin : begin + CHUNK])

    def close(self) -> None:
        self._client.close()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def shown_key(route: Route, connect_s: float = CONNECT_S) -> bytes:
    """Return the key that a host shows, without logging in there (but at its jump host). Raises Unreachable."""
    with _told(route):
        client = _Client(route, None, connect_s, look_only=True)
        client.close()
        return client.key


class _Descriptor:
    """A copy of a socket's descriptor for libssh2, closed when the session that holds it has been freed.

    libssh2 writes to the number that it was given until its last channel is freed, which the garbage collector does
    after the connection's end. With the socket's own number that was the next connection's by then.
    """

    def __init__(self, sock: socket) -> None:
        self._number = os.dup(sock.fileno())

    def fileno(self) -> int:
        return self._number

    def __del__(self) -> None:
        os.close(self._number)


class _Client(SSHClient):  # type: ignore[misc]
    """parallel-ssh's client of one host, with a look at the host's key, and logging in off the hub."""

    session: Any
    sock: Any

    def __init__(self, route: Route, password: str | None, connect_s: float, look_only: bool = False) -> None:
        self._route, self._connect_s, self._look_only = route, connect_s, look_only
        self.key = b""
        self._gate: _Client | None = None
        self._tunnel: Greenlet | None = None
        super().__init__(
            route.host,
            user=route.user,
            password=password,
            port=route.port,
            num_retries=1,
            timeout=connect_s,
            keepalive_seconds=0,
        )

    def _init(self) -> None:
        try:
            super()._init()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the session and its connection; parallel-ssh would leave that to the garbage collector."""
        session, self.session = self.session, None
        sock, self.sock = getattr(self, "sock", None), None
        if session is not None:
            with contextlib.suppress(Exception):
                session.set_blocking(0)
                session.disconnect()
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(SHUT_RDWR)  # The session has a descriptor of its own.
            sock.close()
        if self._tunnel is not None:
            self._tunnel.kill()
        if self._gate is not None:
            self._gate.close()

    def _disconnect(self) -> None:
        self.close()

    def _connect(self, host: str, port: int, retries: int = 1) -> None:
        """Connect, if need be through a tunnel of the jump host's connection."""
        jump = self._route.jump
        if jump is None:
            super()._connect(host, port, retries)
            return
        with _told(jump, f"jump host {jump}: "):
            self._gate = gate = _Client(jump, None, self._connect_s)
            try:
                with Deadline(self._connect_s):
                    channel = gate.eagain(gate.session.direct_tcpip_ex, host, port, "127.0.0.1", 0)
            except SSH2Error as error:
                raise Unreachable(f"it does not reach {host} port {port}") from error
        self.sock, inner = socketpair()
        self._tunnel = spawn(_pump, gate, channel, inner)

    def _init_session(self, retries: int = 1) -> None:
        known = KnownHosts(self._route.known_hosts)
        self.session = session = Session()
        session.set_timeout(int(self._connect_s * 1000))
        kinds = known.kinds(self._route.known_as)
        # Kinds that are known come first, so that a host shows a key that can be compared; no certificates.
        usable = [one for one in session.supported_algs(LIBSSH2_METHOD_HOSTKEY) if "-cert-" not in one]
        wanted = [one for one in _algorithms(kinds) if one in usable]
        session.method_pref(LIBSSH2_METHOD_HOSTKEY, ",".join(dict.fromkeys([*wanted, *usable])))
        get_hub().threadpool.apply(session.handshake, (_Descriptor(self.sock),))
        self.key = session.hostkey()[0]
        if not self._look_only:
            _demand(known, self._route, self.key)

    def auth(self) -> None:
        if not self._look_only:
            get_hub().threadpool.apply(self._log_in)

    def _log_in(self) -> None:
        """Try the agent, the key files, the password; in this order. In a thread: libssh2 blocks here."""
        ways: list[tuple[str, Callable[[], Any]]] = []
        if self._route.agent:
            ways.append(("the agent", self._agent_auth))
        for file in self._route.keys:
            ways.append((str(file), partial(self._pkey_file_auth, str(file))))
        if self.password is not None:
            ways.append(("the password", self._password_auth))
        for _, way in ways:
            with contextlib.suppress(SSH2Error):
                way()
                return
        tried = (
            ", ".join(name for name, _ in ways) or "nothing: there is no key file, no agent and no password"
        )
        raise AuthenticationError(f"it refuses to let {self.user} in; tried: {tried}")


def _pump(gate: _Client, channel: Any, inner: socket) -> None:
    """Carry bytes between a tunnel's two ends until one of them closes.

    One greenlet for both directions, and a write that met EAGAIN is repeated before anything else: libssh2 takes
    no other call in between.
    """
    inner.setblocking(False)
    to_host = b""
    with contextlib.suppress(OSError, SSH2Error), inner:
        while True:
            moved = 0
            if to_host:
                _, moved = channel.write(to_host)
                to_host = to_host[moved:]
            if not to_host:
                size, data = channel.read(CHUNK)
                if size > 0:
                    inner.setblocking(True)
                    inner.sendall(data)
                    inner.setblocking(False)
                    moved += size
                elif channel.eof():
                    return
                with contextlib.suppress(BlockingIOError):
                    to_host = inner.recv(CHUNK)
                    if not to_host:
                        return
                    moved += len(to_host)
            if moved:
                sleep(0)
            else:
                full = gate.session.block_directions() & LIBSSH2_SESSION_BLOCK_OUTBOUND
                writers = [gate.sock] if full else []
                readers = [gate.sock] if to_host else [gate.sock, inner]
                select(readers, writers, [], POLL_S)


def _algorithms(kinds: list[str]) -> list[str]:
    """The signature algorithms for kinds of keys: those of RSA are newer than its name (RFC 8332)."""
    return [name for kind in kinds for name in (_RSA if kind == "ssh-rsa" else (kind,))]


def _demand(known: KnownHosts, route: Route, key: bytes) -> None:
    """Raise HostKeyRefused unless this is the key by which the host is known."""
    verdict, where = known.check(route.known_as, key)
    shown = f"{kind_of(key)} {fingerprint(key)}"
    if verdict is Verdict.UNKNOWN:
        text = f"its host key is not known ({shown}); check it, then: hyperfarm hosts keys --accept-new"
    elif verdict is Verdict.CHANGED:
        text = f"ITS HOST KEY HAS CHANGED: it shows {shown}, another stands in {where}; nothing was sent"
    elif verdict is Verdict.REVOKED:
        text = f"its host key was revoked in {where} ({shown})"
    else:
        return
    raise HostKeyRefused(text, verdict, key)


@contextlib.contextmanager
def _told(route: Route, before: str = "") -> Iterator[None]:
    """Turn whatever goes wrong on the way to a host into Unreachable with a plain reason."""
    try:
        yield
    except HostKeyRefused as error:
        raise HostKeyRefused(before + str(error), error.verdict, error.key) from error
    except Unreachable as error:
        raise Unreachable(before + str(error)) from error
    except UnknownHostError as error:
        raise Unreachable(f"{before}its name {route.host} is not known (DNS)") from error
    except AuthenticationError as error:
        inner = next((one for one in error.args if isinstance(one, AuthenticationError)), error)
        raise Unreachable(before + str(inner)) from error
    except ConnectionRefusedError as error:
        raise Unreachable(f"{before}nothing listens on port {route.port}: is sshd running there?") from error
    except (PsshTimeout, SSH2Timeout, TimeoutError, Deadline) as error:
        raise Unreachable(f"{before}no answer on port {route.port} of {route.host}") from error
    except OSError as error:
        reason = error.strerror or next((str(one) for one in error.args[::-1] if isinstance(one, str)), "")
        raise Unreachable(f"{before}it cannot be reached: {reason}") from error
    except SSH2Error as error:
        raise Unreachable(f"{before}the connection broke ({_name(error)})") from error


def _text(pieces: list[bytes]) -> str:
    return b"".join(pieces).decode(errors="replace").removesuffix("\n")


def _name(error: Exception) -> str:
    return type(error).__name__
