"""hyperopt's MongoTrials as programs written for hyperopt.mongoexp know it, on the farm's store."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from typing import Any

from gridfs import NoFile
from hyperopt.base import JOB_STATES, InvalidTrial

from hyperfarm import protocols, settings
from hyperfarm.blobs import Blobs
from hyperfarm.errors import BundleError, ExperimentConflict
from hyperfarm.jobs import JobDoc, JobState
from hyperfarm.mongo import Document
from hyperfarm.mongo_jobs import MongoJobs, OperationFailure
from hyperfarm.queries import NO_KEY
from hyperfarm.store import Store
from hyperfarm.trials import MongoTrials as FarmTrials
from hyperfarm.view import View, WholeView


class InvalidMongoTrial(InvalidTrial):  # type: ignore[misc]
    """A document that is no trial."""


class DomainSwapError(ExperimentConflict):
    """The experiment still has trials of another objective or space to run, and nobody asked to change it."""


class MongoTrials(FarmTrials):
    """`hyperopt.mongoexp.MongoTrials`, evaluated by the farm's workers and by hyperopt's own.

    `arg`: `mongo://host:port/db/jobs`, any address that hyperfarm takes, or a MongoJobs. `exp_key=None` sees the
    jobs of all experiments; its own `fmin` runs under no key. `replace_code`: `fmin` may exchange the objective
    of an experiment that has trials to run (else DomainSwapError).

    Times in the documents have no zone and are UTC, as in hyperopt. Raises SettingsError for an address that is
    not understood, DatabaseUnavailable within 5 s when no server answers.
    """

    def __init__(
        self,
        arg: str | MongoJobs,
        exp_key: str | None = None,
        cmd: Any = None,
        workdir: str | None = None,
        refresh: bool = True,
        *,
        replace_code: bool = False,
    ) -> None:
        self.handle = arg if isinstance(arg, MongoJobs) else MongoJobs.new_from_connection_str(arg)
        self.cmd, self.workdir, self.replace_code = cmd, workdir, replace_code
        self.for_hyperopt = True
        self._searching = False
        super().__init__(Store.of(self.handle.db), exp_key=exp_key, refresh=False)
        if exp_key is None:
            self.local = WholeView(self.store)
        if refresh:
            self.refresh()

    def view(  # type: ignore[override]
        self,
        exp_key: str | None = None,
        cmd: Any = None,
        workdir: str | None = None,
        refresh: bool = True,
    ) -> MongoTrials:
        """Another handle on the same database; what is None stays as it is here."""
        return type(self)(
            self.handle,
            exp_key=self._exp_key if exp_key is None else exp_key,
            cmd=self.cmd if cmd is None else cmd,
            workdir=self.workdir if workdir is None else workdir,
            refresh=refresh,
        )

    # ---- reading -----------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Bring the local copy up to date: all that anybody has done to the jobs before this call is seen."""
        self.refresh_tids(None)

    def refresh_tids(self, tids: Iterable[int] | None) -> None:
        """Bring the jobs with these tids up to date (None: all); the others stay as they are here."""
        if tids is None:
            self.local.refresh(full=not self._searching)
        else:
            wanted = list(tids)
            found = self.store.jobs_by_tid(self.local.exp_key, wanted)
            self.local.forget(set(wanted) - {doc["tid"] for doc in found})
            self.local.put(found)
        self.show_local()

    def count_by_state_unsynced(self, arg: Any) -> int:
        """How many jobs in the database are in this state, or in one of these. Raises ValueError."""
        states = [arg] if isinstance(arg, int) else list(arg)
        if not set(states) <= set(JOB_STATES):
            raise ValueError("invalid state", arg)
        return self.store.count_jobs(self.local.exp_key, [JobState(state) for state in states])

    @property
    def attachments(self) -> ExperimentAttachments:
        """Files that belong to the experiment as a whole, by name: bytes; text is stored as UTF-8."""
        return ExperimentAttachments(self.blobs, self.handle, self._exp_key)

    @attachments.setter
    def attachments(self, value: Any) -> None:
        """hyperopt's own constructor sets an empty dict here."""

    def trial_attachments(self, trial: JobDoc) -> TrialAttachments:  # type: ignore[override]
        """The files of one trial, by name."""
        return TrialAttachments(self.handle, trial)

    # ---- writing -----------------------------------------------------------------------------------

    def _insert_trial_docs(self, docs: list[JobDoc]) -> list[int]:
        """Queue jobs; what they want to run is signed, so that the farm's workers run it."""
        for doc in docs:
            if "bundle" not in doc:
                with contextlib.suppress(BundleError):  # Documents that nobody is to run may say anything.
                    command = protocols.parse(doc["misc"].get("cmd"))
                    doc["cmd_signature"] = protocols.sign(settings.farm_secret(), command, doc["exp_key"])
        return super()._insert_trial_docs(docs)

    def delete_all(self, cond: Document | None = None) -> None:
        """Delete the jobs of this experiment that match `cond`, with all that belongs to them.

        Without `cond` the experiment goes as a whole, its attachments too; without exp_key, all of them.
        """
        if cond:
            own = {} if self._exp_key is None else {"exp_key": self._exp_key}
            docs = self.store.delete_jobs({**cond, **own})
            self.blobs.delete_of_jobs(docs)
        elif self._exp_key is not None:
            super().delete_all()
            return
        else:
            self._delete_everything()
        self.refresh()

    def _delete_everything(self) -> None:
        from hyperfarm.removal import remove

        for key in {doc["exp_key"] for doc in self._all()} | {doc["_id"] for doc in self.store.experiments()}:
            remove(self.store, self.blobs, key)
        for file in self.handle.gfs.find({"exp_key": None, "metadata.exp_key": {"$exists": False}}):
            self.handle.gfs.delete(file._id)

    # ---- searching ---------------------------------------------------------------------------------

    def fmin(self, fn: Callable[..., Any], space: Any, *args: Any, **kwargs: Any) -> Any:
        """hyperopt's `fmin` on the farm, with the arguments of hyperfarm.trials.MongoTrials.fmin.

        Trials that hyperopt itself has left in the experiment count, and go on. Raises DomainSwapError when the
        experiment still has trials of another objective to run.
        """
        scoped = self
        if self._exp_key is None:  # A search is about one experiment: the jobs without a key.
            scoped = copy.copy(self)
            scoped.local = View(self.store, NO_KEY)
        scoped._searching = True
        try:
            return super(MongoTrials, scoped).fmin(fn, space, *args, **kwargs)
        except ExperimentConflict as conflict:
            raise DomainSwapError(str(conflict)) from conflict
        finally:
            scoped._searching = False
            if scoped is not self:
                self.refresh()


