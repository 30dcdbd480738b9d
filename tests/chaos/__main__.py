"""`python -m tests.chaos --seed N --minutes M`: run a campaign; `--table DIR`: tables of those that ran."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from types import FrameType

from tests.chaos import campaign, outcome


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="decides about topology, faults and search")
    parser.add_argument("--minutes", type=float, default=2.0, help="how long the faults go on")
    parser.add_argument("--out", type=Path, default=Path("chaos-out"), help="where JSON and logs go")
    parser.add_argument("--topology", choices=("three", "one", "standalone"), help="default: by the seed")
    parser.add_argument("--keep", action="store_true", help="keep all files, also without findings")
    parser.add_argument("--table", type=Path, metavar="DIR", help="print the Markdown tables of DIR and end")
    options = parser.parse_args()
    if options.table is not None:
        print(outcome.table(options.table.glob("*.json")))
        print()
        print(outcome.totals(options.table.glob("*.json")))
        return 0
    signal.signal(signal.SIGTERM, _interrupt)
    planned = campaign.make(options.seed, options.minutes, options.out, options.topology, options.keep)
    print(f"{planned.name}: {planned.minutes:g} minutes of faults, {planned.max_evals} trials", flush=True)
    done = campaign.carry_out(planned)
    file = options.out / f"{planned.name}.json"
    for finding in done.findings:
        print(f"FOUND {finding.kind}: {finding.text}")
    print(outcome.table([file]))
    print(f"details: {file}" + (f", logs: {options.out / planned.name}" if done.findings else ""))
    return 1 if done.findings else 0


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    """A kill by SIGTERM cleans up as Ctrl-C does."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
