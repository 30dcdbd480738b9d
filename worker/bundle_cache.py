"""The code of the experiments that this host may serve: fetched, verified, unpacked; or refused, with a reason."""

from __future__ import annotations

import logging
import platform
import sys
import threading
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from hyperfarm import bundle, settings
from hyperfarm.blobs import Blobs
from hyperfarm.errors import BundleError, BundleRefused, DatabaseError, SettingsError
from hyperfarm.store import Store

log = logging.getLogger("hyperfarm.worker")
Key = str | None


class Refused(Exception):
    """This host cannot or must not run the experiment; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class Code:
    """A verified bundle on this host's disk, with what a slot must know to run it."""

    revision: str
    folder: Path
    hyperopt_losses: bool


class BundleCache:
    """Verified code by experiment and revision. Thread-safe."""

    def __init__(self, store: Store, blobs: Blobs) -> None:
        self._store, self._blobs = store, blobs
        self._lock = threading.Lock()
        self._codes: dict[tuple[Key, str], Code] = {}
        self._refused: dict[tuple[Key, str], str] = {}
        self._current: dict[Key, str] = {}
        self._news = False

    def refusals(self) -> list[dict[str, Any]]:
        """What this host refuses, for its document in `workers`."""
        with self._lock:
            return [{"exp_key": key, "reason": reason} for (key, _), reason in self._refused.items()]

    def has_news(self) -> bool:
        """True once after each new refusal."""
        with self._lock:
            news, self._news = self._news, False
            return news

    def may_serve(self, key: Key) -> bool:
        """True when the newest code of the experiment can be run here; a refusal is logged once."""
        with self._lock:
            revision = self._current.get(key)
        try:
            self.get(key, revision)
        except Refused:
            return False
        return True

    def get(self, key: Key, revision: str | None) -> Code:
        """Return the code of a revision (None: the newest). Raises Refused, always for the same reason."""
        with self._lock:
            if revision is not None and (key, revision) in self._codes:
                return self._codes[key, revision]
            if revision is not None and (key, revision) in self._refused:
                raise Refused(self._refused[key, revision])
            try:
                return self._fetch(key, revision)
            except (Refused, BundleError, SettingsError) as error:
                self._note_refusal(key, revision or self._current.get(key, ""), str(error))
                raise Refused(str(error)) from error

    def refuse(self, key: Key, revision: str, reason: str) -> None:
        """Refuse a revision from now on (its code cannot be imported here, say)."""
        with self._lock:
            self._note_refusal(key, revision, reason)

    def _note_refusal(self, key: Key, revision: str, reason: str) -> None:
        if (key, revision) not in self._refused:
            log.warning("experiment %s is not served by this worker: %s", key, reason)
            self._news = True
        self._refused[key, revision] = reason

    def forget(self, key: Key) -> None:
        """Look the experiment up again at its next use: it may have new code, or be another one by now."""
        with self._lock:
            self._current.pop(key, None)

    def _fetch(self, key: Key, revision: str | None) -> Code:
        experiment = self._store.experiment(key)
        bundles = (experiment or {}).get("bundles") or []
        if not bundles:
            raise Refused("it has no bundle: its jobs were not queued by hyperfarm")
        assert experiment is not None
        wanted = [entry for entry in bundles if revision in (None, entry["revision"])]
        if not wanted:
            raise Refused(f"it has no code of revision {str(revision)[:12]}")
        entry = wanted[-1]
        if revision is None:
            self._current[key] = entry["revision"]
            if (key, entry["revision"]) in self._codes:
                return self._codes[key, entry["revision"]]
        _check_python(entry)
        try:
            content = self._blobs.read(entry)
        except DatabaseError as error:
            raise Refused(str(error)) from error
        try:
            bundle.verify(settings.farm_secret(), content, key, entry["revision"], entry.get("signature"))
        except BundleRefused as error:
            raise Refused(
                f"{error}; if it comes from your own controller, copy the file {settings.secret_file()} "
                "from its host to this one"
            ) from error
        folder = bundle.unpack(content, settings.cache_dir() / "bundles")
        _warn_about_versions(key, entry)
        code = Code(
            revision=entry["revision"],
            folder=folder,
            hyperopt_losses=bool(experiment.get("hyperopt_losses")),
        )
        self._codes[key, entry["revision"]] = code
        return code


def _check_python(entry: dict[str, Any]) -> None:
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
