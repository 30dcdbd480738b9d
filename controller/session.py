"""One search from beginning to end: database, experiment, local workers, loop, display."""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from hyperopt.base import Domain
from hyperopt.exceptions import DuplicateLabel

from hyperfarm import bundle
from hyperfarm.controller import algorithms
from hyperfarm.controller.compiling import check_has_parameters
from hyperfarm.controller.experiment import Experiment, Request, open_experiment
from hyperfarm.controller.hyperopt_workers import make_room_for_hyperopt, nothing_to_run
from hyperfarm.controller.local_workers import HURRIED_STOP_S, LocalWorker, local_worker
from hyperfarm.controller.plan import Reason
from hyperfarm.controller.points import points_of_space
from hyperfarm.controller.progress import Progress
from hyperfarm.controller.search import Limits, Search
from hyperfarm.controller.suggesting import Suggester
from hyperfarm.controller.warm_start import check_names, evidence_for
from hyperfarm.errors import DatabaseError, HyperfarmError, UsageError
from hyperfarm.jobs import TrialLimits
from hyperfarm.mongo import hide_password, within
from hyperfarm.retry import patiently
from hyperfarm.trials import MongoTrials

log = logging.getLogger("hyperfarm")
STOP_S = 1.2


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is to be searched: objective and space, with all that describes the experiment.

    `include` names further files and folders that the objective needs; `script` the file it comes from;
    `trial_limits` bound each trial that is queued from now on; `points` (label to value) are tried first; the
    algorithm knows the trials of the experiments `warm_start` too;
    `for_hyperopt`: hyperopt's own workers may join, and what its own `fmin` has begun is carried on.
    """

    fn: Callable[..., Any]
    space: Any
    algo: Any = None
    max_evals: int | None = None
    seed: int | None = None
    extend: bool = False
    grow: bool = False
    replace_code: bool = False
    hyperopt_losses: bool = False
    pass_expr_memo_ctrl: bool | None = None
    trial_limits: TrialLimits = field(default_factory=TrialLimits)
    points: Sequence[Mapping[str, Any]] = ()
    warm_start: Sequence[str] = ()
    for_hyperopt: bool = False
    include: Sequence[Path] = ()
    script: Path | None = None


def make_domain(job: Job) -> Domain:
    """hyperopt's Domain of the search. Raises UsageError for a space that hyperopt cannot take."""
    check_has_parameters(job.space)
    try:
        return Domain(job.fn, job.space, pass_expr_memo_ctrl=job.pass_expr_memo_ctrl)
    except DuplicateLabel as error:
        raise UsageError(f"two parameters of the space have the same name: {error}") from error
    except Exception as error:
        raise UsageError(f"the search space is not usable: {type(error).__name__}: {error}") from error


def check_objective(fn: Any) -> None:
    """Raise UsageError for an objective that is not callable."""
    if not callable(fn):
        raise UsageError(f"the objective must be a function, not {type(fn).__name__}")


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a search ended."""

    reason: Reason
    experiment: Experiment
    elapsed_s: float


def search(
    trials: MongoTrials,
    job: Job,
    limits: Limits,
    *,
    show: bool,
    workers: int = 0,
    url: str = "",
) -> Ended:
    """Run a search of `trials`'s experiment to its end; Ctrl-C ends it tidily (Reason.INTERRUPTED).

    `workers` slots run on this machine during the search, for which `url` is needed.
    """
    check_objective(job.fn)
    exp_key = trials.exp_key
    if exp_key is None and not job.for_hyperopt:
        raise UsageError("a search needs an experiment: give exp_key (MongoTrials(url, exp_key=...))")
    if workers < 0:
        raise UsageError(f"workers is {workers}; it must be 0 or more")
    algo = algorithms.checked(job.algo)
    domain = make_domain(job)
    algo.prepare(domain)
    points = points_of_space(job.points, job.space)
    packed = bundle.pack(
        job.fn,
        job.space,
        pass_expr_memo_ctrl=job.pass_expr_memo_ctrl,
        include=job.include,
        script=job.script,
    )
    request = Request(
        exp_key=exp_key,
        bundle=packed,
        space=job.space,
        algo=algo.name,
        max_evals=job.max_evals,
        trial_limits=job.trial_limits,
        points=len(points),
        seed=job.seed,
        extend=job.extend,
        grow=job.grow,
        replace_code=job.replace_code or (job.for_hyperopt and nothing_to_run(trials)),
        hyperopt_losses=job.hyperopt_losses,
    )
    patience_s = limits.patience_s
    patiently(lambda: check_names(trials.store, exp_key, job.warm_start), patience_s=patience_s)
    experiment = patiently(
        lambda: open_experiment(trials.store, trials.blobs, request), patience_s=patience_s
    )
    if job.for_hyperopt:
        patiently(lambda: make_room_for_hyperopt(trials, domain, packed), patience_s=patience_s)
    patiently(lambda: trials.local.refresh(full=True), patience_s=patience_s)
    evidence = patiently(lambda: evidence_for(trials, job.warm_start, job.space), patience_s=patience_s)
    suggester = Suggester(
        trials=trials,
        experiment=experiment,
        domain=domain,
        algo=algo,
        points=points,
        evidence=evidence.docs,
        fields={"bundle": experiment.revision, **job.trial_limits.fields},
    )
    hint = (
        "no worker serves this experiment; start one, here or on another host: hyperfarm worker --mongo "
        f"{hide_password(url) if url else 'URL'}"
    )
    with Progress(exp_key or "search", hint) if show else contextlib.nullcontext() as progress:
        say = progress.say if progress is not None else log.info
        for line in evidence.told:
            say(line)
        with local_worker(url, exp_key or "", workers, say, patience_s) as local:
            loop = Search(
                trials,
                suggester,
                limits,
                progress,
                check=lambda loop: _check(loop, local),
                trial_limits=job.trial_limits,
            )
            reason = _run(loop)
            if local is not None and loop.abandoned:
                local.stop_s = HURRIED_STOP_S
        # The jobs that the local worker gave back go with the rest of the queue.
        if local is not None and reason is not Reason.COMPLETE and not loop.abandoned:
            with contextlib.suppress(DatabaseError), within(STOP_S):
                trials.store.withdraw_queued(exp_key)
                trials.refresh()
    return Ended(reason=reason, experiment=experiment, elapsed_s=loop.elapsed_s)


def _run(loop: Search) -> Reason:
    """Run the loop; a stop that the database holds up is cut short, as nothing is lost by it."""
    try:
        with interruptible(loop):
            return loop.run()
    except KeyboardInterrupt:
        if not loop.stop_requested:
            raise
        loop.abandoned = True
        return Reason.INTERRUPTED


def _check(loop: Search, local: LocalWorker | None) -> None:
    """With a worker of our own, its end or its refusal is ours: nobody else may ever come."""
    if local is not None:
        local.check()
        refusal = loop.refusal_of(socket.gethostname(), local.process.pid)
        if refusal is not None:
            raise HyperfarmError(refusal)


@contextlib.contextmanager
def interruptible(loop: Search) -> Iterator[None]:
    """Let the first SIGINT or SIGTERM end the search tidily.

    A second one, or STOP_S without an end (the database may be away), raises KeyboardInterrupt.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, _frame: FrameType | None) -> None:
        if loop.stop_requested:
            raise KeyboardInterrupt
        loop.stop_requested = True
        signal.setitimer(signal.ITIMER_REAL, STOP_S, STOP_S)

    watched = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
    before = {number: signal.signal(number, handle) for number in watched}
    try:
        yield
    finally:
        if loop.stop_requested:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
