"""Search algorithms side by side: `python -m benchmarks.search run | report | cost` (`make bench-search`)."""

from __future__ import annotations

import os

# Before NumPy is imported: one thread per process, in the processes of the pool too.
os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

import argparse
import sys
from pathlib import Path

from benchmarks.search import cost, problems, report, runs, simulate


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
    run.add_argument("--again", action="store_true", help="Throw the results of these runs away first.")
    report_command = commands.add_parser(
        "report", help="Write the tables of docs/search.md from finished runs."
    )
    report_command.add_argument(
        "--algo", nargs="+", metavar="ALGORITHM", help="These, in this order (all found)."
    )
    report_command.add_argument("--out", type=Path, nargs="+", default=[runs.RESULTS], metavar="FOLDER")
    cost_command = commands.add_parser("cost", help="Time single suggestions; write docs/search.md's table.")
    cost_command.add_argument("--largest", type=int, default=cost.SIZES[-1], choices=cost.SIZES)
    for command in (report_command, cost_command):
        command.add_argument("--show", action="store_true", help="Print only; leave docs/search.md alone.")
    return parser


def _run(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    try:
        names = [problem.name for problem in problems.selected(options.half, options.problems)]
    except KeyError as unknown:
        parser.error(f"no problem is called {unknown}; there are {', '.join(problems.all_problems())}")
    for algorithm in options.algo:
        if ":" not in algorithm and algorithm not in simulate.ALGORITHMS:
            parser.error(f"no algorithm is called {algorithm}; there are {', '.join(simulate.ALGORITHMS)}")
    keys = list(runs.wanted(options.algo, names, options.running, range(options.seeds)))
    if options.again:
        runs.forget(keys, options.out)
    runs.do(keys, evals=options.evals, processes=options.processes, folder=options.out)


def _report(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    done = {key: run for folder in options.out for key, run in runs.read(folder).items()}
    known = {key.algorithm for key in done}
    algorithms = options.algo or [name for name in simulate.ALGORITHMS if name in known]
    if not known.issuperset(algorithms) or not algorithms:
        parser.error(f"there are only runs of {', '.join(sorted(known)) or 'nobody'}")
    finished = report.Finished(done, algorithms)
    print(report.document(finished, "text"))
    if not options.show:
        report.write_between(report.DOCUMENT, "quality", report.document(finished))


def _cost(_: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    rows = cost.measure(options.largest, lambda line: print(line, file=sys.stderr, flush=True))
    print(cost.document(rows, "text"))
    if not options.show:
        report.write_between(report.DOCUMENT, "cost", cost.document(rows))


COMMANDS = {"run": _run, "report": _report, "cost": _cost}


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    COMMANDS[options.command](parser, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
