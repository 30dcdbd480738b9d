"""Search algorithms side by side: `python -m benchmarks.search run | report | cost` (`make bench-search`)."""

from __future__ import annotations

import os

# Before NumPy is imported: one thread per process, in the processes of the pool too.
os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

import argparse
import sys
from pathlib import Path

from benchmarks.search import problems, runs, simulate


def numbers(text: str) -> list[int]:
    """`1,8,32`, or a range `0-9` (both ends)."""
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="Do the runs that are not there yet.")
    run.add_argument("--algo", nargs="+", default=list(simulate.ALGORITHMS), metavar="ALGORITHM")
    run.add_argument("--half", choices=[*problems.HALVES, "all"], default="all")
    run.add_argument("--problems", nargs="+", metavar="NAME", help="These only, whatever the half.")
    run.add_argument("--running", type=numbers, default=[1, 8, 32], metavar="1,8,32")
    run.add_argument("--seeds", type=int, default=30, help="Seeds 0 to N - 1.")
    run.add_argument("--evals", type=int, default=200)
    run.add_argument("--processes", type=int, default=2)
    run.add_argument("--out", type=Path, default=runs.RESULTS, metavar="FOLDER")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        names = [problem.name for problem in problems.selected(options.half, options.problems)]
    except KeyError as unknown:
        parser.error(f"no problem is called {unknown}; there are {', '.join(problems.all_problems())}")
    keys = list(runs.wanted(options.algo, names, options.running, range(options.seeds)))
    runs.do(keys, evals=options.evals, processes=options.processes, folder=options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
