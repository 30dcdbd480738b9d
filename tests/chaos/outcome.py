"""What came of a campaign: a JSON document, and one line of a Markdown table."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hyperfarm.jobs import JobDoc
from tests.chaos.books import Finding
from tests.chaos.farm import Program
from tests.chaos.journal import Journal

HEADER = (
    "| seed | topology | minutes | faults | trials | executions | leases lost | reaped | retried | settled |"
    " findings |\n|---|---|---|---|---|---|---|---|---|---|---|"
)


@dataclass(kw_only=True)
class Outcome:
    """The figures of a campaign. `settled_s`: from the last fault to the end of the search."""

    seed: int
    topology: str
    minutes: float
    max_evals: int
    settled_s: float
    trials: int
    executions: int
    faults: dict[str, int]
    observed: dict[str, int]
    self_exits: list[dict[str, Any]]
    disks: str
    findings: list[Finding]
    seconds: float = field(default=0.0)

    def write(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(asdict(self), indent=1, default=str) + "\n")


def observe(jobs: Sequence[JobDoc], programs: Iterable[Program], journal: Journal) -> dict[str, int]:
    """What the farm went through, counted from histories and logs."""
    reasons: Counter[str] = Counter()
    for job in jobs:
        for entry in job.get("history", ()):
            silent = entry["reason"].startswith("no sign of life")
            reasons["released" if entry["event"] == "release" else "reaped" if silent else "cut off"] += 1
    lost = sum(
        program.log.read_text(errors="replace").count("is no longer this worker's")
        for program in programs
        if program.log.exists()
    )
    return {
        "lease lost": lost,
        **{name: reasons[name] for name in ("reaped", "cut off", "released")},
        "retried": sum(job["attempt"] > 1 for job in jobs),
        "resumed": sum(one.begin["resumed"] is not None for one in journal.executions.values()),
        "errors": sum(job["state"] == 3 for job in jobs),
    }


def died(programs: Iterable[Program]) -> list[Finding]:
    """Nobody who had reached the database ends by himself while it is away (rule 9)."""
    return [
        Finding(kind="died", text=f"{one.name} ended by itself with code {one.code}", detail=asdict(one))
        for program in programs
        for one in program.exits
        if one.connected
    ]


def row(told: dict[str, Any]) -> str:
    """The line of a campaign in the table; `told` is its JSON."""
    observed = told["observed"]
    kinds = Counter(finding["kind"] for finding in told["findings"])
    findings = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())) or "none"
    cells = [
        told["seed"],
        told["topology"],
        f"{told['minutes']:g}",
        sum(told["faults"].values()),
        f"{told['trials']}/{told['max_evals']}",
        told["executions"],
        observed["lease lost"],
        observed["reaped"],
        observed["retried"],
        f"{told['settled_s']:.0f} s",
        findings,
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


def table(files: Iterable[Path]) -> str:
    """The Markdown table of the campaigns with these JSON files."""
    told = [json.loads(file.read_text()) for file in files]
    told.sort(key=lambda one: (one["seed"], one["topology"]))
    return "\n".join([HEADER, *map(row, told)])


def totals(files: Iterable[Path]) -> str:
    """How many faults of each kind these campaigns saw, as a Markdown table."""
    kinds: Counter[str] = Counter()
    for file in files:
        kinds.update(json.loads(file.read_text())["faults"])
    lines = [f"| {kind} | {count} |" for kind, count in kinds.most_common()]
    return "\n".join(["| fault | times |", "|---|---|", *lines, f"| all | {kinds.total()} |"])
