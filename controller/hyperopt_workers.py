"""Living together with hyperopt's own programs: what its workers need of a search of ours, and what its `fmin` left.

Its workers find the objective as a pickle beside the experiment, as `fmin` leaves it. They verify nothing and copy
no files, so the modules of the user's own go into the pickle by value.
"""

from __future__ import annotations

import contextlib
import io
import sys
import zipfile
from collections.abc import Iterator
from pathlib import PurePosixPath
from types import ModuleType
from typing import Any

import cloudpickle

from hyperfarm import protocols, settings
from hyperfarm.bundle import Bundle
from hyperfarm.trials import MongoTrials


def nothing_to_run(trials: MongoTrials) -> bool:
    """True when no trial of the experiment waits or runs: then its objective may be exchanged."""
    trials.local.refresh(full=True)
    return not trials.local.unfinished()


def make_room_for_hyperopt(trials: MongoTrials, domain: Any, packed: Bundle) -> None:
    """Count what hyperopt's own `fmin` has done, and leave the objective where its workers look for it.

    Safe to do again; nothing is written when the very same objective lies there already.
    """
    key, name = trials.exp_key, protocols.FMIN_DOMAIN
    if trials.store.adopt(key):
        # Their version is what it was, so they would not be read again.
        trials.local.forget([doc["tid"] for doc in trials.local.jobs()])
    there = trials.blobs.experiment_attachment(key, name)
    if there is not None and there.get("revision") == packed.revision:
        return
    # Of hyperfarm itself only this is asked for by an objective (one with templates): their workers do not have it.
    with _by_value([*_own_modules(packed), "hyperfarm.template_objective"]):
        data = cloudpickle.dumps(domain)
    signature = protocols.sign_attachment(settings.farm_secret(), data, key, name)
    trials.blobs.put_experiment_attachment(key, name, data, signature, revision=packed.revision)


def _own_modules(packed: Bundle) -> list[str]:
    """The names of the modules whose source files travel with the bundle."""
    with zipfile.ZipFile(io.BytesIO(packed.content)) as files:
        paths = [PurePosixPath(name) for name in files.namelist()]
    modules = [
        path.relative_to("src").with_suffix("")
        for path in paths
        if path.parts[0] == "src" and path.suffix == ".py"
    ]
    return [".".join(path.parent.parts if path.name == "__init__" else path.parts) for path in modules]


@contextlib.contextmanager
def _by_value(names: list[str]) -> Iterator[None]:
    """Have cloudpickle take these modules along, as far as they are imported here."""
    modules: list[ModuleType] = [sys.modules[name] for name in names if name in sys.modules]
    known = cloudpickle.list_registry_pickle_by_value()
    added = [module for module in modules if module.__name__ not in known]
    for module in added:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in added:
            cloudpickle.unregister_pickle_by_value(module)
