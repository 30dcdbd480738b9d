"""A private MongoDB for people who have none: one mongod, a replica set of one, on the loopback address.

One server per data folder, shared by all who ask. Every user of `running` holds a shared lock (flock) on
`users.lock`; who can take it exclusively on leaving is the last, and stops the server unless it was started
to stay. The kernel drops the lock of a user who was killed. Starting and stopping happen under an exclusive
lock on `start.lock`. `state.json` says which process it is; a process counts only if its start time fits.
A server whose last user was killed with SIGKILL goes on running until the next user leaves.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import platformdirs

from hyperfarm.errors import EmbeddedError
from hyperfarm.mongod_fetch import REPLICA_SET, Announce, find_mongod, wait_writable

STOP_DEADLINE_S = 30.0
POLL_S = 0.02
DISK_NEEDED = 350 << 20  # bytes; a fresh data folder takes 301 MB, most of it the journal
ADDRESS_IN_USE = 48  # mongod's exit code


@dataclass(frozen=True, kw_only=True)
class Server:
    """A mongod that takes writes. `persistent`: only `stop` ends it, never its last user."""

    url: str
    port: int
    pid: int
    data_dir: Path
    version: str
    persistent: bool = False


@dataclass(frozen=True, kw_only=True)
class _State:
    """What `state.json` remembers. `pid` 0: about to start, or stopped; `version` "": not ready yet."""

    port: int = 0
    pid: int = 0
    started: str = ""
    url: str = ""
    version: str = ""
    persistent: bool = False


def data_dir() -> Path:
    """Return the folder of the private server: `db` in `HYPERFARM_DATA` or in the user's data folder."""
    root = os.environ.get("HYPERFARM_DATA") or platformdirs.user_data_dir("hyperfarm")
    return Path(root).expanduser().absolute() / "db"


def say(line: str) -> None:
    """Announce a line of progress on standard error."""
    print(line, file=sys.stderr, flush=True)


def status() -> Server | None:
    """Return the private server if it runs and is ready; takes no lock and writes nothing."""
    folder = data_dir()
    with _explained(folder):
        state = _read_state(folder)
    return _server(state, folder) if _alive(state) and state.version else None


def start(*, persistent: bool, announce: Announce = say) -> Server:
    """Return the private server, started first if it is not running; it can be written to at once.

    With `persistent` it stays when its last user leaves, also if it ran already. Without, call this only
    through `running`: nobody else would stop it. Raises EmbeddedError if no mongod is found, fetched or
    started within 30 s (90 s if its old port was taken); a process that this call started is gone then.
    """
    folder = data_dir()
    with _explained(folder), _starting(folder, announce):
        state = _read_state(folder)
        if not _alive(state):
            state = _adopt_orphan(state, folder)
        if _alive(state):
            if not state.version:  # its starter was killed before it was ready
                version = wait_writable(state.port, lambda: _alive(state), folder / "mongod.log")
                state = replace(state, version=version)
            state = replace(state, persistent=state.persistent or persistent)
        else:
            state = _start_mongod(folder, replace(state, persistent=persistent), announce)
        _write_state(folder, state)
        return _server(state, folder)


def stop(*, force: bool = False) -> bool:
    """Stop the private server and return True when its process is gone; False if none was running.

    Raises EmbeddedError, and stops nothing, if somebody is using it and `force` is not given.
    """
    folder = data_dir()
    if not folder.is_dir():
        return False
    with _explained(folder), _starting(folder, say), _flocked(folder / "users.lock") as users:
        state = _read_state(folder)
        if not _alive(state):
            state = _adopt_orphan(state, folder)
        if not _alive(state):
            return False
        if not (_lock_now(users) or force):
            raise EmbeddedError(
                f"The private MongoDB (process {state.pid}) is in use by a running hyperfarm: wait until it "
                f"ends, or stop the server under it with `hyperfarm db stop --force`."
            )
        _stop_mongod(folder, state)
        return True


