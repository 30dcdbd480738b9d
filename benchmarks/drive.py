"""One search with workers of its own, timed; the same program drives both sides, each in its own venv.

    python -m benchmarks.drive ours|hyperopt --url URL --objective noop --algo rand --slots 4 --trials 400

It starts the workers, runs a warm-up search until every slot has run a trial, and then times ONE call of
`hyperopt.fmin` that brings the same experiment from its warm-up trials to `--trials` more. Inside the clock is
thus all that fmin does from call to return, on both sides; outside are imports, connecting, the start of the
workers and of our slots' child processes, and hyperopt's sleep of 1 s on a fresh database. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hyperopt
import numpy as np
from hyperopt import hp, rand, tpe

from benchmarks import objectives

WARM_UP = 40
WARM_DEADLINE_S = 90.0
EXP_KEY = "bench"
QUEUE, POLL_S = 100, 0.05
"""hyperopt's best settings, found by trying (max_queue_len, and its loop's sleep, patched from 1 s)."""


class Clocked:
    """An algorithm that counts the time spent in it: the suggestion itself."""

    def __init__(self, algo: Callable[..., Any]) -> None:
        self._algo = algo
        self.wall_s = self.cpu_s = 0.0

    def __call__(self, *args: Any) -> Any:
        wall, cpu = time.perf_counter(), time.thread_time()
        try:
            return self._algo(*args)
        finally:
            self.wall_s += time.perf_counter() - wall
            self.cpu_s += time.thread_time() - cpu


class Ours:
    """hyperfarm: one supervisor with all slots, `hyperopt.fmin` on hyperfarm's MongoTrials."""

    def __init__(self, url: str, slots: int) -> None:
        from hyperfarm import MongoTrials
        from hyperfarm.controller.algorithms import resolve

        self.trials = MongoTrials(url, exp_key=EXP_KEY)
        self.algos = {"rand": rand.suggest, "tpe": resolve("tpe")[1]}
        self.slots = slots
        command = [sys.executable, "-m", "hyperfarm.cli", "worker", "--slots", str(slots), "--quiet"]
        self.commands = [command]
        self.environment = {"HYPERFARM_MONGO": url}
        self.processes: list[subprocess.Popen[bytes]] = []

    def is_ready(self) -> bool:
        return bool(self.trials.store.live_workers())

    def is_warm(self) -> bool:
        import psutil

        return len(psutil.Process(self.processes[0].pid).children()) == self.slots


class Hyperopt:
    """hyperopt's own MongoDB mode at its best: warm workers without sub-processes, a long queue, a quick loop."""

    def __init__(self, url: str, slots: int) -> None:
        from hyperopt.mongoexp import MongoTrials

        address = url.removeprefix("mongodb://").partition("?")[0]
        self.trials = MongoTrials(f"mongo://{address}/jobs", exp_key=EXP_KEY)
        self.algos = {"rand": rand.suggest, "tpe": tpe.suggest}
        self.slots = slots
        program = str(Path(sys.executable).with_name("hyperopt-mongo-worker"))
        options = [f"--mongo={address}", "--no-subprocesses", "--poll-interval=0"]
        self.commands = [[program, *options]] * slots
        self.environment: dict[str, str] = {}
        self.processes: list[subprocess.Popen[bytes]] = []
        self._ready_at = time.monotonic() + 5.0
        _patch_poll(POLL_S)

    def is_ready(self) -> bool:
        return time.monotonic() >= self._ready_at  # They tell nobody when they are there.

    def is_warm(self) -> bool:
        self.trials.refresh()
        return len({str(doc["owner"]) for doc in self.trials.trials}) == self.slots


def _patch_poll(seconds: float) -> None:
    fmin_module = sys.modules["hyperopt.fmin"]
    original = fmin_module.FMinIter.__init__

    def init(self: Any, *args: Any, **keywords: Any) -> None:
        keywords["poll_interval_secs"] = seconds
        original(self, *args, **keywords)

    fmin_module.FMinIter.__init__ = init


@contextlib.contextmanager
def workers_of(side: Ours | Hyperopt) -> Iterator[None]:
    """Start the side's workers; kill their process groups in the end."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, open(f"{folder}/log", "wb") as log:
        for command in side.commands:
            side.processes.append(
                subprocess.Popen(
                    command,
                    cwd=folder,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env={**os.environ, **side.environment},
                    start_new_session=True,
                )
            )
        try:
            yield
        except BaseException:
            sys.stderr.write(Path(log.name).read_text(errors="replace")[-3000:])
            raise
        finally:
            for process in side.processes:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def search(
    side: Ours | Hyperopt, objective: Callable[..., Any], algo: Callable[..., Any], total: int
) -> None:
    """Bring the experiment to `total` trials: the very same call on both sides."""
    hyperopt.fmin(
        objective,
        hp.uniform("x", -1, 1),
        algo=algo,
        max_evals=total,
        trials=side.trials,
        max_queue_len=QUEUE,
        rstate=np.random.default_rng(0),
        show_progressbar=False,
        verbose=False,
    )


def measure(side: Ours | Hyperopt, options: argparse.Namespace) -> dict[str, Any]:
    """Warm up, then time one search; return what was measured."""
    objective = getattr(objectives, options.objective)
    deadline = time.monotonic() + WARM_DEADLINE_S
    while not side.is_ready():
        _pause(deadline)
    total = 0
    while not side.is_warm():
        total += WARM_UP
        search(side, objective, rand.suggest, total)
        _pause(deadline)
    algo = Clocked(side.algos[options.algo])
    loop = _clock_the_loop() if isinstance(side, Ours) else None
    cpu, wall = time.process_time(), time.perf_counter()
    search(side, objective, algo, total + options.trials)
    wall_s, cpu_s = time.perf_counter() - wall, time.process_time() - cpu
    done = len(side.trials.trials) - total
    if done != options.trials:
        raise SystemExit(f"{done} trials were done, not {options.trials}")
    return {
        "trials": done,
        "wall_s": wall_s,
        "trials_per_s": done / wall_s,
        "controller_cpu_ms": (cpu_s - algo.cpu_s) / done * 1000,
        "controller_wall_ms": (loop["wall_s"] - algo.wall_s) / done * 1000 if loop else None,
        "suggest_ms": algo.wall_s / done * 1000,
    }


def _clock_the_loop() -> dict[str, float]:
    """Count the wall time inside our search loop's steps, without the waiting between them."""
    from hyperfarm.controller.search import Search

    clock, original = {"wall_s": 0.0}, Search._step

    def step(self: Search) -> Any:
        started = time.perf_counter()
        try:
            return original(self)
        finally:
            clock["wall_s"] += time.perf_counter() - started

    Search._step = step  # type: ignore[method-assign]
    return clock


def _pause(deadline: float) -> None:
    if time.monotonic() > deadline:
        raise SystemExit("the workers did not come up")
    time.sleep(0.2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("side", choices=["ours", "hyperopt"])
    parser.add_argument("--url", required=True)
    parser.add_argument("--objective", default="noop")
    parser.add_argument("--algo", choices=["rand", "tpe"], default="rand")
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--trials", type=int, default=400)
    options = parser.parse_args()
    side = (
        Ours(options.url, options.slots) if options.side == "ours" else Hyperopt(options.url, options.slots)
    )
    with workers_of(side):
        print(json.dumps(measure(side, options)))


if __name__ == "__main__":
    main()
