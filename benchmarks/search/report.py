"""The tables of docs/search.md from finished runs. Between two markers of the file; its prose stays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.search import compare, problems, simulate
from benchmarks.search.runs import Done, Key

DOCUMENT = Path(__file__).parents[2] / "docs" / "search.md"
OURS = "hyperfarm"
SHOWN_AT = 100
"""The budget of the tables of regret and of the tests."""

Table = list[Sequence[str]]


class Finished:
    """Finished runs, asked for as arrays of regrets, seeds by algorithms."""

    def __init__(self, done: Mapping[Key, Done], algorithms: Sequence[str]) -> None:
        self.algorithms = list(algorithms)
        self._done = done
        self.running = sorted({key.running for key in done if key.algorithm in self.algorithms})

    def regrets(self, problem: str, running: int, ended: int) -> compare.Array:
        """Of the seeds that every algorithm has done; an array without rows when there are none."""
        lines = []
        for seed in sorted({key.seed for key in self._done}):
            keys = [
                Key(seed=seed, running=running, problem=problem, algorithm=algorithm)
                for algorithm in self.algorithms
            ]
            found = [self._done[key].regrets.get(ended) if key in self._done else None for key in keys]
            if None not in found:
                lines.append(found)
        return np.array(lines, dtype=np.float64).reshape(-1, len(self.algorithms))

    def of_half(self, half: str, running: int, ended: int) -> dict[str, compare.Array]:
        """By problem; those without a common seed are left out."""
        found = {
            problem.name: self.regrets(problem.name, running, ended) for problem in problems.selected(half)
        }
        return {name: regrets for name, regrets in found.items() if len(regrets)}

    def origins(self) -> list[str]:
        """One line per algorithm: commits, runs and CPU time of a run."""
        lines = []
        for algorithm in self.algorithms:
            mine = [done for key, done in self._done.items() if key.algorithm == algorithm]
            commits = ", ".join(sorted({done.commit for done in mine}))
            cpu = np.median([done.cpu_s for done in mine])
            lines.append(f"{algorithm}: {len(mine)} runs at {commits}; median {cpu:.2f} s of CPU a run")
        return lines


def regret_table(finished: Finished, half: str, running: int) -> Table:
    """Median regret [quartiles] per problem and algorithm; the least median is bold."""
    rows: Table = [("problem", "seeds", *finished.algorithms)]
    for name, regrets in finished.of_half(half, running, SHOWN_AT).items():
        spreads = [compare.quartiles(column) for column in regrets.T]
        least = min(middle for _, middle, _ in spreads)
        cells = [
            f"{f'**{middle:.3g}**' if middle == least else f'{middle:.3g}'} [{low:.2g}, {high:.2g}]"
            for low, middle, high in spreads
        ]
        rows.append((name, str(len(regrets)), *cells))
    return rows


def rank_table(finished: Finished) -> Table:
    """Mean rank over the problems of a half, all problems with the same weight."""
    rows: Table = [("half", "running", "evaluations", "problems", *finished.algorithms)]
    for half in problems.HALVES:
        for running in finished.running:
            for ended in simulate.BUDGETS:
                found = [
                    compare.ranks(regrets) for regrets in finished.of_half(half, running, ended).values()
                ]
                if not found:
                    continue
                mean = np.mean(found, axis=0)
                cells = [f"**{rank:.2f}**" if rank == mean.min() else f"{rank:.2f}" for rank in mean]
                rows.append((half, str(running), str(ended), str(len(found)), *cells))
    return rows


def paired_table(finished: Finished) -> Table:
    """Ours against each peer: on how many problems better, worse, neither; and the names of both."""
    rows: Table = [("half", "running", "against", "better", "worse", "neither", "worse on", "better on")]
    if OURS not in finished.algorithms:
        return rows
    ours = finished.algorithms.index(OURS)
    for half in problems.HALVES:
        for running in finished.running:
            groups = finished.of_half(half, running, SHOWN_AT)
            for column, peer in enumerate(finished.algorithms):
                if column == ours or not groups:
                    continue
                tests = [
                    compare.paired(name, regrets[:, ours], regrets[:, column])
                    for name, regrets in groups.items()
                ]
                won, lost, tied = compare.wins_and_losses(tests)
                counts = (str(len(won)), str(len(lost)), str(len(tied)))
                rows.append((half, str(running), peer, *counts, ", ".join(lost), ", ".join(won)))
    return rows


def document(finished: Finished, layout: str = "markdown") -> str:
    """Everything, as Markdown or as text for a terminal."""
    show = as_markdown if layout == "markdown" else as_text
    parts = ["### Mean rank (1 is the best)", show(rank_table(finished))]
    parts += [
        f"### Paired tests at {SHOWN_AT} evaluations",
        f"{OURS} against each peer: Wilcoxon's signed-rank test over the seeds, two-sided, Holm-corrected over "
        f"the problems of the line, p < {compare.LEVEL:g}.",
        show(paired_table(finished)),
    ]
    for half in problems.HALVES:
        for running in finished.running:
            table = regret_table(finished, half, running)
            if len(table) > 1:
                parts += [
                    f"### Regret at {SHOWN_AT} evaluations, half `{half}`, {running} running",
                    show(table),
                ]
    parts += ["### Where the runs come from", "\n".join(f"* {line}" for line in finished.origins())]
    return "\n\n".join(parts)


def as_markdown(rows: Table) -> str:
    """A table in Markdown."""
    lines = [rows[0], ("---",) * len(rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def as_text(rows: Table) -> str:
    """A table for the terminal."""
    widths = [max(len(line[column]) for line in rows) for column in range(len(rows[0]))]
    shown: Iterable[str] = (
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in rows
    )
    return "\n".join(line.rstrip() for line in shown)


def write_between(path: Path, name: str, text: str) -> None:
    """Replace what is between `<!-- NAME: begin -->` and `<!-- NAME: end -->`.

    Raises ValueError when the file lacks a marker.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, found_begin, rest = path.read_text().partition(begin)
    _, found_end, after = rest.partition(end)
    if not found_begin or not found_end:
        raise ValueError(f"{path} lacks the markers {begin} and {end}")
    path.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}")
