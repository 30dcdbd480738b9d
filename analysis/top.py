"""What `hyperfarm top` shows: experiments and workers at one moment, once or again and again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import click

from hyperfarm.analysis.listing import ago, make_table, print_table, workers_text
from hyperfarm.analysis.overview import Snapshot
from hyperfarm.analysis.reading import NO_KEY, Document
from hyperfarm.analysis.telling import moment, shortened
from hyperfarm.errors import DatabaseError
from hyperfarm.presence import name_of, pauses

if TYPE_CHECKING:
    from rich.console import Console, Group, RenderableType

EVERY_S = 2.0
IDLE_SHARE = 9
"""After a look that took long, wait this many times as long: watching must not be what the database does most."""
FEWEST_ROWS = 3
OTHER_LINES = 9
EXPERIMENTS = ("experiment", "finished", "running", "waiting", "failed", "best", "changed")
WORKERS = ("host", "busy", "runs", "lease", "done", "failed", "/min", "state")
_NUMERIC = (*EXPERIMENTS[1:6], "busy", "lease", "done", "failed", "/min")
RUNS_WIDTH = 18
SILENT_AFTER_S = 45.0
"""A worker's heartbeat comes every 30 s."""


def print_snapshot(shot: Snapshot) -> None:
    """Print all of it, one line per experiment and worker."""
    click.echo(_head(shot) + "\n")
    if shot.experiments:
        print_table(EXPERIMENTS, experiment_rows(shot.experiments, shot.at), _NUMERIC)
    else:
        click.echo("no experiments yet")
    if shot.workers:
        click.echo()
        print_table(WORKERS, worker_rows(shot.workers), _NUMERIC)
    for line in notes(shot.workers):
        click.echo(line)


def watch(look: Callable[[], Snapshot], console: Console) -> None:
    """Show what `look` returns until interrupted. While the database is away, the last view stays, and says so.

    Raises what the first look raises.
    """
    from rich.live import Live

    shot, trouble = look(), ""
    took_s = 0.0
    with Live(console=console, auto_refresh=False) as live:
        while True:
            live.update(render(shot, console.height, trouble), refresh=True)
            time.sleep(max(EVERY_S, took_s * IDLE_SHARE))
            began = time.monotonic()
            try:
                shot, trouble = look(), ""
                took_s = time.monotonic() - began
            except DatabaseError as error:
                trouble, took_s = f"{error}; trying again", 0.0


def render(shot: Snapshot, height: int, trouble: str = "") -> Group:
    """The view in a terminal of `height` lines: what does not fit is counted."""
    from rich.console import Group
    from rich.text import Text

    told = list(notes(shot.workers))
    room = max(2 * FEWEST_ROWS, height - OTHER_LINES - min(len(told), FEWEST_ROWS))
    # Each table has half of the room, and what the other one leaves.
    workers = min(len(shot.workers), max(room // 2, room - len(shot.experiments)))
    experiments = room - workers
    parts: list[RenderableType] = [
        Text(_head(shot), style="bold"),
        Text(),
        make_table(EXPERIMENTS, experiment_rows(shot.experiments[:experiments], shot.at), _NUMERIC)
        if shot.experiments
        else Text("no experiments yet"),
        *_more(len(shot.experiments) - experiments, "experiments"),
    ]
    if shot.workers:
        shown = shot.workers if len(shot.workers) <= workers else sorted(shot.workers, key=_is_well)[:workers]
        parts += [Text(), make_table(WORKERS, worker_rows(shown), _NUMERIC)]
        parts += _more(len(shot.workers) - workers, "workers")
    parts += [Text(line, style="yellow") for line in told[:FEWEST_ROWS]]
    parts += _more(len(told) - FEWEST_ROWS, "lines")
    if trouble:
        parts.append(Text(trouble, style="red"))
    return Group(*parts)


def _more(count: int, what: str) -> list[RenderableType]:
    from rich.text import Text

    return [Text(f"... and {count} more {what}")] if count > 0 else []


def _head(shot: Snapshot) -> str:
    running, waiting = (sum(entry[name] for entry in shot.experiments) for name in ("running", "waiting"))
    return f"{moment(shot.at)}   workers: {workers_text(shot.workers)}   trials: {running} running, {waiting} waiting"


def experiment_rows(entries: Iterable[Document], now: datetime) -> list[list[str]]:
    """The cells of EXPERIMENTS. Finished are those that have used up a slot of the budget."""
    return [
        [
            NO_KEY if entry["exp_key"] is None else entry["exp_key"],
            f"{entry['done'] + entry['failed']}" + (f"/{entry['max_evals']}" if entry["max_evals"] else ""),
            *(str(entry[name] or "") for name in ("running", "waiting", "failed")),
            "" if entry["best_loss"] is None else f"{entry['best_loss']:.6g}",
            ago(entry["last_change"], now),
        ]
        for entry in entries
    ]


def worker_rows(workers: Iterable[Document]) -> list[list[str]]:
    """The cells of WORKERS: busy slots of all, what runs in them, the seconds left of the lease that ends first."""
    return [
        [
            str(worker["host"]),
            f"{worker['busy']}/{worker['slots']}",
            _runs(worker["runs"]),
            f"{min(run['lease_left_s'] for run in worker['runs']):.0f} s" if worker["runs"] else "",
            str(worker["done"] or ""),
            str(worker["failed"] or ""),
            f"{worker['per_min']:.3g}" if worker["per_min"] else "",
            _state(worker),
        ]
        for worker in workers
    ]


def _runs(runs: Iterable[Document]) -> str:
    """The trials of a worker by experiment, such as `digits 17 18`, shortened."""
    trials: dict[str, list[str]] = {}
    for run in sorted(runs, key=lambda run: (str(run["exp_key"]), run["tid"])):
        trials.setdefault(NO_KEY if run["exp_key"] is None else run["exp_key"], []).append(str(run["tid"]))
    return shortened(", ".join(" ".join([key, *tids]) for key, tids in trials.items()), RUNS_WIDTH)


def _state(worker: Document) -> str:
    words = ["draining"] if worker["draining"] else []
    words += [f"{len(worker[what])} {what}" for what in ("paused", "refused") if worker[what]]
    if worker["heartbeat_age_s"] > SILENT_AFTER_S:
        words.append(f"silent {worker['heartbeat_age_s']:.0f} s")
    if worker["exp_keys"]:
        words.append(f"only {', '.join(worker['exp_keys'])}")
    return ", ".join(words) or "ok"


def _is_well(worker: Document) -> bool:
    """Those that are not come first where there is no room for all."""
    return not (worker["draining"] or worker["paused"] or worker["refused"]) and (
        worker["heartbeat_age_s"] <= SILENT_AFTER_S
    )


def notes(workers: Sequence[Document]) -> list[str]:
    """What holds work up: slots that pause and experiments that are refused, each with its host."""
    refused = [f"refused  {name_of(worker)} refuses {one['exp_key']}: {one['reason']}"
               for worker in workers for one in worker["refused"]]  # fmt: skip
    return [f"paused  {text}" for text in pauses(workers)] + refused
