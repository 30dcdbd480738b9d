"""Measure hyperfarm, beside hyperopt's own MongoDB mode where it has the like: `python -m benchmarks`.

Everything runs on this machine: a throwaway mongod (a replica set of one), the controller and four slots. The
two sides take turns, run by run, so that a busy machine is busy for both. See drive.py and big.py for what is
inside each clock.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import big, peer, table
from benchmarks.table import Row
from hyperfarm import embedded
from hyperfarm.mongo import driver_version

ROOT = Path(__file__).parents[1]
SLOTS = 4
RUN_DEADLINE_S = 300
NOTES = """\
Cells: median [smallest to largest] n = number of runs. The sides take turns on the same mongod; the range in
brackets behind a ratio is over the pairs of runs.
Searches: the clock runs from the call of hyperopt.fmin to its return, on both sides; workers are warm before
(each slot has run a trial of the same experiment), imports, connecting and hyperopt's 1 s sleep on a fresh
database are outside. hyperopt runs at the best settings known: --no-subprocesses --poll-interval=0,
max_queue_len=100, its loop polling every 0.05 s.
Controller: CPU time of the whole controller process during that call, minus the CPU time inside the algorithm,
per trial; then wall time inside the steps of the search loop minus wall time inside the algorithm.
Share of slot time: 0.2 s * trials / (slots * wall time of that call)."""

QUICK_NOTE = "A quick run: too short to judge any target by."


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Where and how much is measured. `pythons` by side: ours alone, or hyperopt's too."""

    port: int
    pythons: dict[str, Path]
    environment: dict[str, str]
    quick: bool
    rounds: int
    log: Callable[[str], None] = field(default=lambda line: print(line, file=sys.stderr, flush=True))

    def new_url(self) -> str:
        """A database that nobody has used."""
        return f"mongodb://127.0.0.1:{self.port}/bench_{uuid.uuid4().hex[:12]}?replicaSet=hyperfarm"

    def run(self, side: str, module: str, *options: object, url: str | None = None) -> dict[str, Any]:
        """Run one module in the side's venv; return what it printed."""
        command = [
            str(self.pythons[side]),
            "-m",
            f"benchmarks.{module}",
            side,
            "--url",
            url or self.new_url(),
        ]
        started = time.monotonic()
        done = subprocess.run(
            [*command, *map(str, options)],
            cwd=ROOT,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=RUN_DEADLINE_S,
        )
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")
        result: dict[str, Any] = json.loads(done.stdout)
        brief = {key: round(value, 2) for key, value in result.items() if isinstance(value, (int, float))}
        took, load = time.monotonic() - started, os.getloadavg()[0]
        self.log(f"  {module} {side} ({took:.0f} s, load {load:.1f}): {brief}")
        return result

    def take_turns(self, module: str, *options: object) -> dict[str, list[dict[str, Any]]]:
        """Run the module for each side in turn, `rounds` times."""
        results: dict[str, list[dict[str, Any]]] = {side: [] for side in ("ours", "hyperopt")}
        for _ in range(self.rounds):
            for side in self.pythons:
                results[side].append(self.run(side, module, *options))
        return results


def throughput(bench: Bench) -> list[Row]:
    """No-op trials, random search: what a farm costs per trial."""
    runs = bench.take_turns("drive", "--slots", SLOTS, "--trials", 40 if bench.quick else 400)
    per_s = {side: [run["trials_per_s"] for run in found] for side, found in runs.items()}
    return [
        Row(
            name=f"no-op trials, random search, {SLOTS} slots",
            unit="trials/s",
            ours=per_s["ours"],
            theirs=per_s["hyperopt"],
            more_is_better=True,
            least_ratio=4,
        )
    ]


def controller(bench: Bench) -> list[Row]:
    """No-op trials with TPE: what the controller costs per trial beside the suggestion itself."""
    runs = bench.take_turns(
        "drive", "--algo", "tpe", "--slots", SLOTS, "--trials", 40 if bench.quick else 400
    )

    def of(side: str, key: str) -> list[float]:
        return [run[key] for run in runs[side]]

    return [
        Row(
            name="controller per TPE trial without the suggestion, CPU of its process",
            unit="ms",
            ours=of("ours", "controller_cpu_ms"),
            theirs=of("hyperopt", "controller_cpu_ms"),
            most=4,
        ),
        Row(
            name="the same, wall time of its loop's steps (with the waiting for MongoDB)",
            unit="ms",
            ours=of("ours", "controller_wall_ms"),
            most=4,
        ),
        Row(
            name="no-op trials, TPE, the same runs",
            unit="trials/s",
            ours=of("ours", "trials_per_s"),
            theirs=of("hyperopt", "trials_per_s"),
            more_is_better=True,
        ),
    ]