@contextlib.contextmanager
def running(announce: Announce = say) -> Iterator[str]:
    """Yield the URL of the private server; start it if nobody has, stop it if nobody else needs it.

    May be entered by any number of processes and threads at once; all share one server. Raises what
    `start` raises.
    """
    folder = data_dir()
    with contextlib.ExitStack() as stack:
        with _explained(folder):
            _make_private(folder)
            users = stack.enter_context(_flocked(folder / "users.lock"))
            fcntl.flock(users, fcntl.LOCK_SH)  # waits only for a leaver who is stopping the server
        url = start(persistent=False, announce=announce).url
        try:
            yield url
        finally:
            with _explained(folder), _starting(folder, announce):
                state = _read_state(folder)
                # A failed upgrade gives up the shared lock too: right, since this user is leaving.
                if _lock_now(users) and _alive(state) and not state.persistent:
                    _stop_mongod(folder, state)


@contextlib.contextmanager
def throwaway(
    dbpath: Path | str, *, replica_set: bool = True, port: int | None = None, extra_args: Sequence[str] = ()
) -> Iterator[Server]:
    """Yield a server of one's own for tests: data in `dbpath` (made if missing), process gone at exit.

    It shares nothing with the private server. `replica_set=False` makes a standalone; a folder may be used
    again, on another port too. `port` is chosen if not given. The process may be killed by the user.
    """
    folder = Path(dbpath).absolute()
    with _explained(folder):
        _make_private(folder)
        mongod, port, log = find_mongod(say), port or _free_port(), folder / "mongod.log"
        moved = (folder / "WiredTiger").exists()
        process = mongod.launch(folder, log, port=port, replica_set=replica_set, extra_args=extra_args)
    try:
        version = wait_writable(port, partial(_is_running, process), log, process, replica_set, moved)
        url = f"mongodb://127.0.0.1:{port}/hyperfarm" + (f"?replicaSet={REPLICA_SET}" if replica_set else "")
        yield Server(url=url, port=port, pid=process.pid, data_dir=folder, version=version)
    finally:
        _terminate(process.pid, _identity(process.pid))
        process.wait()


def _start_mongod(folder: Path, state: _State, announce: Announce) -> _State:
    """Start the private mongod and return its state; the caller holds `start.lock`."""
    mongod = find_mongod(announce)
    free = shutil.disk_usage(folder).free
    if free < DISK_NEEDED and not (folder / "data").is_dir():
        raise EmbeddedError(
            f"The disk of {folder} has {free >> 20} MB left, and a new database needs {DISK_NEEDED >> 20} "
            f"MB: make room, or set HYPERFARM_DATA to another folder."
        )
    _make_private(folder / "data")
    log = folder / "mongod.log"
    known, has_data = state.port, (folder / "data" / "WiredTiger").exists()
    for attempts_left in (2, 1, 0):
        port = _free_port(state.port)
        moved = has_data and port != known
        if moved:
            announce(f"Port {known} is taken: moving the private MongoDB to {port}, in up to a minute ...")
        state = replace(state, port=port, pid=0, version="", url="")
        _write_state(folder, state)  # before the process is there: a successor finds it even if we die now
        process = mongod.launch(folder / "data", log, port=port)
        try:
            state = replace(state, pid=process.pid, started=_identity(process.pid), url=_url(port))
            _write_state(folder, state)
            version = wait_writable(port, partial(_is_running, process), log, process, moved=moved)
        except BaseException:
            _terminate(process.pid, _identity(process.pid))
            code = process.wait()
            _write_state(folder, replace(state, pid=0, started="", persistent=False))
            if code == ADDRESS_IN_USE and attempts_left:
                continue  # somebody took the port between our look and mongod's
            raise
        # Reap it if somebody else stops it while we live on: no zombie, and no "still running" warning.
        threading.Thread(target=process.wait, name="hyperfarm-mongod", daemon=True).start()
        return replace(state, version=version)
    raise AssertionError("unreachable")


def _stop_mongod(folder: Path, state: _State) -> None:
    """End the process and remember only its port; the caller holds `start.lock`."""
    _terminate(state.pid, state.started)
    _write_state(folder, _State(port=state.port))


