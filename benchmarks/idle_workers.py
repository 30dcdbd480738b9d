"""What many waiting workers cost MongoDB: `python -m benchmarks.idle_workers`.

Real supervisors (see hosts.py), each with connections of its own as on a host of its own, wait on a throwaway
mongod: for nothing (idle), beside trials of an experiment that they do not serve (watching), and for trials
that they do serve but that take no time (serving, so that everybody is idle most of the time and everybody
runs for each new job). Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from statistics import median, quantiles
from typing import Any

import psutil

from benchmarks import hosts
from hyperfarm import embedded
from hyperfarm.jobs import JobState
from hyperfarm.store import Store, new_token

ELSEWHERE, SERVED = "elsewhere", "served"
MOST_CPU, MOST_COMMANDS = 5.0, 200.0
"""What idle workers may cost: percent of one core, commands a second."""
IN_ADVANCE = 100
"""Trial ids are reserved so many at a time."""
ALONE, ALONE_PAUSE_S = 8, 3.0
HEADS = (
    "case",
    "mongod's CPU, % of a core",
    "commands/s",
    "most of them",
    "trials/s",
    "delay of a claim, ms",
)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a span of time cost a mongod."""

    seconds: float
    cpu_s: float
    commands: Counter[str]

    @property
    def cpu_percent(self) -> float:
        return 100 * self.cpu_s / self.seconds

    @property
    def per_s(self) -> float:
        return sum(self.commands.values()) / self.seconds

    def most(self, count: int = 5) -> str:
        """The commonest commands with their rates."""
        found = ((name, total / self.seconds) for name, total in self.commands.most_common(count))
        return ", ".join(f"{name} {rate:.1f}" for name, rate in found if rate >= 0.05)


class Meter:
    """Reads CPU time and counters of one mongod."""

    def __init__(self, server: embedded.Server) -> None:
        self._store = Store.open(server.url)
        self._process = psutil.Process(server.pid)

    def measure(self, seconds: float) -> Cost:
        """Wait, and return what the wait cost (with two commands of the meter itself)."""
        began, cpu, before = time.monotonic(), self._cpu_s(), self.commands()
        time.sleep(seconds)
        took, used = time.monotonic() - began, self._cpu_s() - cpu
        return Cost(seconds=took, cpu_s=used, commands=self.commands() - before)

    def _cpu_s(self) -> float:
        times = self._process.cpu_times()
        return float(times.user + times.system)

    def commands(self) -> Counter[str]:
        """How often each command was run since the server started."""
        told = self._store.database.client.admin.command("serverStatus", metrics=1)["metrics"]["commands"]
        return Counter({name: entry["total"] for name, entry in told.items() if isinstance(entry, dict)})

    def close(self) -> None:
        self._store.close()


class Load:
    """Queues jobs at a steady rate; with `finish` it also claims and finishes each at once."""

    def __init__(self, url: str, exp_key: str, rate: float, *, finish: bool) -> None:
        self.store, self._key, self._rate, self._finish = Store.open(url), exp_key, rate, finish
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        due = time.monotonic()
        tids: list[int] = []
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            due += 1 / self._rate
            tids = tids or self.store.new_tids(IN_ADVANCE)
            self.store.insert_jobs([job(tids.pop(0), self._key)])
            if self._finish:
                held = self.store.claim(self._key, worker="load", owner="load", token=new_token(), lease_s=90)
                if held is not None:
                    self.store.finish(held, JobState.DONE, hosts.OUTCOME)


def job(tid: int, exp_key: str) -> dict[str, Any]:
    """A job as the controller queues it, with the time at which it did."""
    misc = {"tid": tid, "cmd": ["domain_attachment", "FMinIter_Domain"], "workdir": None}
    return {
        "state": int(JobState.NEW),
        "tid": tid,
        "spec": None,
        "result": {"status": "new"},
        "misc": {**misc, "idxs": {"x": [tid]}, "vals": {"x": [0.5]}},
        "exp_key": exp_key,
        "owner": None,
        "version": 0,
        "book_time": None,
        "refresh_time": None,
        "attempt": 0,
        "max_attempts": 3,
        "queued_at": datetime.now(timezone.utc),
    }


def delays_ms(store: Store, since: datetime) -> list[float]:
    """From queueing to claim, of the jobs that were queued since then; both clocks are this machine's."""
    found = store.jobs.find({"queued_at": {"$gte": since}, "book_time": {"$ne": None}})
    return [(doc["book_time"] - doc["queued_at"]).total_seconds() * 1000 for doc in found]


