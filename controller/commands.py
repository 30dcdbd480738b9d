"""`hyperfarm run`, `enqueue`, `cancel` and `rm`: the commands that change an experiment."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hyperfarm.cli_options import (
    database_url,
    mongo_option,
    no_such_experiment,
    open_store,
    parse_keep_models,
    patience_option,
    trial_limit_options,
)
from hyperfarm.errors import UsageError
from hyperfarm.hyperopt_import import import_hyperopt
from hyperfarm.jobs import DEFAULT_MAX_ATTEMPTS, TrialLimits

if TYPE_CHECKING:
    from hyperfarm.controller.checking import Checked
    from hyperfarm.trials import MongoTrials

EXIT_INTERRUPTED = 130
DEFAULT_MAX_EVALS = 20


@click.command()
@click.argument("target", metavar="FILE.py|module:function")
@mongo_option
@click.option("--exp-key", default=None, help="Name of the experiment (default: the file's name).")
@click.option("--algo", default="tpe", show_default=True,
              help="tpe, hyperopt-tpe, rand, anneal, grid, atpe, optuna:NAME, or module:function.")  # fmt: skip
@click.option("--grid-points", type=int, default=None,
              help="With grid: number of values of a continuous parameter.")  # fmt: skip
@click.option("--max-evals", type=int, default=None,
              help="Number of trials (default: 20, the whole grid, or what the experiment has).")  # fmt: skip
@click.option("--timeout", type=float, default=None, help="Stop after this many seconds.")
@click.option("--loss-threshold", type=float, default=None, help="Stop at a loss this low.")
@click.option("--no-progress", metavar="N", type=click.IntRange(1), default=None,
              help="Stop when N trials in a row have found no lower loss.")  # fmt: skip
@click.option("--max-concurrent", metavar="N", type=click.IntRange(1), default=None,
              help="At most N trials wait or run at once.")  # fmt: skip
@click.option("--points", metavar="FILE.json", type=click.Path(path_type=Path), default=None,
              help="Points to try first: a list of {parameter: value}.")  # fmt: skip
@click.option("--from", "warm_start", metavar="EXP_KEY", multiple=True,
              help="Learn from this experiment's finished trials too (may be repeated).")  # fmt: skip
@click.option("--seed", type=int, default=None, help="Seed of the search (default: a random one).")
@click.option("--workers", type=int, default=None,
              help="Slots to run on this machine (default: 1 with the private database, else 0).")  # fmt: skip
@trial_limit_options
@click.option("--max-attempts", type=int, default=DEFAULT_MAX_ATTEMPTS, show_default=True,
              help="How often a trial is tried whose worker or process dies.")  # fmt: skip
@click.option("--keep-models", metavar="N|all|none", default="all", show_default=True,
              help="Keep the models of the N best trials only.")  # fmt: skip
@patience_option
@click.option("--include", type=click.Path(path_type=Path), multiple=True,
              help="A further file or folder that the objective needs (may be repeated).")  # fmt: skip
@click.option("--extend", is_flag=True, help="Give the experiment this --max-evals instead of its own.")
@click.option("--replace-code", is_flag=True, help="Carry the experiment on with changed code.")
def run(
    target: str,
    mongo: str | None,
    exp_key: str | None,
    algo: str,
    grid_points: int | None,
    max_evals: int | None,
    timeout: float | None,
    loss_threshold: float | None,
    no_progress: int | None,
    max_concurrent: int | None,
    points: Path | None,
    warm_start: tuple[str, ...],
    seed: int | None,
    workers: int | None,
    trial_timeout_s: float | None,
    trial_memory: int | None,
    max_attempts: int,
    keep_models: str,
    patience_s: float,
    include: tuple[Path, ...],
    extend: bool,
    replace_code: bool,
) -> None:
    """Search for the point of `space` with the lowest loss of `objective`.

    FILE.py defines both: a function `objective(point)` and `space`, a hyperopt search space. The file
    and the modules of yours that it imports travel to the workers by themselves. The same command
    carries on a search that was interrupted.

    \b
    Example:
      hyperfarm run optimise_task.py --max-evals 20 --workers 2
      hyperfarm run mypackage.search:objective --mongo mongodb://db.example.org/jobs
      hyperfarm run optimise_task.py --exp-key second --from optimise_task --points known.json
    """
    import_hyperopt()  # Before anything else imports it.
    from hyperfarm import settings
    from hyperfarm.controller import algorithms, objectives
    from hyperfarm.controller.plan import Reason
    from hyperfarm.controller.points import read_points
    from hyperfarm.controller.search import Limits
    from hyperfarm.controller.session import Job, search
    from hyperfarm.controller.summary import print_summary
    from hyperfarm.mongo import hide_password
    from hyperfarm.trials import MongoTrials

    limits = Limits(
        timeout_s=timeout,
        loss_threshold=loss_threshold,
        early_stop_fn=_no_progress(no_progress),
        max_concurrent=max_concurrent,
        patience_s=patience_s,
    )
    trial_limits = TrialLimits(
        timeout_s=trial_timeout_s,
        memory=trial_memory,
        max_attempts=max_attempts,
        keep_models=parse_keep_models(keep_models),
    )
    if max_evals is not None and max_evals < 1:
        raise UsageError(f"--max-evals is {max_evals}; it must be 1 or more")
    wanted = algorithms.with_grid_points(algo, grid_points)
    algorithm = algorithms.checked(wanted)
    found = objectives.find(target)
    slots = workers if workers is not None else int(settings.mongo_url(mongo) is None)
    with database_url(mongo) as url:
        trials = MongoTrials(url, exp_key=exp_key or found.exp_key, refresh=False)
        job = Job(
            fn=found.fn,
            space=found.space,
            algo=wanted,
            max_evals=max_evals or _default_budget(trials, algorithm, found.space),
            seed=seed,
            extend=extend,
            replace_code=replace_code,
            trial_limits=trial_limits,
            points=read_points(f"@{points}") if points else (),
            warm_start=warm_start,
            include=include,
            script=found.script,
        )
        ended = search(trials, job, limits, show=True, workers=slots, url=url)
        again = shlex.join(["hyperfarm", *map(hide_password, sys.argv[1:])])
        named = f" --mongo {shlex.quote(hide_password(mongo))}" if mongo else ""
        print_summary(trials, ended, again=again, named=named)
        trials.store.close()
    if ended.reason is Reason.INTERRUPTED:
        sys.exit(EXIT_INTERRUPTED)


def _no_progress(count: int | None) -> Callable[..., Any] | None:
    from hyperopt.early_stop import no_progress_loss

    return None if count is None else no_progress_loss(count)


def _default_budget(trials: MongoTrials, algorithm: Checked, space: Any) -> int:
    known = trials.store.experiment(trials.exp_key)
    if known:
        return int(known["max_evals"])
    return algorithm.budget(space) or DEFAULT_MAX_EVALS


@click.command()
@click.argument("exp_key")
@click.argument("points", metavar="POINT...", nargs=-1, required=True)
@mongo_option
@click.option("--extend", is_flag=True, help="Raise the budget by as many trials.")
@click.option("--json", "as_json", is_flag=True, help="Print the trials as JSON.")
def enqueue(exp_key: str, points: tuple[str, ...], mongo: str | None, extend: bool, as_json: bool) -> None:
    """Have points tried by an experiment: next, and within its budget.

    A POINT is JSON, {"parameter": value, ...}, or a list of them; @FILE reads them from a file, - from standard
    input. It names every parameter that is active there; of a choice the index of the option, or the option
    itself where that is plain. The controller may run meanwhile or not; with none, workers try them all the same.

    \b
    Example:
      hyperfarm enqueue optimise_task '{"lr": 0.01, "layers": 2}' --extend
      hyperfarm enqueue optimise_task @points.json
    """
    from hyperfarm.controller.enqueue import enqueue as put
    from hyperfarm.controller.known_space import read
    from hyperfarm.controller.points import read_points

    found = [point for text in points for point in read_points(text)]
    with open_store(mongo) as store:
        docs = put(store, exp_key, found, extend=extend)
        experiment = store.experiment(exp_key) or {}
    rows = [
        {
            "trial": doc["tid"],
            "point": {label: vals[0] for label, vals in doc["misc"]["vals"].items() if vals},
        }
        for doc in docs
    ]
    if as_json:
        click.echo(json.dumps(rows))
        return
    known = read(experiment.get("columns") or [])
    for row in rows:
        values = ", ".join(known.shown(label, value) for label, value in row["point"].items())
        click.echo(f"{exp_key}: trial {row['trial']} queued: {values}")


@click.command()
@click.argument("exp_key")
@mongo_option
def cancel(exp_key: str, mongo: str | None) -> None:
    """Cancel an experiment's waiting and running trials.

    Finished trials stay. A controller that drives the experiment ends; workers stop its trials when they
    next renew their leases. Running it again carries the experiment on.

    \b
    Example:
      hyperfarm cancel optimise_task
    """
    with open_store(mongo) as store:
        if not store.update_experiment(exp_key, {"state": "cancelled"}):
            raise no_such_experiment(exp_key, [doc["_id"] for doc in store.experiments()])
        count = store.cancel(exp_key)
        click.echo(f"{exp_key}: {count} trial{'' if count == 1 else 's'} cancelled; finished trials are kept")


@click.command()
@click.argument("exp_key")
@mongo_option
@click.option("--yes", is_flag=True, help="Do not ask.")
def rm(exp_key: str, mongo: str | None, yes: bool) -> None:
    """Delete an experiment: its trials, reports, models, logs and code.

    \b
    Example:
      hyperfarm rm optimise_task --yes
    """
    from hyperfarm.blobs import Blobs
    from hyperfarm.removal import remove

    with open_store(mongo) as store:
        known = {doc["_id"] for doc in store.experiments()} | {row["_id"] for row in store.summaries()}
        if exp_key not in known:
            raise no_such_experiment(exp_key, known)
        if not yes:
            click.confirm(f"Delete experiment {exp_key} with all its trials and models?", abort=True)
        count = remove(store, Blobs(store.database), exp_key)
        click.echo(f"{exp_key}: removed, with {count} trial{'' if count == 1 else 's'}")
