"""`minimize`: a whole search in one call."""

from __future__ import annotations

import atexit
import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperfarm import settings
from hyperfarm.jobs import DEFAULT_MAX_ATTEMPTS, JobDoc, TrialLimits
from hyperfarm.retry import PATIENCE_S

if TYPE_CHECKING:
    from hyperfarm.trials import MongoTrials

_open = contextlib.ExitStack()
"""The private database, once it is in use, runs until this process ends: results refer to it."""
_private_url: str | None = None


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """What a search has found so far.

    `best` are the best point's values as the objective got them, `best_params` the same as hyperopt writes
    them (choices as indices), `best_loss` its loss and `best_trial` its document; all None while no
    trial succeeded. `trials` is the MongoTrials with every trial; `reason` says why the search ended.
    """

    exp_key: str
    reason: str
    complete: bool
    best: Any
    best_params: Mapping[str, Any] | None
    best_loss: float | None
    best_trial: JobDoc | None
    trials: MongoTrials
    url: str = field(repr=False)
    elapsed_s: float

    def pull(self, path: str | Path, name: str | None = None) -> Path:
        """Write a file of the best trial to `path`: its model, or the file saved under `name`.

        Returns the path. Raises UsageError when the trial has no such file.
        """
        from hyperfarm.analysis.pulling import pull_file
        from hyperfarm.analysis.reading import find_best, find_experiment

        experiment = find_experiment(self.trials.store, self.exp_key)
        best = find_best(self.trials.store, experiment)
        pull_file(self.trials.blobs, experiment, best, name, Path(path))
        return Path(path).absolute()

    def plot(self, path: str | Path | None = None, *, kind: str = "3d", **wishes: Any) -> Path:
        """Draw the search into a file (see `hyperfarm plot --help` for `x`, `y`, `z`, `color`, `title`).

        Returns the picture's path. Raises UsageError for axes that do not exist.
        """
        from hyperfarm.analysis.plotting import plot_to_file
        from hyperfarm.analysis.scene import Wishes

        wanted = Wishes(kind=kind, **wishes)
        return plot_to_file(self.trials.store, self.exp_key, Path(path) if path else None, wanted)


def database_url(mongo: str | None) -> str:
    """The URL that is meant; starts the private database, for the life of this process, if it is the one."""
    global _private_url
    url = settings.mongo_url(mongo)
    if url is not None:
        return url
    if _private_url is None:
        from hyperfarm import embedded

        _private_url = _open.enter_context(embedded.running())
        atexit.register(_open.close)
    return _private_url


def minimize(
    objective: Callable[..., Any],
    space: Any,
    *,
    max_evals: int | None,
    algo: str | Callable[..., Any] = "tpe",
    grid_points: int | None = None,
    exp_key: str | None = None,
    mongo: str | None = None,
    workers: int | None = None,
    seed: int | None = None,
    timeout: float | None = None,
    loss_threshold: float | None = None,
    early_stop_fn: Callable[..., Any] | None = None,
    points_to_evaluate: Sequence[Mapping[str, Any]] = (),
    warm_start: str | Sequence[str] = (),
    max_concurrent: int | None = None,
    extend: bool = False,
    replace_code: bool = False,
    trial_timeout: float | None = None,
    trial_memory: int | str | None = None,
    max_attempts: int = DEFAULT_MAX_ATTEMPTS,
    keep_models: int | str = "all",
    patience: float = PATIENCE_S,
    include: Sequence[str | Path] = (),
    progress: bool = True,
) -> SearchResult:
    """Minimize `objective` over a hyperopt space on the farm, and return what was found.

    Exactly `max_evals` trials finish (None: no limit), whatever dies meanwhile; calling again carries on
    where the search stood. `algo` is a name (tpe, hyperopt-tpe, rand, anneal, grid, atpe, optuna:NAME,
    module:function; docs/search.md says which) or a function like hyperopt's `tpe.suggest`; the grid has
    `grid_points` values of each continuous parameter, and ends by itself. `exp_key` names the experiment
    (default: the function's name). `mongo` is the database (default: as for the command line, else a
    private one). `workers` slots run on this machine (default: 1 with the private database, else 0:
    workers are elsewhere). `timeout` in seconds: returns then, queued trials are withdrawn, running ones
    are left to their workers. `early_stop_fn` is called as hyperopt calls it, once for each trial that
    ends with a loss. `points_to_evaluate` (dicts, label to value; of a choice, the index of the option)
    are the first trials of the experiment. The algorithm also learns from the successful trials of the
    experiments `warm_start`, as far as the spaces agree. At most `max_concurrent` trials wait or run at
    once. A changed objective or space under the same `exp_key` is refused unless `replace_code`, another
    `max_evals` unless `extend`. A trial that runs longer than `trial_timeout` seconds, or whose processes
    hold more than `trial_memory` (bytes, "500M", "2G"), is stopped and fails; one whose process or worker
    dies is tried `max_attempts` times. `keep_models` keeps the models of that many best trials ("all",
    "none"). MongoDB may be away for `patience` seconds. `include` names further files that the objective
    needs.

    Raises HyperfarmError with a sentence that says what to do; KeyboardInterrupt after Ctrl-C, with all
    finished trials kept.
    """
    from hyperopt import space_eval

    from hyperfarm.cli_options import parse_bytes, parse_keep_models
    from hyperfarm.controller.algorithms import with_grid_points
    from hyperfarm.controller.plan import Reason
    from hyperfarm.controller.search import Limits
    from hyperfarm.controller.session import Job, check_objective, search
    from hyperfarm.trials import MongoTrials

    check_objective(objective)
    limits = Limits(
        timeout_s=timeout,
        loss_threshold=loss_threshold,
        early_stop_fn=early_stop_fn,
        max_concurrent=max_concurrent,
        patience_s=patience,
    )
    trial_limits = TrialLimits(
        timeout_s=trial_timeout,
        memory=None if trial_memory is None else parse_bytes(trial_memory),
        max_attempts=max_attempts,
        keep_models=parse_keep_models(keep_models),
    )
    is_private = settings.mongo_url(mongo) is None
    url = database_url(mongo)
    name = exp_key or _name_of(objective)
    trials = MongoTrials(url, exp_key=name, refresh=False)
    job = Job(
        fn=objective,
        space=space,
        algo=with_grid_points(algo, grid_points),
        max_evals=max_evals,
        seed=seed,
        extend=extend,
        replace_code=replace_code,
        trial_limits=trial_limits,
        points=points_to_evaluate,
        warm_start=[warm_start] if isinstance(warm_start, str) else warm_start,
        include=[Path(path) for path in include],
    )
    slots = workers if workers is not None else int(is_private)
    ended = search(trials, job, limits, show=progress, workers=slots, url=url)
    if ended.reason is Reason.INTERRUPTED:
        raise KeyboardInterrupt
    best = trials.local.best()
    params = None
    if best is not None:
        params = {label: values[0] for label, values in best["misc"]["vals"].items() if values}
    return SearchResult(
        exp_key=name,
        reason=ended.reason.value,
        complete=ended.reason in (Reason.COMPLETE, Reason.EXHAUSTED),
        best=None if params is None else space_eval(space, params),
        best_params=params,
        best_loss=None if best is None else best["result"]["loss"],
        best_trial=best,
        trials=trials,
        url=url,
        elapsed_s=ended.elapsed_s,
    )


def _name_of(objective: Any) -> str:
    while hasattr(objective, "func"):
        objective = objective.func
    name = getattr(objective, "__name__", type(objective).__name__)
    return "objective" if name == "<lambda>" else str(name)
