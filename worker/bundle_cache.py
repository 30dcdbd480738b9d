"""The code of the experiments that this host may serve: fetched, verified, unpacked; or refused, with a reason."""

from __future__ import annotations

import logging
import platform
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from hyperfarm import bundle, settings
from hyperfarm.blobs import Blobs
from hyperfarm.errors import (
    BundleError,
    BundleRefused,
    DatabaseError,
    DatabaseUnavailable,
    OutcomeUnknown,
    SettingsError,
)
from hyperfarm.jobs import JobDoc
from hyperfarm.mongo import Document
from hyperfarm.protocols import FMIN_DOMAIN
from hyperfarm.store import Store
from hyperfarm.worker.foreign import ForeignCommands, unpack

log = logging.getLogger("hyperfarm.worker")
Key = str | None

LOOK_AGAIN_S = 60.0
"""What was refused is tried again after this time: a secret may have been copied, a package installed."""


class Refused(Exception):
    """This host cannot or must not run the experiment; the message says why and what to do."""


class NoBundle(Refused):
    """The experiment was not begun by hyperfarm: each of its jobs says by itself what is to be run."""


class UnknownRevision(Exception):
    """The experiment has no code of this revision: the job is left over from another one of that name."""


@dataclass(frozen=True, kw_only=True)
class Code:
    """A verified bundle on this host's disk, with what a slot must know to run it."""

    revision: str
    folder: Path
    hyperopt_losses: bool


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Why the newest code of an experiment is not run here, and until when nobody asks again."""

    revision: str
    reason: str
    until: float


class BundleCache:
    """Verified code by experiment and revision. Thread-safe; the lock is never held over a wait."""

    def __init__(
        self,
        store: Store,
        blobs: Blobs,
        *,
        trust_unsigned: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._blobs, self._clock = store, blobs, clock
        self._foreign = ForeignCommands(blobs, trusting=trust_unsigned)
        self._lock = threading.Lock()
        self._codes: dict[tuple[Key, str], Code] = {}
        self._refused: dict[Key, Refusal] = {}
        self._current: dict[Key, str] = {}
        self._fetching: dict[Key, threading.Lock] = {}
        self._news = False

    def refusals(self) -> list[Document]:
        """What this host refuses, for its document in `workers`."""
        with self._lock:
            return [
                {"exp_key": key, "revision": refusal.revision, "reason": refusal.reason}
                for key, refusal in self._refused.items()
            ]

    def has_news(self) -> bool:
        """True once after the refusals have changed."""
        with self._lock:
            news, self._news = self._news, False
            return news

    def may_serve(self, key: Key) -> bool:
        """True when the newest code of the experiment can be run here.

        A refusal is logged once, and holds for LOOK_AGAIN_S. Raises DatabaseUnavailable or OutcomeUnknown.
        """
        with self._lock:
            refusal = self._refused.get(key)
            if refusal is not None and self._clock() < refusal.until:
                return False
            if (key, self._current.get(key, "")) in self._codes:
                return True
        try:
            self._get_newest(key)
        except (Refused, UnknownRevision):
            return False
        with self._lock:
            if self._refused.pop(key, None) is not None:
                self._news = True
        return True

    def _get_newest(self, key: Key) -> None:
        try:
            self.get(key, None)
        except NoBundle:
            job = self._store.first_waiting(key)
            if job is None:
                raise
            self._get_foreign(job)

    def for_job(self, job: JobDoc) -> Code:
        """Return what a job wants to run: code of its experiment, or what it says itself. Raises as `get` does."""
        key, revision = job.get("exp_key"), job.get("bundle")
        cmd = (job.get("misc") or {}).get("cmd")
        if revision is not None or cmd is None or list(cmd) == ["domain_attachment", FMIN_DOMAIN]:
            try:
                return self.get(key, revision)
            except NoBundle:
                pass
        return self._get_foreign(job)

    def _get_foreign(self, job: JobDoc) -> Code:
        key = job.get("exp_key")
        try:
            command = self._foreign.command_of(job)
            folder = unpack(command, settings.cache_dir() / "foreign")
        except (DatabaseUnavailable, OutcomeUnknown):
            raise
        except (BundleError, SettingsError, DatabaseError, OSError) as error:
            self.refuse(key, "", str(error))
            raise Refused(str(error)) from error
        return Code(revision=command.revision, folder=folder, hyperopt_losses=True)

    def get(self, key: Key, revision: str | None) -> Code:
        """Return the code of a revision (None: the newest).

        Raises Refused; UnknownRevision; DatabaseUnavailable or OutcomeUnknown, which are no refusals.
        """
        with self._lock:
            known = self._codes.get((key, revision or self._current.get(key, "")))
            if known is not None:
                return known
            fetching = self._fetching.setdefault(key, threading.Lock())
        with fetching:
            entry: Document = {"revision": ""}
            try:
                entry = self._entry(key, revision)
                code = self._fetch(key, entry)
            except (DatabaseUnavailable, OutcomeUnknown, UnknownRevision, NoBundle):
                raise
            except (Refused, BundleError, SettingsError, DatabaseError, OSError) as error:
                self.refuse(key, entry["revision"], str(error))
                raise Refused(str(error)) from error
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                # Whoever may write to the database may have written this; it must not end the worker.
                reason = f"what the database says of its code is malformed ({type(error).__name__}: {error})"
                self.refuse(key, entry["revision"], reason)
                raise Refused(reason) from error
        with self._lock:
            self._codes[key, code.revision] = code
        return code

    def refuse(self, key: Key, revision: str, reason: str) -> None:
        """Refuse the experiment for a while (its code cannot be imported here, say)."""
        with self._lock:
            self._codes.pop((key, revision), None)
            before = self._refused.get(key)
            self._refused[key] = Refusal(revision=revision, reason=reason, until=self._clock() + LOOK_AGAIN_S)
            if before is None or before.reason != reason:
                self._news = True
                log.warning("experiment %s is not served by this worker: %s", key, reason)

    def forget_current(self) -> None:
        """Look up again, at its next use, which code is an experiment's newest."""
        with self._lock:
            self._current.clear()

    def _entry(self, key: Key, revision: str | None) -> Document:
        """The bundle's entry in the experiment's document, with what the experiment says of all."""
        experiment = self._store.experiment(key) or {}
        bundles = experiment.get("bundles") or []
        if not bundles:
            raise NoBundle("it has no bundle: its jobs were not queued by hyperfarm")
        if not all(isinstance(entry["revision"], str) for entry in bundles):
            raise TypeError("a revision is no text")
        with self._lock:
            self._current[key] = bundles[-1]["revision"]
        wanted = [entry for entry in bundles if revision in (None, entry["revision"])]
        if not wanted:
            raise UnknownRevision(f"the experiment has no code of revision {str(revision)[:12]}")
        return {**wanted[-1], "hyperopt_losses": bool(experiment.get("hyperopt_losses"))}

    def _fetch(self, key: Key, entry: Document) -> Code:
        _check_python(entry)
        content = self._blobs.read(entry)
        try:
            bundle.verify(settings.farm_secret(), content, key, entry["revision"], entry.get("signature"))
        except BundleRefused as error:
            raise Refused(
                f"{error}; if it comes from your own controller, copy the file {settings.secret_file()} "
                "from its host to this one"
            ) from error
        # Bundles of one revision may differ in line numbers, and in how another version of hyperfarm pickled them.
        folder = bundle.unpack(content, settings.cache_dir() / "bundles" / entry["sha256"][:16])
        _warn_about_versions(key, entry)
        return Code(revision=entry["revision"], folder=folder, hyperopt_losses=entry["hyperopt_losses"])


def _check_python(entry: Document) -> None:
    theirs = tuple(entry["python"])
    if theirs != sys.version_info[:2]:
        raise Refused(
            f"it was started with Python {theirs[0]}.{theirs[1]}, this worker runs Python "
            f"{platform.python_version()}; start the worker with the same minor version"
        )


def _warn_about_versions(key: Key, entry: dict[str, Any]) -> None:
    """Name every package whose version here differs from the controller's."""
    for package in entry.get("packages", []):
        name, theirs = package["name"], package["version"]
        try:
            ours = metadata.version(name)
        except metadata.PackageNotFoundError:
            ours = "none"
        if ours != theirs:
            log.warning(
                "experiment %s: %s is %s at the controller and %s at this worker", key, name, theirs, ours
            )
