"""What `hyperfarm hosts` does on a host. Standard library only: it runs there before anything is installed.

remote.py sends this text to the host's Python with a request (JSON), and gets one answer (JSON). All files
lie in the host's workdir:

    venv/  config/  cache/  logs/worker.log  incoming/  installed.json  worker.json  .hyperfarm-workdir

A worker is a process of its own, or a unit of the user's systemd: then systemd alone knows its process.
An action either does what it says or raises Refused with the reason; begun again after a crash, it carries on.
"""

import contextlib
import fcntl
import getpass
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

MARK = ".hyperfarm-workdir"
UNIT = "hyperfarm-worker-{tag}.service"
UNIT_TEXT = """\
[Unit]
Description=hyperfarm worker
# The database may be away for days: try on, at the pace of RestartSec.
StartLimitIntervalSec=0
[Service]
WorkingDirectory={folder}/
{environment}
ExecStart={command}
StandardOutput=append:{folder}/logs/worker.log
StandardError=inherit
Restart=on-failure
RestartSec=5
# A trial that takes too much memory is one failed attempt, not the worker's end.
OOMPolicy=continue
# SIGTERM is for the worker alone; its --grace says how long it may drain.
KillMode=mixed
TimeoutStopSec=infinity
[Install]
WantedBy=default.target
"""
ANSWER = "hyperfarm answers: "
LEAST_FREE = 500 << 20
"""Bytes; an environment takes about 200 MB, its wheels 57 MB, and pip unpacks in between."""
LOG_LIMIT = 10 << 20
TOLD = 400
POLL_S, LEAVE_S = 0.05, 10.0
SETTLE_S = 0.3
ENDED = ("inactive", "failed")


class Refused(Exception):
    """Why something cannot be done; one sentence for a person."""


def main() -> None:
    """Read a request from standard input, carry it out, and print the answer."""
    request = json.loads(sys.stdin.buffer.read())
    action = ACTIONS[request.pop("action")]
    try:
        answer = {"ok": action(**request)}
    except Refused as error:
        answer = {"refused": str(error)}
    except OSError as error:
        answer = {"refused": _told(error)}
    print(ANSWER + json.dumps(answer), flush=True)


def look(workdir: str) -> dict[str, Any]:
    """Tell the state of the host; nothing is changed."""
    folder = _folder(workdir)
    return {
        "hostname": socket.gethostname(),
        "workdir": str(folder),
        "python": ".".join(map(str, sys.version_info[:3])),
        "clock": time.time(),
        "free": shutil.disk_usage(_nearest(folder)).free,
        "exists": (folder / MARK).is_file(),
        "installed": _read(folder / "installed.json"),
        "config": {file.name: _digest(file) for file in sorted(folder.glob("config/*")) if file.is_file()},
        "worker": _worker(folder),
    }


def prepare(workdir: str, systemd: bool = False) -> str:
    """Make the workdir, and return its path. An unfinished transfer of before is removed.

    `systemd`: the worker is to be a unit; refused here, before anything is stopped or installed for it.
    """
    if systemd:
        _need_systemd()
    folder = _folder(workdir)
    if folder.exists() and not (folder / MARK).exists() and any(folder.iterdir()):
        raise Refused(f"{folder} is there already and is not ours; name another workdir= in hosts.txt")
    free = shutil.disk_usage(_nearest(folder)).free
    if free < LEAST_FREE and not (folder / "installed.json").exists():
        where = _nearest(folder)
        raise Refused(f"its disk is full: {free >> 20} MB are free in {where}, {LEAST_FREE >> 20} are needed")
    for name in ("", "config", "cache", "logs", "incoming"):
        (folder / name).mkdir(mode=0o700, parents=True, exist_ok=True)
    (folder / MARK).touch()
    for part in [*folder.glob("config/*.part"), *folder.glob("incoming/*.part")]:
        part.unlink()
    return str(folder)


