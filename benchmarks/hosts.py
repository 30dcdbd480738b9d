"""Many worker hosts in one process: real supervisors, each with its own connections, one idle slot each.

    python -m benchmarks.hosts --url URL --count 25 --exp-key KEY

Their trials, if there are any of this experiment, take no time and no child process. Prints `ready` when all
hosts are registered, and leaves when standard input ends.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from hyperfarm.jobs import Claim, JobState
from hyperfarm.store import Store
from hyperfarm.worker.slot import Slot
from hyperfarm.worker.supervisor import Supervisor, WorkerOptions

ROOT = Path(__file__).parents[1]
READY_DEADLINE_S, END_DEADLINE_S = 60.0, 15.0
OUTCOME = {"result": {"status": "ok", "loss": 0.0}}


class InstantSlot(Slot):
    """A slot whose trials are over at once: claims and outcomes are real, objectives are not."""

    def _serve(self, claim: Claim) -> None:
        self.loaded = (claim.exp_key, "")
        self.farm.store.finish(claim, JobState.DONE, OUTCOME)
        self.farm.let_go(claim, 0.0)


class Host:
    """One supervisor, running in a thread."""

    def __init__(self, url: str, exp_key: str, slots: int = 1) -> None:
        self.store = Store.open(url)
        self.supervisor = Supervisor(self.store, WorkerOptions(slots=slots, exp_keys=(exp_key,)))
        self.supervisor.slots = [InstantSlot(self.supervisor, number) for number in range(slots)]
        # There is no code to fetch, so there is none to refuse.
        self.supervisor.codes.may_serve = lambda key: True  # type: ignore[method-assign]
        self._thread = threading.Thread(target=self.supervisor.run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self.supervisor.ask_to_stop(0.0)
        self.supervisor.ask_to_stop(0.0)

    def join(self) -> None:
        self._thread.join(10)
        self.store.close()


@contextlib.contextmanager
def running(url: str, count: int, exp_key: str, processes: int) -> Iterator[None]:
    """Have `count` hosts, spread over processes, up and registered inside the block."""
    shares = [count // processes + (number < count % processes) for number in range(processes)]
    command = [sys.executable, "-m", "benchmarks.hosts", "--url", url, "--exp-key", exp_key]
    with contextlib.ExitStack() as stack:
        started = []
        for share in filter(None, shares):
            process = subprocess.Popen(
                [*command, "--count", str(share)],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            stack.callback(_end, process)
            started.append(process)
        for process in started:
            assert process.stdout is not None
            if process.stdout.readline().strip() != "ready":
                raise SystemExit("a process of hosts did not come up")
        yield
        for process in started:
            assert process.stdin is not None
            process.stdin.close()


def _end(process: subprocess.Popen[str]) -> None:
    with process:  # closes its pipes
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(END_DEADLINE_S)
        except subprocess.TimeoutExpired:
            process.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--count", type=int, default=25)
    parser.add_argument("--exp-key", required=True)
    options = parser.parse_args()
    hosts = [Host(options.url, options.exp_key) for _ in range(options.count)]
    wanted = {host.supervisor.id for host in hosts}
    deadline = time.monotonic() + READY_DEADLINE_S
    while not wanted <= {worker["_id"] for worker in hosts[0].store.live_workers()}:
        if time.monotonic() > deadline:
            raise SystemExit("the hosts did not register")
        time.sleep(0.2)
    print("ready", flush=True)
    sys.stdin.read()
    for host in hosts:
        host.stop()
    for host in hosts:
        host.join()


if __name__ == "__main__":
    main()