@dataclass(kw_only=True)
class Bench:
    """One mongod and how long to look at it."""

    server: embedded.Server
    name: str
    workers: int
    processes: int
    warm_s: float
    idle_s: float
    busy_s: float
    rate: float

    def database(self) -> str:
        """The URL of a database that nobody has used."""
        address, _, options = self.server.url.partition("?")
        return f"{address.rpartition('/')[0]}/idle_{uuid.uuid4().hex[:8]}" + (options and f"?{options}")

    @contextlib.contextmanager
    def waiting(self, url: str, count: int, exp_key: str) -> Iterator[None]:
        with hosts.running(url, count, exp_key, self.processes):
            yield

    def idle(self) -> Iterator[tuple[str, ...]]:
        """Nothing happens; then, once in a while, one job."""
        meter, url = Meter(self.server), self.database()
        with self.waiting(url, self.workers, SERVED):
            time.sleep(self.warm_s)
            cost = meter.measure(self.idle_s)
            verdict = "ok" if cost.cpu_percent < MOST_CPU and cost.per_s < MOST_COMMANDS else "MISSED"
            yield self.row(f"{self.workers} idle ({verdict})", cost)
            yield self.row(f"{self.workers} idle, one job every {ALONE_PAUSE_S:g} s", *self.alone(meter, url))
        url = self.database()
        with self.waiting(url, 1, SERVED):
            yield self.row(f"1 idle, one job every {ALONE_PAUSE_S:g} s", *self.alone(meter, url))
        meter.close()

    def alone(self, meter: Meter, url: str) -> tuple[Cost, float, list[float]]:
        """Jobs that come one by one, long after each other."""
        began, rate = datetime.now(timezone.utc), 1 / ALONE_PAUSE_S
        time.sleep(ALONE_PAUSE_S)
        with Load(url, SERVED, rate, finish=False) as load:
            cost = meter.measure(ALONE * ALONE_PAUSE_S)
        delays = delays_ms(load.store, began)
        load.store.close()
        return cost, len(delays) / cost.seconds, delays

    def busy(self, count: int, *, serve: bool) -> tuple[str, ...]:
        """Trials are queued and finished at a steady rate, by the waiting hosts or beside them."""
        meter, url = Meter(self.server), self.database()
        with self.waiting(url, count, SERVED if serve else ELSEWHERE):
            with Load(url, SERVED, self.rate, finish=not serve) as load:
                time.sleep(self.warm_s / 4)
                began = datetime.now(timezone.utc)
                cost = meter.measure(self.busy_s)
            delays = delays_ms(load.store, began) if serve else []
            done = load.store.jobs.count_documents({"state": 2, "queued_at": {"$gte": began}})
        load.store.close()
        meter.close()
        doing = "serving" if serve else "watching"
        return self.row(f"{count} {doing}, {self.rate:g} trials/s", cost, done / cost.seconds, delays)

    def row(
        self, case: str, cost: Cost, trials_per_s: float = 0.0, delays: list[float] | None = None
    ) -> tuple[str, ...]:
        """The texts of one line of the table; also told on standard error."""
        told = "-"
        if delays and len(delays) > 1:
            cut = quantiles(delays, n=20)[-1]
            told = f"{median(delays):.0f} (95 %: {cut:.0f}, most: {max(delays):.0f}, n={len(delays)})"
        rate = f"{trials_per_s:.1f}" if trials_per_s else "-"
        texts = (
            f"{self.name}: {case}",
            f"{cost.cpu_percent:.1f}",
            f"{cost.per_s:.0f}",
            cost.most(),
            rate,
            told,
        )
        print(" | ".join(texts), f"(load {os.getloadavg()[0]:.1f})", file=sys.stderr, flush=True)
        return texts


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.idle_workers", description=__doc__)
    parser.add_argument("--workers", type=int, default=200, help="How many hosts (200).")
    parser.add_argument("--processes", type=int, default=8, help="Into how many processes they go (8).")
    parser.add_argument("--rate", type=float, default=100.0, help="Trials a second in the busy cases (100).")
    parser.add_argument("--warm", type=float, default=30.0, help="Seconds before a look (30).")
    parser.add_argument("--seconds", type=float, default=60.0, help="Seconds of a look at idle workers (60).")
    parser.add_argument("--busy-seconds", type=float, default=20.0, help="The same in the busy cases (20).")
    parser.add_argument("--only", choices=["idle", "watching", "serving"], action="append")
    parser.add_argument("--topology", choices=["replica-set", "standalone"], action="append")
    options = parser.parse_args()
    rows: list[tuple[str, ...]] = []
    only = options.only or ["idle", "watching", "serving"]
    few = max(1, options.workers // 4)
    for name in options.topology or ["replica-set", "standalone"]:
        with (
            tempfile.TemporaryDirectory(prefix="hyperfarm-idle-") as folder,
            embedded.throwaway(folder, replica_set=name == "replica-set") as server,
        ):
            bench = Bench(
                server=server,
                name=name.replace("-", " "),
                workers=options.workers,
                processes=options.processes,
                warm_s=options.warm,
                idle_s=options.seconds,
                busy_s=options.busy_seconds,
                rate=options.rate,
            )
            if "idle" in only:
                rows += bench.idle()
            if "watching" in only:
                rows += [bench.busy(count, serve=False) for count in (0, few, options.workers)]
            if "serving" in only:
                rows += [bench.busy(count, serve=True) for count in (1, few, options.workers)]
    for line in (HEADS, ("---",) * len(HEADS), *rows):
        print(f"| {' | '.join(line)} |")
    return 1 if any("MISSED" in row[0] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