def install(workdir: str, wanted: dict[str, Any], wheel: str, requirements: str, no_index: bool) -> list[str]:
    """Make the environment as `wanted`: hyperfarm's wheel, the user's requirements, from the index or `incoming`.

    Returns what was installed, a line each. It counts as installed only when all of it is.
    """
    folder = _folder(workdir)
    with _lock(folder):
        (folder / "installed.json").unlink(missing_ok=True)
        python = _environment(folder, wanted)
        incoming = folder / "incoming"
        index = ["--no-index"] if no_index else []
        pip = [python, "-m", "pip", "--disable-pip-version-check", "--no-input", "--quiet"]
        listed = ["-r", str(incoming / requirements)] if requirements else []
        _run([*pip, "uninstall", "-y", "hyperfarm"], "pip cannot make room")
        _run(
            [
                *pip,
                "install",
                "--no-compile",
                *index,
                "--find-links",
                str(incoming),
                str(incoming / wheel),
                *listed,
            ],
            "pip cannot install what is needed",
        )
        # pip has brought hyperopt's own command of this name, which fails on the pymongo that it asks for.
        shim = [python, "-m", "hyperfarm.cli", "worker", "--install-shim"]
        _run(shim, "the command hyperopt-mongo-worker cannot be made")
        frozen = _run([*pip, "freeze"], "pip cannot tell what is installed").splitlines()
        _write(folder / "installed.json", {**wanted, "packages": frozen})
    return frozen


def start(workdir: str, argv: list[str], env: dict[str, str], launch: str, systemd: bool) -> dict[str, Any]:
    """Start the worker so that it outlives this connection. `launch` is how it is found again in the database.

    `{folder}` in argv and env stands for the workdir.
    """
    folder = _folder(workdir)
    with _lock(folder):
        worker = _worker(folder)
        if worker:
            raise Refused(f"a worker runs there already (process {worker['pid']})")
        words = [word.replace("{folder}", str(folder)) for word in argv]
        own = {name: value.replace("{folder}", str(folder)) for name, value in env.items()}
        own["HYPERFARM_LAUNCH"] = launch
        _rotate(folder / "logs" / "worker.log")
        told = {"launch": launch, "systemd": systemd, "argv": argv, "env": env, "since": time.time()}
        _remove_unit(folder)
        pid = 0 if systemd else _start_detached(folder, words, own)
        _write(folder / "worker.json", {**told, "pid": pid, "began": _began(pid)})
        if systemd:  # After it was noted: a unit runs on, whatever becomes of this process.
            _start_unit(folder, words, own)
        time.sleep(SETTLE_S)
        begun = _worker(folder)
        if begun is None or not begun["pid"]:
            _remove_unit(folder)
            raise Refused(f"its worker ended at once: {_tail(folder / 'logs' / 'worker.log', 5)[-TOLD:]}")
    return begun


def stop(workdir: str, grace_s: float) -> dict[str, Any]:
    """Let the worker drain for `grace_s` seconds, then have it give its trials back, then kill what is left."""
    folder = _folder(workdir)
    worker = _worker(folder)
    if worker is None:
        _remove_unit(folder)
        return {"was": None}
    was = worker["pid"]
    if worker["systemd"]:
        worker = _stop_unit(folder) or worker
    else:
        _terminate(worker)
    _within(max(grace_s, 2 * POLL_S), lambda: not _lives(worker))
    _terminate(worker)
    killed = not _within(LEAVE_S, lambda: not _lives(worker))
    if worker["systemd"]:
        _remove_unit(folder)
    else:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(worker["pid"], signal.SIGKILL)
    (folder / "worker.json").unlink(missing_ok=True)
    return {"was": was, "killed": killed}


def purge(workdir: str) -> bool:
    """Remove the workdir; only one that this program made, and never under a running worker."""
    folder = _folder(workdir)
    if not folder.exists():
        return False
    if not (folder / MARK).is_file():
        raise Refused(f"{folder} was not made by hyperfarm: it is left alone")
    worker = _worker(folder)
    if worker:
        raise Refused(f"a worker still runs there (process {worker['pid']})")
    shutil.rmtree(folder)
    return True


def tail(workdir: str, lines: int) -> str:
    """Return the last lines of the worker's log."""
    return _tail(_folder(workdir) / "logs" / "worker.log", lines)


ACTIONS = {one.__name__: one for one in (look, prepare, install, start, stop, purge, tail)}


# ---- the environment -----------------------------------------------------------------------------------


