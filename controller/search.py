"""The search loop: asks the algorithm for points, queues them as jobs, follows what becomes of them."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from hyperfarm.controller import plan
from hyperfarm.controller.early_stop import EarlyStop
from hyperfarm.controller.plan import Reason, Situation
from hyperfarm.controller.suggesting import Suggester
from hyperfarm.errors import DatabaseError, DatabaseUnavailable, OutcomeUnknown, UsageError
from hyperfarm.jobs import JobDoc, JobState, TrialLimits, is_parked
from hyperfarm.mongo import Document
from hyperfarm.reaping import Reaper
from hyperfarm.retry import PATIENCE_S, patiently
from hyperfarm.trials import MongoTrials
from hyperfarm.wakeup import Wakeup

FLUSH_S = 0.02
"""Suggestions are inserted at least this often, so that slots need not wait for a slow algorithm."""
LOOK_AT_WORKERS_S = 1.0
TICK_S = 0.5
"""Time limits and the display are looked after this often, also without news."""
REAP_EVERY_S = 5.0
STANDALONE_POLL_S = 0.1
RATE_WINDOW_S = 10.0
_DEFAULT_LIMITS = TrialLimits()


@dataclass(frozen=True, kw_only=True)
class Limits:
    """When a search stops before its budget is used up, and how much of it goes on at once.

    `timeout_s` counts from the start of `run`; `max_evals` is a number of finished trials below the budget;
    `early_stop_fn` see EarlyStop; at most `max_concurrent` trials wait or run (None: as many as there are slots).
    Points that people put into the queue do not wait for that, and two controllers may pass it for a moment.
    `patience_s` is how long it waits for a MongoDB that is away.
    """

    timeout_s: float | None = None
    max_evals: int | None = None
    loss_threshold: float | None = None
    early_stop_fn: Callable[..., Any] | None = None
    max_concurrent: int | None = None
    patience_s: float = PATIENCE_S

    def __post_init__(self) -> None:
        if self.timeout_s is not None and not self.timeout_s > 0:
            raise UsageError(f"timeout is {self.timeout_s}; it must be a number of seconds above 0")
        if self.max_concurrent is not None and self.max_concurrent < 1:
            raise UsageError(f"max_concurrent is {self.max_concurrent}; it must be 1 or more")


@dataclass(frozen=True, kw_only=True)
class Status:
    """A snapshot for the display. `rate` in trials per second, `best` the doc of the best trial so far."""

    budget: int
    done: int
    failed: int
    queued: int
    running: int
    best: JobDoc | None
    rate: float
    workers: list[Document]
    refusals: list[str]
    elapsed_s: float


class Display(Protocol):
    """What follows a search on the terminal."""

    def update(self, status: Status) -> None: ...


class Search:
    """One run of a controller on one experiment.

    Whatever ends it, queued jobs that nobody has begun are withdrawn (their slots of the budget are free
    again), running ones are left to their workers, and the same call carries the search on.
    """

    def __init__(
        self,
        trials: MongoTrials,
        suggester: Suggester,
        limits: Limits,
        display: Display | None = None,
        check: Callable[[Search], None] = lambda _: None,
        trial_limits: TrialLimits = _DEFAULT_LIMITS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.trials, self.suggester, self.experiment = trials, suggester, suggester.experiment
        self.limits, self.display, self.check, self.clock = limits, display, check, clock
        self.trial_limits = trial_limits
        self.store = trials.store
        self.stop_requested = False
        self.abandoned = False
        self._enough: Reason | None = None
        self._started = clock()
        self._finishes: deque[tuple[float, int]] = deque()
        self._seen_finished = -1
        self._reaction_s = 0.02
        self._next_look = self._next_reap = 0.0
        self._workers: list[Document] = []
        self._refusals: dict[str, str] = {}
        self._busy_elsewhere = 0
        self._reaper = Reaper(self.store)
        self._exhausted = self._cancelled = False
        self.budget = self._within_limit(self.experiment.max_evals)
        stop = limits.early_stop_fn
        self._early_stop = None if stop is None else EarlyStop(stop, trials.exp_key)

    def run(self) -> Reason:
        """Drive the search until it is complete or a limit is reached; return which.

        MongoDB may be away for minutes meanwhile. Raises what `check` and the algorithm raise.
        """
        self._started = self.clock()
        wakeup = Wakeup(self.store, queue_only=False, poll_s=STANDALONE_POLL_S)
        try:
            while True:
                seen = wakeup.generation
                began = self.clock()
                reason, hungry = self._patient_step()
                if reason is not None:
                    return reason
                self._reaction_s += 0.1 * (self.clock() - began + FLUSH_S - self._reaction_s)
                self.check(self)
                # Events come in swarms: with jobs still in the queue there is time to take them together.
                if not hungry:
                    time.sleep(FLUSH_S)
                wakeup.wait(seen, self._time_to_sleep())
        except KeyboardInterrupt:
            self.abandoned = True
            raise
        finally:
            wakeup.close()
            if not self.abandoned:
                self._put_away()

    def _within_limit(self, max_evals: int) -> int:
        return max_evals if self.limits.max_evals is None else min(max_evals, self.limits.max_evals)

    @property
    def _time_is_up(self) -> bool:
        limit = self.limits.timeout_s
        return limit is not None and self.elapsed_s >= limit

    def _patient_step(self) -> tuple[Reason | None, bool]:
        """One step; while MongoDB is away it is waited for, but not beyond a stop or the time limit."""
        try:
            return patiently(
                self._step,
                patience_s=self.limits.patience_s,
                stop=lambda: self.stop_requested or self._time_is_up,
            )
        except (DatabaseUnavailable, OutcomeUnknown):
            self.abandoned = True
            if self.stop_requested:
                return Reason.INTERRUPTED, False
            if self._time_is_up:
                return Reason.TIMEOUT, False
            raise

    def _put_away(self) -> None:
        try:
            self.store.withdraw_queued(self.experiment.exp_key)
            if self.trial_limits.keep_models is not None:  # What a worker that died left undone.
                keep = self.trial_limits.keep_models
                self.trials.blobs.delete(self.store.prune_models(self.experiment.exp_key, keep))
            self.trials.local.refresh(full=True)
            self.trials.show_local()
            self._show(self._situation())
        except DatabaseError:
            self.abandoned = True  # The error that brought us here is on its way; queued jobs are harmless.

    def _time_to_sleep(self) -> float:
        if self.limits.timeout_s is None:
            return TICK_S
        return min(TICK_S, max(0.0, self._started + self.limits.timeout_s - self.clock()))

    def _step(self) -> tuple[Reason | None, bool]:
        """Look, decide, act, once. Returns (the end, if it is one; whether the queue is short of jobs)."""
        self._look_at_workers()
        self.trials.refresh()
        now = self._situation()
        self._show(now)
        reason = self._end(now)
        if reason is not None:
            return reason, False
        wanted = 0 if self._enough else plan.jobs_wanted(now, self.limits.max_concurrent or math.inf)
        if wanted:
            self._queue(wanted)
        return None, wanted > 0 or now.queued == 0

    @property
    def elapsed_s(self) -> float:
        """Seconds since the search began."""
        return self.clock() - self._started

    def refusal_of(self, host: str, pid: int) -> str | None:
        """Why this worker does not serve the experiment, if it has said so."""
        return next(
            (text for name, text in self._refusals.items() if name.startswith(f"{host}:{pid}:")), None
        )

    # ---- looking -----------------------------------------------------------------------------------

    def _look_at_workers(self) -> None:
        now = self.clock()
        if now >= self._next_look:
            key = self.experiment.exp_key
            # Young searches look more often: their workers are just coming up.
            self._next_look = now + min(LOOK_AT_WORKERS_S, 0.1 + 0.2 * (now - self._started))
            serving = [
                worker
                for worker in self.store.live_workers()
                if not worker.get("draining") and key in (worker.get("exp_keys") or [key])
            ]
            revision = self.experiment.revision
            self._refusals = {
                worker["_id"]: f"worker {worker['host']} does not serve {key}: {refusal['reason']}"
                for worker in serving
                for refusal in worker.get("refused", ())
                if refusal["exp_key"] == key and refusal.get("revision") in (None, "", revision)
            }
            self._workers = [worker for worker in serving if worker["_id"] not in self._refusals]
            doc = self.store.experiment(key)
            # Gone, cancelled, or another experiment that has taken the name.
            self._cancelled = doc is None or doc["state"] == "cancelled" or doc["uid"] != self.experiment.uid
            if doc is not None and not self._cancelled:
                self.budget = self._within_limit(doc["max_evals"])
            ours = sum(doc["state"] == JobState.RUNNING for doc in self.trials.local.unfinished())
            self._busy_elsewhere = max(0, self.store.running_count() - ours)
        if now >= self._next_reap:
            self._next_reap = now + REAP_EVERY_S
            self._reaper.look()

    def _situation(self) -> Situation:
        jobs = [doc for doc in self.trials.local.unfinished() if "slot" in doc]
        queued = sum(doc["state"] == JobState.NEW for doc in jobs)
        parked = sum(is_parked(doc) for doc in jobs)
        taken = len(self.trials.local.slots())
        finished = taken - len(jobs)
        return Situation(
            budget=self.budget,
            taken=taken,
            finished=finished,
            queued=queued - parked,
            parked=parked,
            running=len(jobs) - queued,
            live_slots=sum(worker["slots"] - len(worker.get("paused", ())) for worker in self._workers),
            busy_elsewhere=self._busy_elsewhere,
            rate=self._rate(finished),
            reaction_s=self._reaction_s,
        )

    def _rate(self, finished: int) -> float:
        """Trials finished per second within the last seconds."""
        now = self.clock()
        self._finishes.append((now, finished))
        while len(self._finishes) > 2 and self._finishes[1][0] < now - RATE_WINDOW_S:
            self._finishes.popleft()
        (then, before), span = self._finishes[0], now - self._finishes[0][0]
        return (finished - before) / span if span > 0 and then < now else 0.0

    def _end(self, now: Situation) -> Reason | None:
        if self.stop_requested:
            return Reason.INTERRUPTED
        news = now.finished != self._seen_finished
        self._seen_finished = now.finished
        if plan.is_complete(now):
            return Reason.COMPLETE
        if self._time_is_up:
            return Reason.TIMEOUT
        if news and self._enough is None:
            self._enough = self._what_is_enough()
        if self._enough is not None and not self._by_hand_left():
            return self._enough
        if self._exhausted and now.taken == now.finished:
            return Reason.EXHAUSTED
        return Reason.CANCELLED if self._cancelled else None

    def _what_is_enough(self) -> Reason | None:
        """Why no further points are made, by the losses so far."""
        threshold = self.limits.loss_threshold
        best = None if threshold is None else self.trials.local.best()
        if threshold is not None and best is not None and best["result"]["loss"] <= threshold:
            return Reason.THRESHOLD
        if self._early_stop is not None and self._early_stop.says_stop(self.trials.trials):
            return Reason.EARLY_STOP
        return None

    def _by_hand_left(self) -> bool:
        """Whether points that somebody has put into the queue wait or run: those are wanted all the same."""
        return any("enqueued" in doc for doc in self.trials.local.unfinished())

    # ---- acting ------------------------------------------------------------------------------------

    def _queue(self, wanted: int) -> None:
        """Make and insert `wanted` suggestions, each with what is known when it is made."""
        if self._exhausted:
            return
        slots = iter(self.trials.local.free_slots(wanted, self.budget))
        tids = self.trials.new_trial_ids(wanted)
        pending: list[JobDoc] = []
        flushed = self.clock()
        for tid in tids:
            slot = next(slots, None)
            if slot is None or self.stop_requested:
                break
            doc = self.suggester.suggest(tid, slot)
            if doc is None:
                self._exhausted = True
                break
            pending.append(doc)
            # The next suggestion must know of this one, whether it is inserted yet or not.
            self.trials.local.put([doc])
            self.trials.show_local()
            if self.clock() - flushed >= FLUSH_S:
                self._insert(pending)
                pending, flushed = [], self.clock()
                self.trials.refresh()
        self._insert(pending)

    def _insert(self, docs: list[JobDoc]) -> None:
        if not docs:
            return
        try:
            told = self.trials._insert_trial_docs(docs)
        except DatabaseError:
            # Whether they are there or not, the next look at the database tells.
            self.trials.local.forget(doc["tid"] for doc in docs)
            raise
        # A slot that another controller has taken: its job comes in by the next refresh. So do all of them when a
        # subclass's method does not say which were inserted.
        inserted = {one for one in told or () if isinstance(one, int)}
        self.trials.local.forget(doc["tid"] for doc in docs if doc["tid"] not in inserted)
        if len(inserted) < len(docs):
            self.trials.local.refresh(full=True)
            self.trials.show_local()

    # ---- telling -----------------------------------------------------------------------------------

    def _show(self, now: Situation) -> None:
        if self.display is None:
            return
        failed = self.trials.local.count_failed()
        self.display.update(
            Status(
                budget=self.budget,
                done=now.finished - failed,
                failed=failed,
                queued=now.queued + now.parked,
                running=now.running,
                best=self.trials.local.best(),
                rate=now.rate,
                workers=self._workers,
                refusals=list(self._refusals.values()),
                elapsed_s=self.elapsed_s,
            )
        )