def utilisation(bench: Bench) -> list[Row]:
    """Trials of 0.2 s: the share of the slots' time that objectives got, from fmin's call to its return."""
    options = ("--objective", "sleep02", "--slots", SLOTS, "--trials", 20 if bench.quick else 200)
    runs = bench.take_turns("drive", *options)
    share = {
        side: [100 * 0.2 * run["trials"] / (SLOTS * run["wall_s"]) for run in found]
        for side, found in runs.items()
    }
    return [
        Row(
            name=f"share of the slots' time inside trials of 0.2 s, {SLOTS} slots",
            unit="%",
            ours=share["ours"],
            theirs=share["hyperopt"],
            more_is_better=True,
            least=90,
        )
    ]


def many_trials(bench: Bench) -> list[Row]:
    """A controller's process on an experiment with 10,000 finished trials of ten parameters."""
    jobs, repeats = (500, 3) if bench.quick else (10_000, 20)
    found: dict[str, dict[str, Any]] = {}
    for side in bench.pythons:
        url = bench.new_url()
        big.fill(url, jobs)
        found[side] = bench.run(side, "big", "--jobs", jobs, "--repeats", repeats, url=url)

    def row(name: str, unit: str, key: str, most: float | None) -> Row:
        ours, theirs = (_listed(found.get(side, {}).get(key)) for side in ("ours", "hyperopt"))
        return Row(name=name, unit=unit, ours=ours, theirs=theirs, most=most)

    refresh = f"refresh at {jobs:,} trials"
    return [
        row(f"memory of a controller with {jobs:,} trials, RSS", "MB", "rss_mb", 300),
        row("the same, its peak in a TPE suggestion", "MB", "peak_rss_mb", 300),
        row(f"{refresh}, {big.CHANGED} changed", "ms", "changed_ms", 50),
        row(f"{refresh}, none changed", "ms", "unchanged_ms", 50),
        row(f"{refresh}, full comparison (every 10 s at most)", "ms", "compare_ms", None),
    ]


def _listed(value: Any) -> list[float]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def start_up(bench: Bench) -> list[Row]:
    """`hyperfarm --help`, from start to exit."""
    program = str(Path(sys.executable).with_name("hyperfarm"))
    times = []
    for _ in range(3 if bench.quick else 10):
        started = time.perf_counter()
        subprocess.run([program, "--help"], env=bench.environment, check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - started)
    return [Row(name="hyperfarm --help", unit="s", ours=times, most=0.3)]


PARTS: dict[str, Callable[[Bench], list[Row]]] = {
    "throughput": throughput,
    "controller": controller,
    "utilisation": utilisation,
    "many-trials": many_trials,
    "start-up": start_up,
}


@contextmanager
def prepared(options: argparse.Namespace) -> Iterator[Bench]:
    """Start the throwaway mongod, and make hyperopt's venv where it is wanted."""
    pythons = {"ours": Path(sys.executable)}
    if options.peer:
        pythons["hyperopt"] = peer.python()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HYPERFARM_")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    environment |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    environment["PYTHONPATH"] = str(ROOT)
    with tempfile.TemporaryDirectory(prefix="hyperfarm-bench-") as folder:
        environment["HYPERFARM_CONFIG"] = f"{folder}/config"
        environment["HYPERFARM_CACHE"] = f"{folder}/cache"
        with embedded.throwaway(f"{folder}/db") as server:
            yield Bench(
                port=server.port,
                pythons=pythons,
                environment=environment,
                quick=options.quick,
                rounds=1 if options.quick else options.rounds,
            )


def write(out: Path, rows: list[Row], took_s: float) -> None:
    """Write OUT.json and OUT.md."""
    about = {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "machine": f"{os.cpu_count()} cores, {platform.platform()}",
        "python": platform.python_version(),
        "pymongo": driver_version(),
        "took_s": round(took_s),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(
        json.dumps({**about, "rows": [row.as_json() for row in rows]}, indent=1) + "\n"
    )
    lines = [", ".join(f"{key} {value}" for key, value in about.items()), "", table.as_markdown(rows)]
    lines += ["", NOTES]
    out.with_suffix(".md").write_text("\n".join(lines) + "\n")


def main() -> int:
    """Measure, print the table; return 1 when a target was missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="One small round: does it run at all?")
    parser.add_argument("--no-peer", dest="peer", action="store_false", help="Leave hyperopt 0.2.7 out.")
    parser.add_argument("--only", action="append", choices=PARTS, help="This part only (may be repeated).")
    parser.add_argument("--rounds", type=int, default=5, help="Runs of each side in each part (5).")
    parser.add_argument("--out", type=Path, help="Write PATH.json and PATH.md.", metavar="PATH")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds must be 1 or more")
    started = time.monotonic()
    rows: list[Row] = []
    with prepared(options) as bench:
        for name in options.only or PARTS:
            bench.log(name)
            rows += PARTS[name](bench)
    print(table.as_text(rows))
    print(f"\n{QUICK_NOTE if options.quick else NOTES}")
    if options.out is not None:
        write(options.out, rows, time.monotonic() - started)
    missed = any(row.verdict == "MISSED" for row in rows)
    return 1 if missed and not options.quick else 0


if __name__ == "__main__":
    sys.exit(main())