def _environment(folder: Path, wanted: dict[str, Any]) -> str:
    """Make venv/ unless a working one of this Python is there; return its interpreter."""
    venv = folder / "venv"
    python = str(venv / "bin" / "python")
    tell = "import sys; print('.'.join(map(str, sys.version_info[:3])))"
    with contextlib.suppress(Refused, OSError):
        found = _run([python, "-c", tell], "").strip()
        _run([python, "-m", "pip", "--version"], "")
        if found == wanted["python"]:
            return python
    shutil.rmtree(venv, ignore_errors=True)
    _run([sys.executable, "-m", "venv", "--without-pip", str(venv)], "no environment can be made")
    brought = sorted((folder / "incoming").glob("pip-*.whl"))
    try:
        _run([python, "-m", "ensurepip", "--default-pip"], "")
    except Refused:
        if not brought:
            version = f"{sys.version_info[0]}.{sys.version_info[1]}"
            raise Refused(
                f"its Python has no pip for an environment: install python{version}-venv there"
            ) from None
        _run(
            [python, f"{brought[-1]}/pip", "install", "--no-index", str(brought[-1])],
            "pip cannot be installed",
        )
    return python


def _run(command: list[str], what: str) -> str:
    """Run a command and return its output; raise Refused with `what` and the end of what it said."""
    env = {**os.environ, "PYTHONNOUSERSITE": "1", "XDG_RUNTIME_DIR": str(_runtime())}
    done = subprocess.run(
        command, capture_output=True, text=True, env=env, stdin=subprocess.DEVNULL, check=False
    )
    if done.returncode != 0:
        said = " ".join((done.stderr.strip() or done.stdout.strip()).split())
        hint = ": its disk is full" if "No space left" in said else ""
        raise Refused(f"{what}{hint}: {said[-TOLD:]}")
    return done.stdout


# ---- the process ---------------------------------------------------------------------------------------


def _worker(folder: Path) -> dict[str, Any] | None:
    """The worker that runs there, None without one. The pid of a unit that waits to be started again is 0."""
    worker = _read(folder / "worker.json") or {}
    if not worker.get("systemd") and not _unit_files(folder)[0].exists():
        return worker if worker and _lives(worker) else None
    state, pid = _unit_state(folder)
    if state in ENDED:
        return None
    unknown = {"launch": "", "argv": None, "env": None}
    return {**unknown, **worker, "systemd": True, "pid": pid, "began": _began(pid)}


def _start_detached(folder: Path, argv: list[str], env: dict[str, str]) -> int:
    with open(folder / "logs" / "worker.log", "ab") as log:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=folder,
            env={**os.environ, **env},
            start_new_session=True,
        )
    return process.pid


def _lives(worker: dict[str, Any]) -> bool:
    """True while that very process runs: a number may be another's by now."""
    began = _began(worker["pid"])
    return began is not None and began == worker["began"]


def _began(pid: int) -> str | None:
    """When a process began, None if there is none; a process that only waits to be buried does not count."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if words[0] == "Z" else words[19]
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
    told = subprocess.run(
        ["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return told.stdout.strip() or None


def _terminate(worker: dict[str, Any]) -> None:
    with contextlib.suppress(ProcessLookupError):
        if _lives(worker):
            os.kill(worker["pid"], signal.SIGTERM)


def _within(seconds: float, done: Callable[[], bool]) -> bool:
    """Wait until it is done; False when it is not in time."""
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_S)
    return True


# ---- the user's systemd --------------------------------------------------------------------------------


def _need_systemd() -> None:
    """Make sure that the user's systemd runs, and goes on when the user logs out. Raises Refused."""
    if not Path("/run/systemd/system").is_dir() or shutil.which("systemctl") is None:
        raise Refused("there is no systemd; leave --systemd out")
    me, lingers = getpass.getuser(), ""
    with contextlib.suppress(Refused):  # It knows nobody who neither lingers nor is logged in.
        lingers = _run(["loginctl", "show-user", me, "--property=Linger", "--value"], "").strip()
    try:
        if lingers != "yes":
            _run(["loginctl", "--no-ask-password", "enable-linger", me], "")
    except Refused:
        help_ = f"run there once: sudo loginctl enable-linger {me}"
        raise Refused(f"its systemd would end the worker when the user logs out; {help_}") from None
    if not _within(LEAVE_S, _has_manager):
        raise Refused("the user's systemd does not run; see there: systemctl --user status")
    _systemctl("show", "--property=Version")  # It may be dead, and better now than when a worker was stopped.