class ExperimentAttachments:
    """Files beside an experiment, by name, as hyperopt keeps them; what is put in is signed.

    Without exp_key: the files of no experiment are written, those of all are seen, as in hyperopt.
    """

    def __init__(self, blobs: Blobs, handle: MongoJobs, exp_key: str | None) -> None:
        self._blobs, self._gfs, self._exp_key = blobs, handle.gfs, exp_key
        self._query: Document = {} if exp_key is None else {"exp_key": exp_key}

    def __iter__(self) -> Iterator[str]:
        return iter(sorted({file.filename for file in self._gfs.find(self._query) if file.filename}))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __contains__(self, name: object) -> bool:
        return bool(self._gfs.exists(filename=name, **self._query))

    def __getitem__(self, name: str) -> bytes:
        """Raises KeyError."""
        try:
            data: bytes = self._gfs.get_last_version(filename=name, **self._query).read()
        except NoFile:
            raise KeyError(name) from None
        return data

    def __setitem__(self, name: str, value: bytes | str) -> None:
        data = value.encode() if isinstance(value, str) else bytes(value)
        signature = protocols.sign_attachment(settings.farm_secret(), data, self._exp_key, name)
        self._blobs.put_experiment_attachment(self._exp_key, name, data, signature)

    def __delitem__(self, name: str) -> None:
        """Raises KeyError."""
        found = list(self._gfs.find({"filename": name, **self._query}))
        if not found:
            raise KeyError(name)
        for file in found:
            self._gfs.delete(file._id)


class TrialAttachments(MutableMapping[str, bytes]):
    """The files of one trial, by name; `trial` is brought up to date by what is written."""

    def __init__(self, handle: MongoJobs, trial: JobDoc) -> None:
        self._handle, self._trial = handle, trial

    def __iter__(self) -> Iterator[str]:
        return iter(self._handle.attachment_names(self._trial))

    def __len__(self) -> int:
        return len(self._handle.attachment_names(self._trial))

    def __getitem__(self, name: str) -> bytes:
        """Raises KeyError."""
        try:
            return self._handle.get_attachment(self._trial, name)
        except OperationFailure:
            raise KeyError(name) from None

    def __setitem__(self, name: str, value: bytes | str) -> None:
        self._handle.set_attachment(self._trial, value, name)

    def __delitem__(self, name: str) -> None:
        """Raises KeyError."""
        if name not in self._handle.attachment_names(self._trial):
            raise KeyError(name)
        self._handle.delete_attachment(self._trial, name)
