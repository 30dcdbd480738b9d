"""hyperopt's `fmin`, driven by the farm's search loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hyperopt import space_eval
from hyperopt.base import validate_loss_threshold, validate_timeout

from hyperfarm.controller.plan import Reason
from hyperfarm.controller.search import Limits
from hyperfarm.controller.session import Job, search

if TYPE_CHECKING:
    from hyperfarm.trials import MongoTrials


def fmin(
    trials: MongoTrials,
    fn: Callable[..., Any],
    space: Any,
    *,
    algo: Any,
    max_evals: int | None,
    timeout: float | None,
    loss_threshold: float | None,
    rstate: Any,
    pass_expr_memo_ctrl: bool | None,
    return_argmin: bool,
    show_progressbar: bool,
    early_stop_fn: Callable[..., Any] | None,
    points: Sequence[Mapping[str, Any]] = (),
) -> Any:
    """See `MongoTrials.fmin`. Raises KeyboardInterrupt after a tidy end by Ctrl-C."""
    validate_timeout(timeout)
    validate_loss_threshold(loss_threshold)
    if max_evals is None and timeout is None and loss_threshold is None and early_stop_fn is None:
        raise ValueError("fmin needs an end: max_evals, timeout, loss_threshold or early_stop_fn")
    known = trials.store.experiment(trials.exp_key)
    job = Job(
        fn=fn,
        space=space,
        algo=algo,
        max_evals=max_evals,
        # A search that is carried on keeps its seed; drawing from rstate all the same keeps callers in step.
        seed=None if known else _seed(rstate),
        grow=True,
        hyperopt_losses=True,
        pass_expr_memo_ctrl=pass_expr_memo_ctrl,
        points=points,
        for_hyperopt=trials.for_hyperopt,
        replace_code=trials.replace_code,
    )
    limits = Limits(
        timeout_s=timeout, max_evals=max_evals, loss_threshold=loss_threshold, early_stop_fn=early_stop_fn
    )
    ended = search(trials, job, limits, show=show_progressbar)
    if ended.reason is Reason.INTERRUPTED:
        raise KeyboardInterrupt
    if return_argmin:
        if len(trials.trials) == 0:
            raise ValueError(
                "there are no finished trials, so there is no best one (see return_argmin=False)"
            )
        return trials.argmin
    if trials.local.best() is not None:
        return space_eval(space, trials.argmin)
    return None


def _seed(rstate: Any) -> int | None:
    """A seed drawn from a Generator or a RandomState, as hyperopt draws its own."""
    if rstate is None:
        return None
    draw = rstate.integers if hasattr(rstate, "integers") else rstate.randint
    return int(draw(2**31 - 1))