def _start_unit(folder: Path, argv: list[str], env: dict[str, str]) -> None:
    """Start it as a unit, which systemd starts again after a crash and at boot. Refused: nothing is left of it."""
    file, _ = _unit_files(folder)
    file.parent.mkdir(parents=True, exist_ok=True)
    # systemd takes no program whose path has a quote or a backslash; a shell does.
    words = ["/bin/sh", "-c", 'exec "$@"', "sh", *argv]
    text = UNIT_TEXT.format(
        folder=str(folder).replace("%", "%%"),  # Unquoted; a slash guards a blank or backslash at its end.
        environment="\n".join(f"Environment={_quoted(f'{name}={value}')}" for name, value in env.items()),
        command=" ".join(_quoted(word).replace("$", "$$") for word in words),
    )
    file.write_bytes(os.fsencode(text))
    try:
        _systemctl("daemon-reload")
        _systemctl("enable", "--quiet", "--now", file.name)
    except Refused:
        _remove_unit(folder)
        raise


def _quoted(word: str) -> str:
    """A word in the syntax of unit files."""
    for plain, escaped in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("%", "%%")):
        word = word.replace(plain, escaped)
    return f'"{word}"'


def _stop_unit(folder: Path) -> dict[str, Any] | None:
    """Have systemd send the first SIGTERM, and start the worker no more; return the worker that has got it."""
    file, link = _unit_files(folder)
    link.unlink(missing_ok=True)
    _systemctl("stop", "--no-block", file.name)
    _within(LEAVE_S, lambda: _unit_state(folder)[0] in (*ENDED, "deactivating"))
    return _worker(folder)


def _remove_unit(folder: Path) -> None:
    """Leave nothing of the unit, neither processes nor files; all the same if there is none."""
    file, link = _unit_files(folder)
    if not file.exists() and not link.is_symlink():
        return
    if _unit_state(folder)[0] not in ENDED:
        _systemctl("stop", "--no-block", file.name)
        with contextlib.suppress(Refused):  # There may be no process any more.
            _systemctl("kill", "--signal=KILL", file.name)
        _within(LEAVE_S, lambda: _unit_state(folder)[0] in ENDED)
    link.unlink(missing_ok=True)
    file.unlink(missing_ok=True)
    if _has_manager():
        _systemctl("daemon-reload")
        with contextlib.suppress(Refused):  # It is known still only if it has failed.
            _systemctl("reset-failed", file.name)


def _unit_state(folder: Path) -> tuple[str, int]:
    """The unit's ActiveState, and the pid of its main process or 0. Without its manager no unit is active."""
    if not _has_manager():
        return "inactive", 0
    told = _systemctl("show", "--property=ActiveState,MainPID", _unit_files(folder)[0].name)
    facts = dict(line.split("=", 1) for line in told.splitlines())
    return facts["ActiveState"], int(facts["MainPID"])


def _unit_files(folder: Path) -> tuple[Path, Path]:
    """The unit's file, and the link by which it is started at boot."""
    name = UNIT.format(tag=hashlib.sha256(str(folder).encode()).hexdigest()[:8])
    units = Path.home() / ".config" / "systemd" / "user"
    return units / name, units / "default.target.wants" / name


def _has_manager() -> bool:
    return (_runtime() / "systemd" / "private").exists()


def _runtime() -> Path:
    """The folder of the user's sockets; sshd without PAM does not name it."""
    return Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}")


def _systemctl(*words: str) -> str:
    return _run(["systemctl", "--user", *words], "the user's systemd refuses")


# ---- files and facts -----------------------------------------------------------------------------------


def _folder(workdir: str) -> Path:
    return Path.home() / workdir


def _nearest(folder: Path) -> Path:
    """The folder, or the nearest above it that exists."""
    return next(one for one in (folder, *folder.parents) if one.exists())


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return None


def _write(file: Path, value: dict[str, Any]) -> None:
    part = file.with_name(file.name + ".part")
    part.write_text(json.dumps(value))
    part.replace(file)


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _rotate(log: Path) -> None:
    if log.exists() and log.stat().st_size > LOG_LIMIT:
        log.replace(log.with_suffix(".old"))


def _tail(log: Path, lines: int) -> str:
    try:
        with open(log, "rb") as read:
            read.seek(max(0, log.stat().st_size - 400 * lines))
            return "\n".join(read.read().decode(errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return ""


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """One at a time changes a workdir."""
    with open(folder / MARK, "w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refused("another `hyperfarm hosts` is at work there") from None
        yield


def _told(error: OSError) -> str:
    if error.errno == 28:
        return f"its disk is full: {error.filename or ''}".rstrip(": ")
    return f"{error.strerror or error}: {error.filename}" if error.filename else str(error)


if __name__ == "__main__":
    main()
