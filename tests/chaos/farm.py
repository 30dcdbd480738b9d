"""The processes of the farm under test: one controller and some supervisors, started again when they die."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

EXP_KEY = "chaos"
MARK = "CHAOS_CAMPAIGN"
"""The environment variable by which every process of a campaign can be found again."""
COMMAND = [sys.executable, "-m", "hyperfarm.cli"]
RESTART_PAUSE_S = 0.5
LOOK_S = 0.1
SKEW_S = 600
STOP_S = 30.0


@dataclass(frozen=True, kw_only=True)
class SelfExit:
    """A process that ended though nobody had touched it. `connected`: it had reached the database before."""

    name: str
    code: int
    lived_s: float
    connected: bool
    last_words: str


@dataclass(kw_only=True)
class Program:
    """A command line that shall run until it has done its work; `process` changes with every restart."""

    name: str
    command: list[str]
    folder: Path
    env: dict[str, str]
    log: Path
    sign_of_life: str
    ends_by_itself: bool = False
    process: subprocess.Popen[bytes] | None = None
    touched: bool = False
    wanted: bool = True
    started_at: float = 0.0
    log_from: int = 0
    may_start_at: float = 0.0
    exits: list[SelfExit] = field(default_factory=list)
    pids: list[int] = field(default_factory=list)

    @property
    def pid(self) -> int | None:
        """The process that runs now, if one does."""
        if self.process is not None and self.process.poll() is None:
            return self.process.pid
        return None

    def start(self) -> None:
        self.log_from = self.log.stat().st_size if self.log.exists() else 0
        self.touched = False
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env=self.env,
                start_new_session=True,
            )
        self.pids.append(self.process.pid)
        self.started_at = time.monotonic()

    def signal(self, number: int) -> None:
        """Send a signal on purpose: what becomes of the process is not held against it."""
        if self.process is not None and self.process.poll() is None:
            self.touched = True
            os.kill(self.process.pid, number)

    def children(self) -> list[psutil.Process]:
        """Its direct children, on a supervisor one for each slot that has begun to work."""
        with contextlib.suppress(psutil.NoSuchProcess):
            if self.pid is not None:
                return psutil.Process(self.pid).children()
        return []

    def look(self) -> None:
        """Start it if it is not there and should be; note it when it has ended by itself."""
        if not self.wanted or self.pid is not None:
            return
        if self.process is not None:
            self._has_ended(self.process.returncode)
            self.process = None
        if self.wanted and time.monotonic() >= self.may_start_at:
            self.start()

    def _has_ended(self, code: int) -> None:
        self.may_start_at = time.monotonic() + RESTART_PAUSE_S
        if self.ends_by_itself and code == 0:
            self.wanted = False
        elif not self.touched:
            with self.log.open("rb") as log:
                log.seek(self.log_from)
                text = log.read().decode(errors="replace")
            self.exits.append(
                SelfExit(
                    name=self.name,
                    code=code,
                    lived_s=round(time.monotonic() - self.started_at, 1),
                    connected=self.sign_of_life in text,
                    last_words=text[-600:],
                )
            )


class Farm:
    """All programs of a campaign and the thread that keeps them running; a context manager."""

    def __init__(self, controller: Program, workers: list[Program], mark: str) -> None:
        self.controller, self.workers, self.mark = controller, workers, mark
        self._ended = threading.Event()
        self._keeper = threading.Thread(target=self._keep, daemon=True, name="keeper")

    @property
    def programs(self) -> list[Program]:
        return [self.controller, *self.workers]

    def __enter__(self) -> Farm:
        self._keeper.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_keeping()
        for process in marked(self.mark):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        for program in self.programs:
            if program.process is not None:
                program.process.wait()
            for pid in program.pids:
                forget_clock(pid)

    def _keep(self) -> None:
        while not self._ended.wait(LOOK_S):
            for program in self.programs:
                program.look()

    def _stop_keeping(self) -> None:
        self._ended.set()
        self._keeper.join()

    @property
    def is_complete(self) -> bool:
        """True when the controller has said that the search is complete."""
        return not self.controller.wanted

    def stop_workers(self) -> list[str]:
        """Drain all supervisors with SIGTERM; return the names of those that did not end in time."""
        self._stop_keeping()
        for program in self.workers:
            program.signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_S
        late = []
        for program in self.workers:
            if program.process is not None:
                try:
                    program.process.wait(max(0.1, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    late.append(program.name)
        return late


def marked(mark: str) -> Iterator[psutil.Process]:
    """Every living process that carries the campaign's mark, but for this one."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            alive = process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE
            if alive and process.environ().get(MARK) == mark:
                yield process


def wrong_clock(skew_s: int) -> dict[str, str]:
    """The environment of a process whose wall clock is off by so much (its monotonic clock is right)."""
    spec = importlib.util.find_spec("libfaketime")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("the campaign needs libfaketime: pip install libfaketime")
    folder = Path(spec.submodule_search_locations[0])
    library = next(folder.rglob("libfaketime.so*"))
    return {
        "LD_PRELOAD": str(library),
        "FAKETIME": f"{skew_s:+d}s",
        "DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }


def forget_clock(pid: int) -> None:
    """Remove the shared memory that libfaketime leaves behind when its process is killed."""
    for name in (f"faketime_shm_{pid}", f"sem.faketime_sem_{pid}"):
        Path("/dev/shm", name).unlink(missing_ok=True)


def clean_environment(mark: str, home: Path) -> dict[str, str]:
    """This environment without the user's settings of hyperfarm, with a home and the mark of the campaign."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("HYPERFARM_")}
    env |= {MARK: mark, "HYPERFARM_CONFIG": str(home / "config"), "HYPERFARM_DATA": str(home / "data")}
    # A campaign that is stuck sends SIGABRT: every thread's stack then goes to the log.
    return env | {"PYTHONFAULTHANDLER": "1"}
