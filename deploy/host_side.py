"""What `hyperfarm hosts` does on a host. Standard library only: it runs there before anything is installed.

remote.py sends this text to the host's Python with a request (JSON), and gets one answer (JSON). All files
lie in the host's workdir:

    venv/  config/  cache/  logs/worker.log  incoming/  installed.json  worker.json  .hyperfarm-workdir

An action either does what it says or raises Refused with the reason; begun again after a crash, it carries on.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MARK = ".hyperfarm-workdir"
UNIT = "hyperfarm-worker-{tag}.service"
ANSWER = "hyperfarm answers: "
LEAST_FREE = 500 << 20
"""Bytes; an environment takes about 200 MB, its wheels 57 MB, and pip unpacks in between."""
LOG_LIMIT = 10 << 20
TOLD = 400
POLL_S, LEAVE_S = 0.05, 10.0
SETTLE_S = 0.3


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
    worker = _read(folder / "worker.json")
    return {
        "hostname": socket.gethostname(),
        "workdir": str(folder),
        "python": ".".join(map(str, sys.version_info[:3])),
        "clock": time.time(),
        "free": shutil.disk_usage(_nearest(folder)).free,
        "exists": (folder / MARK).is_file(),
        "installed": _read(folder / "installed.json"),
        "config": {file.name: _digest(file) for file in sorted(folder.glob("config/*")) if file.is_file()},
        "worker": worker if worker and _lives(worker) else None,
    }


def prepare(workdir: str) -> str:
    """Make the workdir, and return its path. An unfinished transfer of before is removed."""
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
        frozen = _run([*pip, "freeze"], "pip cannot tell what is installed").splitlines()
        _write(folder / "installed.json", {**wanted, "packages": frozen})
    return frozen


def start(workdir: str, argv: list[str], env: dict[str, str], launch: str, systemd: bool) -> dict[str, Any]:
    """Start the worker so that it outlives this connection. `launch` is how it is found again in the database.

    `{folder}` in argv and env stands for the workdir.
    """
    folder = _folder(workdir)
    with _lock(folder):
        worker = _read(folder / "worker.json")
        if worker and _lives(worker):
            raise Refused(f"a worker runs there already (process {worker['pid']})")
        words = [word.replace("{folder}", str(folder)) for word in argv]
        own = {name: value.replace("{folder}", str(folder)) for name, value in env.items()}
        _rotate(folder / "logs" / "worker.log")
        begin = _start_unit if systemd else _start_detached
        pid = begin(folder, words, {**own, "HYPERFARM_LAUNCH": launch})
        begun = {"pid": pid, "began": _began(pid), "launch": launch, "systemd": systemd}
        _write(folder / "worker.json", {**begun, "argv": argv, "env": env, "since": time.time()})
        time.sleep(SETTLE_S)
        if not _lives(begun):
            raise Refused(f"its worker ended at once: {_tail(folder / 'logs' / 'worker.log', 5)[-TOLD:]}")
    return begun


def stop(workdir: str, grace_s: float) -> dict[str, Any]:
    """Let the worker drain for `grace_s` seconds, then have it give its trials back, then kill what is left."""
    folder = _folder(workdir)
    worker = _read(folder / "worker.json") if folder.exists() else None
    if not worker or not _lives(worker):
        return {"was": None}
    if worker.get("systemd"):
        _systemctl("disable", UNIT.format(tag=_tag(folder)))
    for wait_s in (grace_s, LEAVE_S):
        if _lives(worker):
            os.kill(worker["pid"], signal.SIGTERM)
        deadline = time.monotonic() + max(wait_s, 2 * POLL_S)
        while _lives(worker) and time.monotonic() < deadline:
            time.sleep(POLL_S)
    killed = _lives(worker)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(worker["pid"], signal.SIGKILL)
    if worker.get("systemd"):
        _systemctl("stop", UNIT.format(tag=_tag(folder)))
        _unit_file(folder).unlink(missing_ok=True)
    (folder / "worker.json").unlink(missing_ok=True)
    return {"was": worker["pid"], "killed": killed}


def purge(workdir: str) -> bool:
    """Remove the workdir; only one that this program made, and never under a running worker."""
    folder = _folder(workdir)
    if not folder.exists():
        return False
    if not (folder / MARK).is_file():
        raise Refused(f"{folder} was not made by hyperfarm: it is left alone")
    worker = _read(folder / "worker.json")
    if worker and _lives(worker):
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
    env = {**os.environ, "PYTHONNOUSERSITE": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, env=env, stdin=subprocess.DEVNULL, check=False
    )
    if done.returncode != 0:
        said = " ".join((done.stderr.strip() or done.stdout.strip()).split())
        hint = ": its disk is full" if "No space left" in said else ""
        raise Refused(f"{what}{hint}: {said[-TOLD:]}")
    return done.stdout


# ---- the process ---------------------------------------------------------------------------------------


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


def _start_unit(folder: Path, argv: list[str], env: dict[str, str]) -> int:
    """Start it as a unit of the user's systemd, which starts it again after a crash and at boot."""
    lines = ["[Unit]", "Description=hyperfarm worker", "", "[Service]", f"WorkingDirectory={folder}"]
    lines += [f'Environment="{name}={value}"' for name, value in env.items()]
    lines += [f"ExecStart={shlex.join(argv)}", f"StandardOutput=append:{folder}/logs/worker.log"]
    lines += [f"StandardError=append:{folder}/logs/worker.log", "Restart=on-failure", "KillMode=mixed"]
    lines += ["TimeoutStopSec=120", "", "[Install]", "WantedBy=default.target", ""]
    file = _unit_file(folder)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines))
    _systemctl("daemon-reload")
    _systemctl("enable", "--now", file.name)
    _run(["loginctl", "enable-linger"], "systemd will not start it at boot")
    told = _systemctl("show", "--property=MainPID", "--value", file.name).strip()
    return int(told or 0)


def _systemctl(*words: str) -> str:
    try:
        return _run(["systemctl", "--user", *words], "the user's systemd refuses")
    except FileNotFoundError:
        raise Refused("there is no systemd; leave --systemd out") from None


def _unit_file(folder: Path) -> Path:
    return Path.home() / ".config" / "systemd" / "user" / UNIT.format(tag=_tag(folder))


def _tag(folder: Path) -> str:
    return hashlib.sha256(str(folder).encode()).hexdigest()[:8]


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
