"""The worker that a controller starts beside itself, for a search on one machine."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

from hyperfarm.errors import HyperfarmError

STOP_S = 2.5, 1.0
"""How long the worker gets after the first and after the second signal."""
HURRIED_STOP_S = 0.3, 1.0
"""The same when the database is away, so that nothing can be given back to it anyway."""


class LocalWorker:
    """One `hyperfarm worker` process with `slots` slots, serving one experiment.

    It is in a session of its own, so that Ctrl-C reaches it only through us, and it drains by itself when
    this process is gone.
    """

    def __init__(
        self, url: str, exp_key: str, slots: int, say: Callable[[str], None], patience_s: float
    ) -> None:
        options = ["--exp-key", exp_key, "--slots", str(slots), "--quiet", "--lifeline"]
        options += ["--patience", str(patience_s)]
        safe_path = ["-P"] if sys.version_info >= (3, 11) else []
        self.process = subprocess.Popen(
            [sys.executable, *safe_path, "-m", "hyperfarm.cli", "worker", *options],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "HYPERFARM_MONGO": url},
            start_new_session=True,
            text=True,
            errors="replace",
        )
        self._say = say
        self.stop_s = STOP_S
        self._last_lines: list[str] = []
        self._reader = threading.Thread(target=self._relay, daemon=True)
        self._reader.start()

    def _relay(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            text = line.rstrip()
            self._last_lines = [*self._last_lines[-4:], text]
            self._say(f"worker: {text}")

    def check(self) -> None:
        """Raise HyperfarmError when the worker has ended though nobody stopped it."""
        if self.process.poll() is not None:
            self._reader.join(1.0)
            said = self._last_lines[-1] if self._last_lines else "it said nothing"
            raise HyperfarmError(f"the local worker ended with exit code {self.process.returncode}: {said}")

    def stop(self) -> None:
        """End the worker within some seconds: what it runs goes back to the queue."""
        assert self.process.stdin is not None
        self._say = lambda _: None
        for patience_s in self.stop_s:
            if self.process.poll() is not None:
                break
            self.process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(patience_s)
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self._reader.join(1.0)
        assert self.process.stderr is not None
        self.process.stderr.close()


@contextlib.contextmanager
def local_worker(
    url: str, exp_key: str, slots: int, say: Callable[[str], None], patience_s: float
) -> Iterator[LocalWorker | None]:
    """Run a local worker during the block; none when `slots` is 0."""
    if slots == 0:
        yield None
        return
    worker = LocalWorker(url, exp_key, slots, say, patience_s)
    try:
        yield worker
    finally:
        worker.stop()
