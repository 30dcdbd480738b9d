"""MongoTrials: the farm's jobs as hyperopt's `fmin` and hyperopt's algorithms see them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from hyperopt.base import JOB_VALID_STATES, Trials

from hyperfarm.blobs import Blobs
from hyperfarm.jobs import JobDoc, JobState
from hyperfarm.store import Store
from hyperfarm.view import View


class MongoTrials(Trials):  # type: ignore[misc]
    """hyperopt's Trials, kept in MongoDB and evaluated by the workers of the farm.

    `MongoTrials("mongo://host:port/db/jobs", exp_key="mnist")` goes where hyperopt's own does:
    `hyperopt.fmin(objective, space, algo=tpe.suggest, max_evals=100, trials=trials)`. `exp_key=None` sees
    the jobs of all experiments, and cannot be given to `fmin`.

    Raises SettingsError for a malformed URL, DatabaseUnavailable within 5 s when no server answers.
    """

    asynchronous = True
    for_hyperopt = False
    """True: hyperopt's own workers may join, and trials that hyperopt's own `fmin` has made count."""
    replace_code = False
    """True: `fmin` goes on with another objective where one was begun."""
    _points: Sequence[Mapping[str, Any]] = ()

    def __init__(self, arg: str | Store, exp_key: str | None = None, refresh: bool = True) -> None:
        self.store = Store.open(arg) if isinstance(arg, str) else arg
        self.blobs = Blobs(self.store.database)
        self.local = View(self.store, exp_key)
        super().__init__(exp_key=exp_key, refresh=refresh)

    @property
    def exp_key(self) -> str | None:
        key: str | None = self._exp_key
        return key

    def view(self, exp_key: str | None = None, refresh: bool = True) -> MongoTrials:
        """Another handle on the same database, for another experiment."""
        return type(self)(self.store, exp_key=exp_key, refresh=refresh)

    def refresh(self) -> None:
        """Bring the local copy up to date; the cost grows with what changed."""
        self.local.refresh()
        self.show_local()

    def show_local(self) -> None:
        """Make what the local copy holds visible in `trials`, without asking the database."""
        self._dynamic_trials = self.local.jobs()
        self._trials = [doc for doc in self._dynamic_trials if doc["state"] in JOB_VALID_STATES]

    def new_trial_ids(self, n: int) -> list[int]:
        return self.store.new_tids(n)

    def _insert_trial_docs(self, docs: list[JobDoc]) -> list[int]:
        """Queue jobs; return the tids of those that were inserted (see `Store.insert_jobs`)."""
        inserted = self.store.insert_jobs(docs)
        kept = [doc for doc in docs if doc["tid"] in inserted]
        self.local.put(kept)
        return [doc["tid"] for doc in kept]

    def count_by_state_unsynced(self, arg: Any) -> int:
        self.local.refresh()
        wanted = {arg} if isinstance(arg, int) else set(arg)
        return sum(doc["state"] in wanted for doc in self.local.jobs())

    def delete_all(self) -> None:
        """Delete the jobs of this experiment (of all, without an exp_key) with all that belongs to them."""
        from hyperfarm.removal import remove

        keys = [self.exp_key] if self.exp_key is not None else list({doc["exp_key"] for doc in self._all()})
        for key in keys:
            remove(self.store, self.blobs, key)
        self.local = View(self.store, self.exp_key)
        self.refresh()

    def _all(self) -> list[JobDoc]:
        self.local.refresh(full=True)
        return self.local.jobs()

    def trial_attachments(self, trial: JobDoc) -> TrialAttachments:
        """The attachments of one trial, by name."""
        return TrialAttachments(self, trial)

    def fmin(
        self,
        fn: Callable[..., Any],
        space: Any,
        algo: Any = None,
        max_evals: int | None = None,
        timeout: float | None = None,
        loss_threshold: float | None = None,
        max_queue_len: int = 1,
        rstate: Any = None,
        verbose: bool = True,
        pass_expr_memo_ctrl: bool | None = None,
        catch_eval_exceptions: bool = False,
        return_argmin: bool = True,
        show_progressbar: bool = True,
        early_stop_fn: Callable[..., Any] | None = None,
        trials_save_file: str = "",
        points_to_evaluate: Sequence[Mapping[str, Any]] | None = None,
    ) -> Any:
        """hyperopt's `fmin` on the farm; `hyperopt.fmin(..., trials=self)` comes here.

        As there, `max_evals` counts the trials of the experiment in all, and the best point is returned.
        `max_queue_len` is ours to choose, and exceptions of the objective are always stored, never raised
        here. Returns within about a second after `timeout`, also with trials still running: they go on, and
        count when the search is carried on. `points_to_evaluate` (dicts, label to value, of a choice its index)
        are the first trials of the experiment, and part of `max_evals`. `early_stop_fn` is called once for each
        trial that ends with a loss, which is then the last of the trials that it is shown.
        """
        from hyperfarm.controller.fmin import fmin

        return fmin(
            self,
            fn,
            space,
            algo=algo,
            max_evals=max_evals,
            timeout=timeout,
            loss_threshold=loss_threshold,
            rstate=rstate,
            pass_expr_memo_ctrl=pass_expr_memo_ctrl,
            return_argmin=return_argmin,
            show_progressbar=bool(show_progressbar) and verbose,
            early_stop_fn=early_stop_fn,
            points=points_to_evaluate or self._points,
        )

    @contextlib.contextmanager
    def beginning_with(self, points: Sequence[Mapping[str, Any]]) -> Iterator[None]:
        """Have every `fmin` within the block try these points first."""
        before, self._points = self._points, points
        try:
            yield
        finally:
            self._points = before

    def finished(self) -> list[JobDoc]:
        """The finished jobs of the local copy, also failed ones (`trials` leaves those out, as hyperopt does)."""
        return [doc for doc in self.local.jobs() if JobState(doc["state"]).is_finished]


class TrialAttachments(Mapping[str, bytes]):
    """The attachments of one trial, readable by name; only a running trial can add any."""

    def __init__(self, trials: MongoTrials, trial: JobDoc) -> None:
        self._trials, self._trial = trials, trial

    def _names(self) -> list[str]:
        return [name for name, _ in self._trial.get("_attachments", ())]

    def __getitem__(self, name: str) -> bytes:
        return self._trials.blobs.read_attachment(self._trial, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names())

    def __len__(self) -> int:
        return len(self._names())
