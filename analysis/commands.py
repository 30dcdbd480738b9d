"""`hyperfarm ls | show | best | pull | plot | logs`: reading results and models back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from hyperfarm.cli_options import announce, mongo_option, open_store

if TYPE_CHECKING:
    from hyperfarm.analysis.reading import Document, Experiment
    from hyperfarm.jobs import JobDoc
    from hyperfarm.store import Store

Command = TypeVar("Command", bound=Callable[..., Any])


def _json_option(command: Command) -> Command:
    return click.option("--json", "as_json", is_flag=True, help="Print strict JSON, for programs.")(command)


def _output_option(required: bool, text: str) -> Callable[[Command], Command]:
    file = click.Path(path_type=Path)
    return click.option("-o", "--output", type=file, required=required, metavar="FILE", help=text)


@click.command()
@mongo_option
@_json_option
def ls(mongo: str | None, as_json: bool) -> None:
    """List the experiments: budget, trials, best loss, last change.

    Jobs without an exp_key (hyperopt's default) are listed as None, and found under that name.

    \b
    Example:
      hyperfarm ls
      hyperfarm ls --json
    """
    from hyperfarm.analysis.listing import print_experiments
    from hyperfarm.analysis.overview import experiment_entries
    from hyperfarm.analysis.telling import as_json as to_json

    with open_store(mongo) as store:
        entries, now = experiment_entries(store), store.now()
    if as_json:
        click.echo(to_json(entries))
    elif entries:
        print_experiments(entries, now)
    else:
        announce("There are no experiments in this database yet; begin one with `hyperfarm run`.")


@click.command()
@click.argument("exp_key")
@click.argument("trial", type=int, required=False)
@click.option("--trial", "named", type=int, metavar="T", help="The same as naming the trial after EXP_KEY.")
@mongo_option
@_json_option
def show(exp_key: str, trial: int | None, named: int | None, mongo: str | None, as_json: bool) -> None:
    """Show an experiment and its trials, or all about one trial.

    About a trial: parameters, result, files, reports, and its story: what became of each attempt, at which
    worker, and why; what it waits for; the checkpoint that it resumes from; its error.

    \b
    Example:
      hyperfarm show digits
      hyperfarm show digits 17
    """
    from hyperfarm.analysis.reading import find_experiment, find_trial
    from hyperfarm.errors import UsageError

    if None not in (trial, named) and trial != named:
        raise UsageError(f"trial {trial} or trial {named}? name one of them")
    trial = named if trial is None else trial
    with open_store(mongo) as store:
        experiment = find_experiment(store, exp_key)
        if trial is not None:
            _show_trial(store, experiment, find_trial(store, experiment, trial), as_json)
        else:
            _show_experiment(store, experiment, as_json)


def _show_trial(store: Store, experiment: Experiment, job: JobDoc, as_json: bool) -> None:
    from hyperfarm.analysis import listing, telling

    reports = store.reports({**job, "exp_key": experiment.exp_key})
    if as_json:
        values = [listing.report_values(report) for report in reports]
        click.echo(telling.as_json({**_trial_entry(experiment, job), "reports": values}))
    else:
        listing.print_trial(experiment, job, reports, store.now())


def _trial_entry(experiment: Experiment, job: JobDoc) -> Document:
    """Everything about one trial, for a program."""
    from hyperfarm.analysis import reading

    kept = job.get("checkpoint")
    fields = ("error", "traceback", "history", "accepted", "notes", "max_attempts", "limits")
    files = [
        {key: one[key] for key in ("name", "kind", "size", "sha256")} for one in job.get("artifacts") or ()
    ]
    return {
        **_row_entry(experiment, job),
        "result": job.get("result"),
        **{name: job.get(name) for name in fields},
        "waits_until": reading.waits_until(job),
        "checkpoint": {key: kept[key] for key in ("size", "sha256", "attempt", "at")} if kept else None,
        "files": files,
    }


def _row_entry(experiment: Experiment, row: JobDoc) -> Document:
    """One trial in a list, for a program."""
    from hyperfarm.analysis import reading, telling
    from hyperfarm.jobs import is_parked

    return {
        "trial": row["tid"],
        "state": reading.outcome(row),
        "loss": reading.loss_of(row),
        "duration_s": reading.duration_of(row),
        "parameters": reading.parameters_of(row),
        "choices": telling.chosen(experiment, row),
        "owner": None if is_parked(row) else row.get("owner"),
        "attempt": row.get("attempt"),
        "begun": row.get("book_time"),
        "changed": row.get("refresh_time"),
    }


def _show_experiment(store: Store, experiment: Experiment, as_json: bool) -> None:
    from hyperfarm.analysis import listing, reading, telling
    from hyperfarm.analysis.axes import Axes
    from hyperfarm.analysis.overview import worker_entry
    from hyperfarm.presence import serves

    source = Axes(store, experiment, ())
    workers = [one for one in store.live_workers() if serves(one, experiment.exp_key)]
    if not as_json:
        listing.print_header(experiment, source.rows, workers)
        if source.rows:
            click.echo()
            listing.print_trials(experiment, source.rows, source.labels)
        return
    doc, running, at = experiment.doc, store.running_jobs(), store.now()
    best = reading.best_row(source.rows)
    told = {
        "exp_key": experiment.exp_key,
        **{name: doc.get(name) for name in ("state", "created", "algo", "seed")},
        "max_evals": reading.budget_of(doc),
        "counts": reading.count(source.rows),
        "best": None if best is None else best["tid"],
        "workers": [worker_entry(one, running, at) for one in workers],
        "trials": [_row_entry(experiment, row) for row in source.rows],
    }
    click.echo(telling.as_json(told))


@click.command()
@click.argument("exp_key")
@mongo_option
@_json_option
def best(exp_key: str, mongo: str | None, as_json: bool) -> None:
    """Show the trial with the lowest loss.

    \b
    Example:
      hyperfarm best digits
      hyperfarm best digits --json
    """
    from hyperfarm.analysis import listing, telling
    from hyperfarm.analysis.reading import find_best, find_experiment

    with open_store(mongo) as store:
        experiment = find_experiment(store, exp_key)
        job = find_best(store, experiment)
        if as_json:
            click.echo(telling.as_json(_trial_entry(experiment, job)))
            return
        listing.print_trial(experiment, job, (), store.now())
    _offer_model(experiment, job)


def _offer_model(experiment: Experiment, job: JobDoc) -> None:
    """Say how to fetch what `pull` would fetch without further options."""
    import shlex

    files = job.get("artifacts") or []
    models = [one for one in files if one["kind"] == "model"] or files
    if len(models) == 1:
        into = shlex.quote(Path(models[0]["name"]).name)
        announce(f"\nFetch it: hyperfarm pull {shlex.quote(experiment.name)} -o {into}")


@click.command()
@click.argument("exp_key")
@click.option("--trial", type=int, metavar="T", help="The trial (default: the best).")
@click.option("--name", help="The saved file, or a name in the result that holds bytes (default: the model).")
@_output_option(True, "Where to write it; a file that is there is replaced.")
@mongo_option
def pull(exp_key: str, trial: int | None, name: str | None, output: Path, mongo: str | None) -> None:
    """Fetch a trial's model, or another file that it saved, and print where it lies.

    The file is checked against its SHA-256 and appears whole or not at all. Nothing is unpickled.

    \b
    Example:
      hyperfarm pull digits -o best.keras
      hyperfarm pull digits --trial 17 --name history.csv -o history.csv
    """
    from hyperfarm.analysis.pulling import described, pull_file
    from hyperfarm.analysis.reading import find_best, find_experiment, find_trial
    from hyperfarm.blobs import Blobs

    with open_store(mongo) as store:
        experiment = find_experiment(store, exp_key)
        job = find_best(store, experiment) if trial is None else find_trial(store, experiment, trial)
        pulled = pull_file(Blobs(store.database), experiment, job, name, output)
    announce(described(experiment, job, pulled))
    click.echo(output.absolute())


_AXIS = "a parameter, loss, duration, tid or a number of the results (accuracy, result.metrics.rmse)"


@click.command()
@click.argument("exp_key")
@click.option("--kind", type=click.Choice(["3d", "scatter", "history"]), default="3d", show_default=True,
              help="3d: three axes and a colour; scatter: two; history: loss over trial number.")  # fmt: skip
@click.option("--x", metavar="P", help=f"{_AXIS[0].upper()}{_AXIS[1:]}.")
@click.option("--y", metavar="Q", help="As --x (default: the next parameter; loss for scatter and history).")
@click.option("--z", metavar="V", help="As --x (default: loss).")
@click.option("--color", metavar="V", help="As --x (default: duration).")
@click.option("--log", multiple=True, type=click.Choice(["x", "y", "z", "color"]),
              help="Make this axis logarithmic (default: where it suits; may be repeated).")  # fmt: skip
@click.option("--linear", multiple=True, type=click.Choice(["x", "y", "z", "color"]),
              help="Make this axis linear (may be repeated).")  # fmt: skip
@click.option("--title", help="The title (default: the experiment's name).")
@_output_option(False, "Where to write it: .png, .pdf, .svg ... (default: EXP_KEY-KIND.png here).")
@mongo_option
def plot(exp_key: str, mongo: str | None, output: Path | None, kind: str, **wishes: Any) -> None:
    """Draw the finished trials of an experiment into a file, and print where it lies.

    Failed trials are counted, not drawn; the best trial has a star.

    \b
    Example:
      hyperfarm plot digits --kind 3d --x units --y dropout --z loss -o digits.png
      hyperfarm plot digits --kind history
    """
    from hyperfarm.analysis.pictures import require_matplotlib
    from hyperfarm.analysis.plotting import plot_to_file
    from hyperfarm.analysis.scene import Wishes

    require_matplotlib()
    with open_store(mongo) as store:
        click.echo(plot_to_file(store, exp_key, output, Wishes(kind=kind, **wishes)))


@click.command()
@click.argument("exp_key")
@click.argument("trial", type=int)
@mongo_option
def logs(exp_key: str, trial: int, mongo: str | None) -> None:
    """Print what a trial printed.

    The output is stored when an attempt ends: its beginning and its end, if it was long.

    \b
    Example:
      hyperfarm logs digits 17
    """
    from hyperfarm.analysis.reading import find_experiment, find_trial, outcome
    from hyperfarm.blobs import Blobs
    from hyperfarm.errors import UsageError
    from hyperfarm.jobs import JobState

    with open_store(mongo) as store:
        experiment = find_experiment(store, exp_key)
        job = find_trial(store, experiment, trial)
        finished = JobState(job["state"]).is_finished
        if job.get("log"):
            if not finished:
                announce(f"Trial {trial} is {outcome(job)} again; this is the output of the attempt before.")
            click.echo(Blobs(store.database).read(job["log"]), nl=False)
        elif finished:
            announce(f"Trial {trial} of {experiment.name} printed nothing.")
        else:
            raise UsageError(
                f"trial {trial} of {experiment.name} is {outcome(job)}; its output is stored when it ends"
            )
