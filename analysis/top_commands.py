"""`hyperfarm top`: watching experiments and workers."""

from __future__ import annotations

import contextlib
import sys

import click

from hyperfarm.cli_options import mongo_option, open_store


@click.command()
@click.argument("exp_key", required=False)
@mongo_option
@click.option("--once", is_flag=True, help="Print it once and end; so does output that goes to no terminal.")
@click.option("--json", "as_json", is_flag=True, help="Print strict JSON once, for programs.")
def top(exp_key: str | None, mongo: str | None, once: bool, as_json: bool) -> None:
    """Watch experiments and workers, or one experiment and the workers that serve it; Ctrl-C ends it.

    Every 2 seconds: trials finished of the budget, running, waiting and failed, the best loss; each worker's busy
    slots, the trials in them, the seconds left of their leases, how many it finished, how many failed, and its
    rate; which slots pause since their process keeps crashing, and who refuses what.

    \b
    Example:
      hyperfarm top
      hyperfarm top digits --once
    """
    from hyperfarm.analysis.overview import take_snapshot
    from hyperfarm.analysis.reading import find_experiment
    from hyperfarm.analysis.telling import as_json as to_json
    from hyperfarm.analysis.top import print_snapshot, watch

    with open_store(mongo) as store:
        experiment = None if exp_key is None else find_experiment(store, exp_key)
        if as_json or once or not sys.stdout.isatty():
            shot = take_snapshot(store, experiment)
            told = {"at": shot.at, "experiments": shot.experiments, "workers": shot.workers}
            click.echo(to_json(told)) if as_json else print_snapshot(shot)
            return
        from rich.console import Console

        console = Console(markup=False, emoji=False, highlight=False)
        with contextlib.suppress(KeyboardInterrupt):
            watch(lambda: take_snapshot(store, experiment), console)
