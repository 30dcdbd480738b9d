"""Ask and tell: a search for people who run the objective themselves."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar

from hyperopt import space_eval

from hyperfarm.api import database_url
from hyperfarm.controller import algorithms
from hyperfarm.controller.experiment import Experiment, Request, open_experiment
from hyperfarm.controller.known_space import describe
from hyperfarm.controller.leases import Leases
from hyperfarm.controller.points import points_of_space
from hyperfarm.controller.session import Job, make_domain
from hyperfarm.controller.suggesting import Suggester
from hyperfarm.controller.warm_start import check_names, evidence_for
from hyperfarm.errors import BudgetSpent, DatabaseError, InvalidResult, LeaseLost, UsageError
from hyperfarm.jobs import (
    DEFAULT_LEASE_S,
    DEFAULT_MAX_ATTEMPTS,
    STUDY_OWNER,
    Claim,
    JobDoc,
    JobState,
    TrialLimits,
)
from hyperfarm.mongo import Document
from hyperfarm.results import interpret
from hyperfarm.retry import PATIENCE_S, patiently
from hyperfarm.store import new_token
from hyperfarm.trials import MongoTrials
from hyperfarm.values import encode_keys, to_plain

T = TypeVar("T")
log = logging.getLogger("hyperfarm")
LOOK_EVERY_S = 0.5
"""So often `for trial in study` looks whether another process has given its trial back."""
CLOSE_S = 2.0


class AskedTrial:
    """A point to evaluate, in this process's hands until it is told or its lease is lost.

    `params`: the point as an objective would get it. `number` counts from 0 within the study, `tid` is unique in
    the database, `attempt` counts from 1 how often the point was handed out.
    """

    def __init__(self, study: Study, claim: Claim) -> None:
        self._study, self.claim = study, claim
        self.tid, self.number, self.attempt = claim.tid, int(claim.doc["slot"]), claim.attempt
        self.values = {label: vals[0] for label, vals in claim.doc["misc"]["vals"].items() if vals}
        self.params: Any = space_eval(study.space, self.values)
        self.began = time.monotonic()

    def report(self, loss: float | None = None, step: int | None = None, **values: Any) -> None:
        """Store intermediate values, as `trial.report` does in a worker. Raises LeaseLost."""
        given = {**values, "loss": loss, "step": step}
        plain = to_plain({name: value for name, value in given.items() if value is not None}, where="report")
        reports = [plain] if plain else []
        self._study.send(lambda: self._study.store.add_reports(self.claim, reports))

    def __repr__(self) -> str:
        return f"<trial {self.number}: {self.params!r}>"


class Study:
    """A search whose objective runs wherever you call it; workers have no part in it.

        with hyperfarm.Study(space, exp_key="lab", max_evals=40) as study:
            for trial in study:
                study.tell(trial, measure(trial.params))

    Any number of processes may open the same study: together they are handed out exactly `max_evals` trials
    (None: no limit). A trial that was asked is held under a lease of `lease` seconds, renewed by a thread while
    this process lives. If the process dies, or closes the study, the trial is handed out again, before any new
    point; after `max_attempts` processes that died it has failed. `mongo`, `algo`, `seed`, `extend`,
    `points_to_evaluate`, `warm_start` and `patience` are those of `minimize`.

    Raises UsageError for a space or an option that makes no sense, ExperimentConflict when `exp_key` was begun
    with another space, seed or budget, or is a search that workers run.
    """

    def __init__(
        self,
        space: Any,
        *,
        exp_key: str,
        mongo: str | None = None,
        algo: str | Callable[..., Any] = "tpe",
        max_evals: int | None = None,
        seed: int | None = None,
        lease: float = DEFAULT_LEASE_S,
        max_attempts: int = DEFAULT_MAX_ATTEMPTS,
        extend: bool = False,
        points_to_evaluate: Sequence[Mapping[str, Any]] = (),
        warm_start: str | Sequence[str] = (),
        patience: float = PATIENCE_S,
    ) -> None:
        if not lease > 0:
            raise UsageError(f"lease is {lease}; it must be a number of seconds above 0")
        limits = TrialLimits(max_attempts=max_attempts)
        suggest = algorithms.checked(algo)
        domain = make_domain(Job(fn=_nobody, space=space))
        suggest.prepare(domain)
        describe(space)
        points = points_of_space(points_to_evaluate, space)
        self.space, self.exp_key, self._patience_s = space, exp_key, patience
        self.trials = MongoTrials(database_url(mongo), exp_key=exp_key, refresh=False)
        self.store = self.trials.store
        names = [warm_start] if isinstance(warm_start, str) else list(warm_start)
        self.send(lambda: check_names(self.store, exp_key, names))
        request = Request(
            exp_key=exp_key,
            bundle=None,
            space=space,
            algo=suggest.name,
            max_evals=max_evals,
            trial_limits=limits,
            points=len(points),
            seed=seed,
            extend=extend,
        )
        self.experiment: Experiment = self.send(
            lambda: open_experiment(self.store, self.trials.blobs, request)
        )
        self.send(lambda: self.trials.local.refresh(full=True))
        evidence = self.send(lambda: evidence_for(self.trials, names, space))
        self._suggester = Suggester(
            trials=self.trials,
            experiment=self.experiment,
            domain=domain,
            algo=suggest,
            points=points,
            evidence=evidence.docs,
            fields={"ask_and_tell": True, "owner": STUDY_OWNER, **limits.fields},
        )
        self._worker = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._leases = Leases(self.store, lease)
        self._lock = threading.RLock()
        self._held: dict[str, AskedTrial] = {}
        self._closed = False

    def send(self, call: Callable[[], T]) -> T:
        """Carry out a statement that may be repeated, waiting for the database while it is away."""
        return patiently(call, patience_s=self._patience_s)

    # ---- asking ------------------------------------------------------------------------------------

    def ask(self) -> AskedTrial:
        """A trial to evaluate: one that was given back or queued by hand, else a new point.

        Raises BudgetSpent when every trial of the budget is finished or in somebody's hands, UsageError when the
        study was closed, cancelled or removed.
        """
        with self._lock:
            if self._closed:
                raise UsageError(f"study {self.exp_key} is closed")
            while True:
                budget = self._budget()
                claim = self._claim()
                if claim is None:
                    self._queue_new(budget)
                elif (trial := self._handed_out(claim)) is not None:
                    return trial

    def __iter__(self) -> Iterator[AskedTrial]:
        """Ask until the budget is used up; waits for trials that other processes hold, as these may die."""
        while True:
            try:
                trial = self.ask()
            except BudgetSpent:
                if not self._others_hold_some():
                    return
                time.sleep(LOOK_EVERY_S)
            else:
                yield trial

    def _budget(self) -> int:
        doc = self.send(lambda: self.store.experiment(self.exp_key))
        if doc is None or doc["uid"] != self.experiment.uid:
            raise UsageError(f"study {self.exp_key} was removed")
        if doc["state"] == "cancelled":
            raise UsageError(f"study {self.exp_key} was cancelled; open it again to carry it on")
        budget: int = doc["max_evals"]
        return budget

    def _claim(self) -> Claim | None:
        """Claim a job that waits. After an unknown outcome it is first looked whether the claim took effect."""
        token, lease_s, sent = new_token(), self._leases.lease_s, False

        def claim() -> Claim | None:
            nonlocal sent
            if sent and (found := self.store.claimed(token)) is not None:
                return found
            sent = True
            owner = f"{socket.gethostname()}:{os.getpid()}"
            return self.store.claim(
                self.exp_key, worker=self._worker, owner=owner, token=token, lease_s=lease_s, of_study=True
            )

        claimed = self.send(claim)
        if claimed is not None:
            self._leases.hold(token)
        return claimed

    def _handed_out(self, claim: Claim) -> AskedTrial | None:
        """The trial; None when the space cannot be evaluated at its point, which fails it as on a worker."""
        token = claim.lease.token
        try:
            self._held[token] = AskedTrial(self, claim)
        except Exception as error:  # noqa: BLE001 - a space may hold anything
            failure = _failure(error)
            log.warning("trial %s has failed: %s", claim.doc["slot"], ": ".join(failure["error"]))
            with contextlib.suppress(LeaseLost):
                self.send(lambda: self.store.finish(claim, JobState.ERROR, failure))
            self._leases.let_go(token)
        return self._held.get(token)

    def _queue_new(self, budget: int) -> None:
        """Insert a job with a new point, for whoever claims it first. Raises BudgetSpent."""
        local = self.trials.local
        self.send(self.trials.refresh)
        slots = self._free(budget)
        if not slots:
            self.send(lambda: local.refresh(full=True))
            slots = self._free(budget)
        if not slots:
            raise BudgetSpent(self._why_nothing(budget))
        (tid,) = self.send(lambda: self.trials.new_trial_ids(1))
        doc = self._suggester.suggest(tid, slots[0])
        if doc is None:
            raise BudgetSpent(f"the algorithm has no further points for study {self.exp_key}")
        if not self.send(lambda: self.trials._insert_trial_docs([doc])):
            self.send(lambda: local.refresh(full=True))  # Another process has taken the slot.

    def _free(self, budget: int) -> list[int]:
        local = self.trials.local
        return local.free_slots(1, budget) if len(local.slots()) < budget else []

    def _why_nothing(self, budget: int) -> str:
        open_ = len(self.trials.local.unfinished())
        held = f", of which {open_} are not told yet" if open_ else ""
        return (
            f"the budget of study {self.exp_key} is used up: {budget} trials{held}; raise it by extend=True"
        )

    def _others_hold_some(self) -> bool:
        tokens = {(doc.get("lease") or {}).get("token") for doc in self.trials.local.unfinished()}
        return bool(tokens - self._held.keys())

    # ---- telling -----------------------------------------------------------------------------------

    def tell(
        self,
        trial: AskedTrial,
        result: float | Mapping[str, Any] | None = None,
        *,
        status: str | None = None,
        error: str | BaseException | None = None,
    ) -> None:
        """Store the outcome of a trial: a loss, a dict with `loss` and more, or status='fail' with the error.

        A loss of NaN or -infinity fails the trial, as in `minimize`. Raises LeaseLost, and stores nothing, when
        the lease was lost meanwhile and the trial is another's; InvalidResult for what is no result (tell again);
        UsageError for a trial that was told already.
        """
        token = trial.claim.lease.token
        with self._lock:
            if self._held.get(token) is not trial:
                raise UsageError(
                    f"trial {trial.number} of study {self.exp_key} was told, or given back, already"
                )
        state, fields = self._outcome(trial, result, status, error)
        try:
            self.send(lambda: self.store.finish(trial.claim, state, fields))
        except LeaseLost:
            self._forget(token)
            raise
        self._forget(token)

    def _outcome(
        self, trial: AskedTrial, result: Any, status: str | None, error: str | BaseException | None
    ) -> tuple[JobState, Document]:
        fields: Document = {"duration": time.monotonic() - trial.began}
        if status not in (None, "ok", "fail"):
            raise UsageError(f"status is {status!r}; it must be 'ok' or 'fail'")
        if error is None and status != "fail":
            found = interpret(result, hyperopt_losses=True)
            try:
                interpret(result, hyperopt_losses=False)
            except InvalidResult as invalid:
                error = invalid
            else:
                plain = to_plain(found)
                stored = self.send(lambda: self.trials.blobs.externalise(plain, trial.claim))
                return JobState.DONE, {**fields, "result": encode_keys(stored)}
        return JobState.ERROR, fields | _failure(error or "it was told to have failed")

    def _forget(self, token: str) -> None:
        self._leases.let_go(token)
        with self._lock:
            self._held.pop(token, None)

    # ---- looking and leaving -----------------------------------------------------------------------

    @property
    def best_trial(self) -> JobDoc | None:
        """The document of the trial with the lowest loss of all that were told, None while there is none."""
        with self._lock:
            self.send(self.trials.refresh)
            return self.trials.local.best()

    @property
    def best(self) -> Any:
        """The best point as an objective would get it, None while there is none."""
        doc = self.best_trial
        if doc is None:
            return None
        return space_eval(self.space, {label: vals[0] for label, vals in doc["misc"]["vals"].items() if vals})

    @property
    def best_loss(self) -> float | None:
        """The lowest loss that was told, None while there is none."""
        doc = self.best_trial
        return None if doc is None else doc["result"]["loss"]

    def close(self) -> None:
        """Give back the trials that were not told; they are handed out again at once. Safe to call again."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            held, self._held = list(self._held.values()), {}
        self._leases.close()
        for trial in held:
            with contextlib.suppress(DatabaseError):  # Then the lease expires.
                self._give_back(trial.claim)

    def _give_back(self, claim: Claim) -> None:
        patiently(lambda: self.store.release(claim, "its study was closed"), patience_s=CLOSE_S)

    def __enter__(self) -> Study:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _failure(error: BaseException | str) -> Document:
    """What is stored of a failed trial."""
    if isinstance(error, str):
        return {"error": ["Failed", error[:4000]], "result": {"status": "fail"}}
    return {
        "error": [type(error).__name__, str(error)[:4000]],
        "traceback": "".join(traceback.format_exception(error))[-60_000:],
        "result": {"status": "fail"},
    }


def _nobody(point: Any) -> float:
    """The objective of a study: it is never called."""
    raise NotImplementedError
