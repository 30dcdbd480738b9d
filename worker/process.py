"""A child process as its supervisor sees it: started, spoken to, listened to, killed."""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from hyperfarm.trial import DRAINING
from hyperfarm.worker import wire
from hyperfarm.worker.devices import VARIABLE
from hyperfarm.worker.logbuffer import LogBuffer

KEPT_FROM_CHILD = (
    "HYPERFARM_MONGO",
    "HYPERFARM_MONGO_PASSWORD",
    "HYPERFARM_MONGO_PASSWORD_FILE",
    "HYPERFARM_SECRET_FILE",
)
"""Environment variables with the farm's credentials: the user's code has no business with them."""
MARK = "HYPERFARM_CHILD"
"""Inherited by all that an objective starts: what has left its session and its parent is known by this."""
KILL_ROUNDS = 5
READ_SIZE = 1 << 16


class ChildDied(Exception):
    """The child ended in the middle of its work; the message says how."""


class ChildProcess:
    """One `hyperfarm.worker.child`, in a process group of its own, bound to one bundle.

    Its output goes to `log`, bounded. Not thread-safe, but for `kill`, which any thread may call. `devices`: the
    GPUs that it may see; None leaves that to the environment.
    """

    def __init__(self, revision: str, devices: tuple[str, ...] | None = None) -> None:
        self.revision = revision
        self.guardian: int | None = None
        """The process that cleans up after the child; it ends by itself."""
        self.log = LogBuffer()
        self.trials = 0
        """How many trials it has begun."""
        self.scratch = Path(tempfile.mkdtemp(prefix="hyperfarm-"))
        ours, theirs = socket.socketpair()
        output, their_output = os.pipe()
        their_lifeline, self._lifeline = os.pipe()
        safe_path = ["-P"] if sys.version_info >= (3, 11) else []
        command = [sys.executable, *safe_path, "-m", "hyperfarm.worker.child", str(theirs.fileno())]
        environment = {key: value for key, value in os.environ.items() if key not in KEPT_FROM_CHILD}
        environment["HYPERFARM_LIFELINE"] = str(their_lifeline)
        environment["HYPERFARM_SCRATCH"] = str(self.scratch)
        environment[MARK] = str(self.scratch)
        if devices is not None:
            environment[VARIABLE] = ",".join(devices)
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=their_output,
                stderr=their_output,
                pass_fds=(theirs.fileno(), their_lifeline),
                start_new_session=True,
                env=environment,
            )
        finally:
            theirs.close()
            os.close(their_output)
            os.close(their_lifeline)
        self._channel, self._output = ours, output
        self._output_open = True
        os.set_blocking(output, False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(ours, selectors.EVENT_READ)
        self._selector.register(output, selectors.EVENT_READ)

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, message: wire.Message) -> None:
        """Send a message. Raises ChildDied when the child is gone."""
        try:
            wire.send(self._channel, message)
        except OSError:
            raise ChildDied(self._how_it_ended()) from None

    def receive(self, timeout_s: float | None = None) -> wire.Message | None:
        """Wait for the next message, reading output meanwhile; None after `timeout_s` without one.

        Raises ChildDied when the child is gone.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            ready = [key.fileobj for key, _ in self._selector.select(left)]
            if self._output in ready:
                self._read_output()
            if self._channel in ready:
                message = wire.receive(self._channel)
                # All that the child printed before it sent the message is in the pipe by now.
                self._read_output()
                if message is None:
                    raise ChildDied(self._how_it_ended())
                return message
            if not ready:
                return None

    def _read_output(self) -> None:
        while self._output_open:
            try:
                data = os.read(self._output, READ_SIZE)
            except BlockingIOError:
                return
            if not data:
                self._output_open = False
                self._selector.unregister(self._output)
                return
            self.log.add(data)
            if len(data) < READ_SIZE:
                return

    def _how_it_ended(self) -> str:
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return "its process closed the connection"
        if code >= 0:
            return f"its process ended by itself with exit code {code}"
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return f"its process was killed by {name}"

    def tell_draining(self) -> None:
        """Let the objective know that its worker stops soon; any thread may call it."""
        with contextlib.suppress(
            OSError
        ):  # Without it, too, the trial goes on elsewhere from its last checkpoint.
            (self.scratch / DRAINING).touch()

    def processes(self) -> list[psutil.Process]:
        """The child, all that it started, and what else is in its process group."""
        found: dict[int, psutil.Process] = {}
        with contextlib.suppress(psutil.Error):
            child = psutil.Process(self.pid)
            below = child.children(recursive=True)
            found = {one.pid: one for one in [child, *below] if one.pid != self.guardian}
        for pid in psutil.pids():
            with contextlib.suppress(psutil.Error, OSError):
                if os.getpgid(pid) == self.pid and pid not in found:
                    found[pid] = psutil.Process(pid)
        return list(found.values())

    def resident_bytes(self, more_than: int) -> int:
        """How much memory is resident in all the child's processes, or 0 if it is at most `more_than`.

        Pages that processes share (after a fork, as data loaders do) count once, where the system tells.
        """
        processes = self.processes()
        if sum(_memory(one, "memory_info", "rss") for one in processes) <= more_than:
            return 0  # The quick look counts shared pages for each; already that is not too much.
        total = sum(_memory(one, "memory_full_info", "pss") for one in processes)
        return total if total > more_than else 0

    def kill(self) -> None:
        """Kill the child, everything in its process group and all that it started, now."""
        for _ in range(KILL_ROUNDS):  # What is started while we look is met by the next look.
            beyond = {one.pid: one for one in [*self.processes(), *self._marked()]}
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            for one in beyond.values():
                with contextlib.suppress(psutil.Error):
                    one.kill()
            if beyond.keys() <= {self.pid}:
                return

    def _marked(self) -> list[psutil.Process]:
        """Processes that bear our mark in their environment; where the system does not tell, none."""
        found = []
        for one in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if one.environ().get(MARK) == str(self.scratch) and one.pid != self.guardian:
                    found.append(one)
        return found

    def rest_of_output(self) -> None:
        """Take what the child printed before it was killed."""
        self._read_output()

    def close(self) -> None:
        """End the child and give back all that it held. Idempotent."""
        if self._lifeline < 0:
            return
        self.kill()
        self._process.wait()
        self._selector.close()
        self._channel.close()
        os.close(self._output)
        os.close(self._lifeline)
        self._lifeline = -1
        shutil.rmtree(self.scratch, ignore_errors=True)


def _memory(process: psutil.Process, method: str, field: str) -> int:
    """One number of a process in bytes; 0 when it is gone by now."""
    try:
        info = getattr(process, method)()
    except psutil.Error:
        return 0
    return int(getattr(info, field, 0) or info.rss)
