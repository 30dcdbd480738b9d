"""hyperas's interface on the farm: model functions with templates like {{uniform(0, 1)}}.

    from hyperfarm.templates import minimize
    best_run, best_model = minimize(model, data, algo=tpe.suggest, max_evals=10, trials=trials)

It stands in for `hyperas.optim` (and, for `eval_hyperopt_space`, `hyperas.utils`). docs/templates.md explains it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperfarm.errors import HyperfarmError, UsageError
from hyperfarm.template_install import install

if TYPE_CHECKING:
    from hyperfarm.template_ensemble import VotingModel
    from hyperfarm.template_link import TemplateSearch

__all__ = [
    "best_ensemble", "best_models", "eval_hyperopt_space", "install", "minimize", "unpack_hyperopt_vals",
]  # fmt: skip

TEMP_FILE = "temp_model.py"
DEFAULT_SEED = 1337


def minimize(
    model: Callable[..., Any],
    data: Callable[[], Any],
    algo: Any,
    max_evals: int,
    trials: Any,
    functions: Sequence[Any] | None = None,
    rseed: int | None = DEFAULT_SEED,
    notebook_name: str | None = None,
    verbose: bool = True,
    eval_space: bool = False,
    return_space: bool = False,
    keep_temp: bool = False,
) -> Any:
    """Minimize the loss that a model function with templates returns; return (best run, best model).

    `model` gets what `data` returns, and returns a loss or hyperopt's dict ({'loss', 'status', 'model': ...}).
    `data` runs once in each process that runs trials. `functions` are those with templates that the model calls
    (what it calls by name is found without). `algo`, `max_evals` and `trials` are hyperopt's; with trials that
    workers evaluate, the code travels to them by itself. `rseed` seeds a new search.

    The best run is a dict of the parameters' values by name, a choice being the index of its option, with
    `eval_space` the option. The best model is what that run's result has as 'model', None without one.
    `return_space` adds hyperopt's space to the result, `keep_temp` writes the rewritten code to
    `temp_model.py`, `verbose=False` prints nothing. `notebook_name` is the notebook's file without `.ipynb`; it is
    read only if the source cannot be found in the running session.

    Raises UsageError, with file and line, for what is wrong in the functions; HyperfarmError if no trial succeeds.
    """
    from hyperfarm.template_models import model_of_run
    from hyperfarm.template_space import ReturnedSpace

    trials = _trials(trials)
    search = _prepare(model, data, functions, notebook_name, verbose=verbose, keep_temp=keep_temp)
    best_run = _run(search, algo, max_evals, trials, rseed, verbose=verbose)
    best_model = model_of_run(trials, best_run, search.source.namespace)
    if eval_space:
        best_run = eval_hyperopt_space(search.space, best_run)
    return (best_run, best_model, ReturnedSpace(search.space)) if return_space else (best_run, best_model)


def best_models(
    nb_models: int,
    model: Callable[..., Any],
    data: Callable[[], Any],
    algo: Any,
    max_evals: int,
    trials: Any,
    functions: Sequence[Any] | None = None,
    keep_temp: bool = False,
) -> list[Any]:
    """Search as `minimize` does; return the models of the `nb_models` trials with the lowest losses, the best first.

    Fewer if there are fewer successful trials; None in the place of one that returned no model.
    """
    if nb_models < 1:
        raise UsageError(f"nb_models is {nb_models}; it must be 1 or more")
    from hyperfarm.template_models import best_trial_models

    trials = _trials(trials)
    search = _prepare(model, data, functions, None, verbose=True, keep_temp=keep_temp)
    _run(search, algo, max_evals, trials, DEFAULT_SEED, verbose=True)
    return best_trial_models(trials, nb_models, search.source.namespace)


def best_ensemble(
    nb_ensemble_models: int,
    model: Callable[..., Any],
    data: Callable[[], Any],
    algo: Any,
    max_evals: int,
    trials: Any,
    voting: str = "hard",
    weights: Sequence[float] | None = None,
    nb_classes: int | None = None,
    functions: Sequence[Any] | None = None,
) -> VotingModel:
    """Search as `best_models` does; return one model whose `predict` lets the best ones vote (see VotingModel)."""
    from hyperfarm.template_ensemble import VotingModel

    found = best_models(nb_ensemble_models, model, data, algo, max_evals, trials, functions)
    return VotingModel([one for one in found if one is not None], voting, weights, nb_classes)


def eval_hyperopt_space(space: Any, vals: Mapping[str, Any]) -> Any:
    """Return the values behind `vals`, a best run or the `misc.vals` of a trial: options instead of indices.

    An option that is a layer, say, is made anew; one that needs the data or a local variable of the model is shown
    by its text.
    """
    from hyperfarm.template_space import evaluated

    return evaluated(space, vals)


def unpack_hyperopt_vals(vals: Mapping[str, Any]) -> dict[str, Any]:
    """Return a trial's `misc.vals` without hyperopt's lists around the values; what took no part is left out."""
    from hyperfarm.template_space import unpacked

    return unpacked(vals)


def _trials(trials: Any) -> Any:
    """The trials of the search; without any, new ones that are kept in this process."""
    if trials is not None:
        return trials
    from hyperopt import Trials

    return Trials()


def _prepare(
    model: Callable[..., Any],
    data: Callable[[], Any],
    functions: Sequence[Any] | None,
    notebook: str | None,
    *,
    verbose: bool,
    keep_temp: bool,
) -> TemplateSearch:
    from hyperfarm.template_link import prepare
    from hyperfarm.template_text import describe, module_text

    search = prepare(model, data, functions, notebook)
    if verbose:
        print(describe(search))
    if keep_temp:
        Path(TEMP_FILE).write_text(module_text(search), "utf-8")
    return search


def _run(
    search: TemplateSearch, algo: Any, max_evals: int, trials: Any, rseed: int | None, *, verbose: bool
) -> dict[str, Any]:
    """Run hyperopt's fmin, which asks the trials for their own; return the best run."""
    import numpy as np
    from hyperopt import fmin
    from hyperopt.exceptions import AllTrialsFailed

    try:
        fmin(
            search.objective,
            search.space,
            algo=algo,
            max_evals=max_evals,
            trials=trials,
            rstate=np.random.default_rng(rseed),
            return_argmin=False,
            verbose=verbose,
        )
        best: dict[str, Any] = trials.argmin
    except AllTrialsFailed as error:
        raise HyperfarmError(
            f"no trial of {search.source.name} has succeeded, so there is no best one{_first_failure(trials)}"
        ) from error
    finally:
        search.objective.forget()
    return best


def _first_failure(trials: Any) -> str:
    """What the first failed trial said, as the rest of a sentence."""
    finished = trials.finished() if hasattr(trials, "finished") else trials
    for doc in finished:
        error = doc.get("error") or (doc.get("misc") or {}).get("error")
        if error:
            return f"; trial {doc['tid']}: {': '.join(map(str, error))}"
    return ""
