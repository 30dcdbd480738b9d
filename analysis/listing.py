"""Tables for a terminal: fitted to its width there, one plain line per row where the output goes elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import click
from rich.cells import cell_len

from hyperfarm.analysis.reading import (
    NO_KEY,
    Document,
    Experiment,
    best_row,
    budget_of,
    count,
    duration_of,
    outcome,
    owner_of,
)  # fmt: skip
from hyperfarm.analysis.story import attempts, circumstances
from hyperfarm.analysis.telling import brief, loss_text, moment, parameter_texts, seconds, shortened, size
from hyperfarm.blobs import REF
from hyperfarm.jobs import JobDoc
from hyperfarm.presence import pauses

if TYPE_CHECKING:
    from rich.table import Table

SHOWN_REPORTS = 20
Rows = Sequence[Sequence[str]]


def print_table(heads: Sequence[str], rows: Rows, numeric: Sequence[str] = ()) -> None:
    """Print a table; columns named in `numeric` are aligned to the right.

    On a terminal it fits the width; elsewhere every row is one line, without colours.
    """
    width = terminal_width()
    if width is None:
        _print_plain(heads, rows, numeric)
        return
    from rich.console import Console

    table = make_table(heads, rows, numeric)
    Console(width=width, markup=False, emoji=False, highlight=False).print(table)


def make_table(heads: Sequence[str], rows: Rows, numeric: Sequence[str] = ()) -> Table:
    """A table for a terminal. Its cells are texts as they are, never rich's markup."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for head in heads:
        right = head in numeric
        table.add_column(head, justify="right" if right else "left", no_wrap=right, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _print_plain(heads: Sequence[str], rows: Rows, numeric: Sequence[str]) -> None:
    widths = [column_width(heads, rows, column) for column in range(len(heads))]
    right = [head in numeric for head in heads]
    for row in (heads, *rows):
        cells = [
            " " * (width - cell_len(cell)) + cell if to_right else cell + " " * (width - cell_len(cell))
            for cell, width, to_right in zip(row, widths, right, strict=True)
        ]
        click.echo("  ".join(cells).rstrip())


def column_width(heads: Sequence[str], rows: Rows, column: int) -> int:
    """How many columns of a terminal the widest cell takes."""
    return max([cell_len(heads[column]), *(cell_len(row[column]) for row in rows)])


def terminal_width() -> int | None:
    """Columns of the terminal, None when the output goes elsewhere."""
    if not sys.stdout.isatty():
        return None
    from rich.console import Console

    return Console().width


def print_pairs(pairs: Sequence[tuple[str, str]], indent: str = "") -> None:
    """Print `name  value` lines with the values below each other."""
    widest = max((len(name) for name, _ in pairs), default=0)
    for name, value in pairs:
        click.echo(f"{indent}{name.ljust(widest)}  {value}".rstrip())


# ---- experiments -----------------------------------------------------------------------------------------


def print_experiments(entries: Sequence[Document], now: datetime) -> None:
    """Print one line per experiment; `entries` as `commands.ls` makes them."""
    heads = ["experiment", "budget", "done", "failed", "running", "waiting", "best", "changed"]
    rows = []
    for entry in entries:
        counts = [str(entry[name] or "") for name in ("done", "failed", "running", "waiting")]
        best = "" if entry["best_loss"] is None else f"{entry['best_loss']:.6g}"
        name = NO_KEY if entry["exp_key"] is None else entry["exp_key"]
        rows.append([name, str(entry["max_evals"] or ""), *counts, best, ago(entry["last_change"], now)])
    print_table(heads, rows, numeric=heads[1:7])


def ago(then: datetime | None, now: datetime) -> str:
    """How long ago that was, empty for never."""
    if then is None:
        return ""
    now = now if now.tzinfo else now.replace(tzinfo=timezone.utc)
    past = max(0.0, (now - then).total_seconds())
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if past >= length:
            return f"{past / length:.0f} {unit} ago"
    return f"{past:.0f} s ago"


def print_header(experiment: Experiment, rows: Sequence[JobDoc], workers: Sequence[Document]) -> None:
    """Print what an experiment is, how far it is, what is best, and who works on it."""
    doc = experiment.doc
    counts = ", ".join(f"{number} {what}" for what, number in count(rows).items()) or "none"
    pairs = [("experiment", experiment.name)]
    bundles = doc.get("bundles") or []
    if bundles and bundles[-1].get("name"):
        pairs.append(("objective", shortened(str(bundles[-1]["name"]), 60)))
    if experiment.space.labels:
        pairs.append(("space", shortened(", ".join(experiment.space.labels), 60)))
    if doc.get("algo"):
        pairs.append(("algorithm", f"{doc['algo']}, seed {doc.get('seed')}"))
    if doc.get("max_evals"):
        budget = budget_of(doc)
        pairs.append(("budget", "unlimited" if budget is None else f"{budget} trials"))
    pairs.append(("trials", counts))
    best = best_row(rows)
    if best is not None:
        pairs.append(("best", f"loss {loss_text(best)} (trial {best['tid']})"))
    pairs.append(("workers", workers_text(workers)))
    pairs += [("paused", text) for text in pauses(workers, untold=experiment.exp_key)]
    print_pairs(pairs)


def workers_text(workers: Sequence[Document]) -> str:
    """How many workers there are, on how many hosts, and how busy."""
    if not workers:
        return "none alive"
    hosts = len({worker.get("host") for worker in workers})
    slots, busy = (sum(worker.get(name) or 0 for worker in workers) for name in ("slots", "busy"))
    return f"{len(workers)} alive on {hosts} host{'s' if hosts != 1 else ''}, {busy} of {slots} slots busy"


# ---- trials ----------------------------------------------------------------------------------------------


def print_trials(experiment: Experiment, rows: Sequence[JobDoc], labels: Sequence[str]) -> None:
    """Print one line per trial: a column per parameter as far as the terminal's width allows."""
    heads = ["trial", "state", "loss", "duration"]
    fixed = [[str(row["tid"]), outcome(row), loss_text(row), seconds(duration_of(row))] for row in rows]
    texts = [parameter_texts(experiment, row) for row in rows]
    wide_heads = [*heads, *labels]
    wide = [
        [*cells, *(text.get(label, "") for label in labels)] for cells, text in zip(fixed, texts, strict=True)
    ]
    width = terminal_width()
    needed = sum(column_width(wide_heads, wide, column) + 2 for column in range(len(wide_heads)))
    if width is None or needed <= width:
        numeric = [label for label in labels if label not in experiment.space.choices]
        print_table(wide_heads, wide, numeric=["trial", "loss", "duration", *numeric])
        return
    joined = ["  ".join(f"{label}={value}" for label, value in text.items()) for text in texts]
    narrow = [[*cells, text] for cells, text in zip(fixed, joined, strict=True)]
    print_table([*heads, "parameters"], narrow, numeric=["trial", "loss", "duration"])


def print_trial(experiment: Experiment, job: JobDoc, reports: Sequence[Document], now: datetime) -> None:
    """Print everything about one trial that a person wants, section by section; `now`: the database's clock."""
    word = outcome(job)
    pairs = [("trial", f"{job['tid']} of {experiment.name}"), ("state", word)]
    if loss_text(job):
        pairs.append(("loss", loss_text(job)))
    if duration_of(job) is not None:
        pairs.append(("duration", seconds(duration_of(job))))
    if job.get("attempt"):
        pairs.append(("attempt", f"{job['attempt']} of {job.get('max_attempts', job['attempt'])}"))
    owner = owner_of(job)
    if owner is not None:
        pairs.append(("worker", owner))
    pairs += [(name, moment(job[key])) for name, key in (("begun", "book_time"), ("changed", "refresh_time"))
              if job.get(key)]  # fmt: skip
    print_pairs(pairs + circumstances(job, now))
    _section("parameters", list(parameter_texts(experiment, job).items()))
    _section("result", [(key, brief(value)) for key, value in _own_result(job).items()])
    _section(
        "files", [(one["name"], f"{size(one['size'])} ({one['kind']})") for one in job.get("artifacts") or ()]
    )
    _print_reports(reports)
    _print_story(job)


def _own_result(job: JobDoc) -> Document:
    """The result without what the head of the page says already."""
    result = job.get("result") or {}
    hidden = {"loss"} | ({REF, "size", "sha256", "holds", "parts"} if REF in result else set())
    shown = {key: value for key, value in result.items() if key not in hidden}
    if REF in result:
        shown["(the rest)"] = f"<{size(result['size'])} in GridFS>"
    return shown


def _section(title: str, pairs: Sequence[tuple[str, Any]]) -> None:
    if pairs:
        click.echo(f"\n{title}")
        print_pairs(pairs, indent="  ")


def _print_reports(reports: Sequence[Document]) -> None:
    if not reports:
        return
    shown = reports[-SHOWN_REPORTS:]
    names = list(dict.fromkeys(key for report in shown for key in report_values(report)))
    more = f" (the last {len(shown)} of {len(reports)})" if len(shown) < len(reports) else ""
    click.echo(f"\nreports{more}")
    rows = [[brief(report[name], 20) if name in report else "" for name in names] for report in shown]
    print_table(names, rows, numeric=names)


def report_values(report: Document) -> Document:
    """A report without the fields that tell whose it is."""
    return {key: value for key, value in report.items() if key not in ("_id", "exp_key", "tid", "token")}


def _print_story(job: JobDoc) -> None:
    """What became of each attempt, notes, and the error with its traceback."""
    _section("attempts", attempts(job))
    _section("notes", [("-", str(note)) for note in job.get("notes") or ()])
    error = job.get("error")
    if error:
        click.echo("\nerror")
        click.echo("  " + (": ".join(map(str, error)) if isinstance(error, (list, tuple)) else str(error)))
    if job.get("traceback"):
        click.echo(f"\n{job['traceback'].rstrip()}")