def _terminate(pid: int, identity: str) -> None:
    """SIGTERM, and SIGKILL if it is still there after 30 s; return when the process has ended."""
    for number, patience_s in ((signal.SIGTERM, STOP_DEADLINE_S), (signal.SIGKILL, 10.0)):
        deadline = time.monotonic() + patience_s
        if identity and _identity(pid) == identity:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
                os.kill(pid, signal.SIGCONT)  # a stopped process would not notice
        while identity and _identity(pid) == identity:
            if time.monotonic() > deadline:
                break
            time.sleep(POLL_S)
        else:
            return
    raise EmbeddedError(f"mongod (process {pid}) does not end, not even after SIGKILL.")


def _is_running(process: subprocess.Popen[bytes]) -> bool:
    return process.poll() is None


def _alive(state: _State) -> bool:
    return state.pid > 0 and bool(state.started) and _identity(state.pid) == state.started


def _identity(pid: int) -> str:
    """Return what tells a process from a later one with the same id; "" if it has ended."""
    try:
        fields = (
            Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        )
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        # Its first thread is a zombie before the others have let go of port and files: wait for them.
        ended = fields[0] in "ZX" and int(fields[17]) <= 1
        return "" if ended else f"{boot}:{fields[19]}"
    except OSError:
        if Path("/proc/self").exists():
            return ""
    told = subprocess.run(
        ["ps", "-o", "state=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    condition, _, since = told.stdout.strip().partition(" ")
    return "" if not condition or condition.startswith("Z") else since.strip()


def _adopt_orphan(state: _State, folder: Path) -> _State:
    """Return the state of a mongod that runs in our folder though `state.json` does not know it.

    Its starter was killed before it could write the process id down, or the file was lost. Only on Linux.
    """
    try:
        pid = int((folder / "data" / "mongod.lock").read_text(encoding="ascii"))
        identity = _identity(pid)
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if not identity or os.fsencode(folder / "data") not in words:
            return state
        port = int(words[words.index(b"--port") + 1])
    except (OSError, ValueError):
        return state
    # Whose it is is not known unless the state says so: never stop it behind somebody's back.
    persistent = state.persistent if state.port == port else True
    return _State(port=port, pid=pid, started=identity, url=_url(port), persistent=persistent)


def _server(state: _State, folder: Path) -> Server:
    known = asdict(state)
    del known["started"]
    return Server(data_dir=folder, **known)


def _url(port: int) -> str:
    return f"mongodb://127.0.0.1:{port}/hyperfarm?replicaSet={REPLICA_SET}"


def _read_state(folder: Path) -> _State:
    """Return what is remembered; a missing or damaged file remembers nothing (see `_adopt_orphan`)."""
    try:
        raw = json.loads((folder / "state.json").read_bytes())
        state = _State(**raw)
        kinds = [type(value) for value in asdict(state).values()]
        return state if kinds == [int, int, str, str, str, bool] else _State()
    except (FileNotFoundError, ValueError, TypeError):
        return _State()


def _write_state(folder: Path, state: _State) -> None:
    """Replace `state.json` in one step."""
    fresh = folder / "state.json.new"
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(asdict(state), file)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(folder / "state.json")


def _free_port(wanted: int = 0) -> int:
    """Return `wanted` if nobody listens there, else any free port of the loopback address."""
    for port in (wanted, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise EmbeddedError("No port is free on 127.0.0.1.")


def _make_private(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)


@contextlib.contextmanager
def _starting(folder: Path, announce: Announce) -> Iterator[None]:
    """Hold the lock under which the server is started and stopped."""
    _make_private(folder)
    with _flocked(folder / "start.lock") as lock:
        if not _lock_now(lock):
            announce("Waiting for another hyperfarm that is starting or stopping the private MongoDB ...")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _flocked(path: Path) -> Iterator[int]:
    """Open a lock file; closing it drops whatever lock was taken."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


def _lock_now(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Turn the system's errors (rights, disk, locks) into one sentence."""
    try:
        yield
    except OSError as exc:
        raise EmbeddedError(
            f"The private MongoDB cannot use {exc.filename or folder}: {exc.strerror or exc}; make it usable, "
            f"or set HYPERFARM_DATA to a folder on a local disk."
        ) from exc
