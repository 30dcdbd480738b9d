"""Real processes for tests: the command line, workers, scripts; and waiting with a deadline."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

DEADLINE_S = 60.0
COMMAND = str(Path(sys.executable).with_name("hyperfarm"))
TWO_PARAMETERS = """
from hyperfarm import hp, trial
space = {"x": hp.uniform("x", -5, 5), "n": hp.quniform("n", 1, 9, 1)}
"""


def eventually(check: Callable[[], Any], what: str, within_s: float = DEADLINE_S) -> Any:
    """Return the first true value of `check()`; fail when there is none in time."""
    deadline = time.monotonic() + within_s
    while True:
        value = check()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {within_s} s: {what}"
        time.sleep(0.02)


def hyperfarm(
    *args: str, cwd: Path | None = None, check: bool = True, **env: str
) -> subprocess.CompletedProcess:
    """Run the command line to its end."""
    done = subprocess.run(
        [COMMAND, *args],
        cwd=cwd,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=150,
        stdin=subprocess.DEVNULL,
    )
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done


@contextlib.contextmanager
def started(*args: str, cwd: Path | None = None, **env: str) -> Iterator[subprocess.Popen]:
    """A command line process that is killed, with its children, when the block ends."""
    process = subprocess.Popen(
        [COMMAND, *args],
        cwd=cwd,
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        family = descendants(process.pid)
        for member in [process.pid, *family]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(member, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def descendants(pid: int) -> list[int]:
    """All processes below `pid`, whatever their session."""
    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def gone(pids: list[int]) -> bool:
    """True when none of the processes runs any more."""
    return not any(_runs(pid) for pid in pids)


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def line_with(process: subprocess.Popen, text: str) -> str:
    """Read what the process prints until a line has `text`; fail when it ends without one."""
    read = []
    for line in process.stdout:
        read.append(line)
        if text in line:
            return line
    raise AssertionError(f"no line with {text!r} in:\n{''.join(read)}")


@contextlib.contextmanager
def worker(url: str, folder: Path, *options: str, **env: str) -> Iterator[subprocess.Popen]:
    """A worker process in a folder of its own, with nothing of ours on its PYTHONPATH."""
    folder.mkdir(exist_ok=True)
    env = {"HYPERFARM_MONGO": url, "PYTHONPATH": "", **env}
    with started("worker", *options, cwd=folder, **env) as process:
        yield process
