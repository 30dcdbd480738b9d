"""Opening an experiment: a new one, or the one that is already there, with its seed, budget and code."""

from __future__ import annotations

import random
import re
import sys
import uuid
from dataclasses import dataclass
from typing import Any

from hyperfarm import __version__, settings
from hyperfarm.blobs import Blobs
from hyperfarm.bundle import Bundle, sign, verify
from hyperfarm.errors import (
    BundleError,
    DatabaseError,
    DatabaseUnavailable,
    ExperimentConflict,
    OutcomeUnknown,
    UsageError,
)
from hyperfarm.mongo import Document
from hyperfarm.store import Store

UNLIMITED = sys.maxsize
MAX_SEED = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a caller wants of an experiment.

    `max_evals` None: no limit. `extend`: another budget than the experiment has replaces it; `grow`: only a
    larger one does, silently (hyperopt's meaning). `replace_code`: other code goes on under the same key.
    """

    exp_key: str | None
    bundle: Bundle
    space: Any
    algo: str
    max_evals: int | None
    seed: int | None = None
    extend: bool = False
    grow: bool = False
    replace_code: bool = False
    hyperopt_losses: bool = False


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """An open experiment.

    `uid` tells it from another one of the same name, made after it was removed. `max_evals` is its budget,
    `resumed` says that it was there before.
    """

    exp_key: str | None
    uid: str
    seed: int
    max_evals: int
    revision: str
    resumed: bool


def open_experiment(store: Store, blobs: Blobs, request: Request) -> Experiment:
    """Create the experiment, or take up the one that is there.

    Raises ExperimentConflict when it has other code, another budget or another seed and the request does
    not say what to do about it; UsageError for values that make no sense.
    """
    _check(request)
    doc = store.experiment(request.exp_key)
    if doc is None:
        doc = _create(store, blobs, request)
        if doc is not None:
            return _experiment(doc, resumed=False)
        doc = store.experiment(request.exp_key)  # Another controller was faster.
        assert doc is not None
    changes = _reconcile(store, blobs, request, doc)
    if changes:
        store.update_experiment(request.exp_key, changes)
    return _experiment({**doc, **changes}, resumed=True)


def _check(request: Request) -> None:
    if request.exp_key is not None and (not request.exp_key or "\0" in request.exp_key):
        raise UsageError("an experiment needs a name: give exp_key")
    if request.max_evals is not None and request.max_evals < 1:
        raise UsageError(f"max_evals is {request.max_evals}; it must be 1 or more")
    if request.seed is not None and not 0 <= request.seed <= MAX_SEED:
        raise UsageError(f"seed is {request.seed}; it must be between 0 and {MAX_SEED}")


def _create(store: Store, blobs: Blobs, request: Request) -> Document | None:
    """Write bundle and document; None when another controller has just made the experiment."""
    entry = _store_bundle(blobs, request)
    seed = request.seed if request.seed is not None else random.SystemRandom().randrange(MAX_SEED)
    doc = {
        "_id": request.exp_key,
        "exp_key": request.exp_key,
        "uid": uuid.uuid4().hex,
        "state": "open",
        "space": space_text(request.space),
        "algo": request.algo,
        "max_evals": UNLIMITED if request.max_evals is None else request.max_evals,
        "seed": seed,
        "bundles": [entry],
        "hyperopt_losses": request.hyperopt_losses,
        "versions": {"hyperfarm": __version__},
    }
    if store.create_experiment(doc):
        return doc
    blobs.delete([entry["blob"]])
    return None


def _store_bundle(blobs: Blobs, request: Request) -> Document:
    bundle = request.bundle
    ref = blobs.put(bundle.content, "bundle", exp_key=request.exp_key, kind="bundle")
    signature = sign(settings.farm_secret(), bundle.content, request.exp_key, bundle.revision)
    return {
        **ref,
        "revision": bundle.revision,
        "name": bundle.name,
        "signature": signature,
        "python": list(bundle.python),
        "packages": [{"name": name, "version": version} for name, version in bundle.packages.items()],
    }


def _reconcile(store: Store, blobs: Blobs, request: Request, doc: Document) -> Document:
    """Return the fields of the experiment's document that the request changes."""
    key = request.exp_key
    changes: Document = {"state": "open", "algo": request.algo}
    if request.seed is not None and request.seed != doc["seed"]:
        raise ExperimentConflict(
            f"experiment {key!r} was begun with seed {doc['seed']}, not {request.seed}; leave the seed out to "
            "carry it on, or choose another name"
        )
    bundles = doc.get("bundles", [])
    same = bool(bundles) and bundles[-1]["revision"] == request.bundle.revision
    if not same or (request.replace_code and not _is_signed(blobs, key, bundles[-1])):
        if bundles and not request.replace_code:
            raise ExperimentConflict(
                f"experiment {key!r} was begun with other code or another space than "
                f"{request.bundle.name} has now; choose another name, or carry it on with the new code by "
                "--replace-code (replace_code=True)"
            )
        changes["bundles"] = [*bundles, _store_bundle(blobs, request)]
        changes["space"] = space_text(request.space)
    wanted = UNLIMITED if request.max_evals is None else request.max_evals
    if wanted != doc["max_evals"]:
        if request.extend or (request.grow and wanted > doc["max_evals"]):
            changes["max_evals"] = wanted
        elif not request.grow:
            raise ExperimentConflict(
                f"experiment {key!r} has a budget of {_budget(doc['max_evals'])} trials, not "
                f"{_budget(wanted)}; change it by --extend (extend=True), or choose another name"
            )
    return changes


def _is_signed(blobs: Blobs, exp_key: str | None, entry: Document) -> bool:
    """False when workers would refuse the bundle: the farm's secret is a new one, or somebody exchanged it."""
    try:
        verify(settings.farm_secret(), blobs.read(entry), exp_key, entry["revision"], entry.get("signature"))
    except (DatabaseUnavailable, OutcomeUnknown):
        raise
    except (BundleError, DatabaseError):
        return False
    return True


def space_text(space: Any) -> str:
    """The space as a person may read it in the database: hyperopt's own drawing of its graph."""
    from hyperopt.pyll import as_apply

    return re.sub(r" at 0x[0-9a-f]+", "", str(as_apply(space)))[:100_000]


def _budget(max_evals: int) -> str:
    return "unlimited" if max_evals == UNLIMITED else str(max_evals)


def _experiment(doc: Document, *, resumed: bool) -> Experiment:
    return Experiment(
        exp_key=doc["_id"],
        uid=doc["uid"],
        seed=doc["seed"],
        max_evals=doc["max_evals"],
        revision=doc["bundles"][-1]["revision"],
        resumed=resumed,
    )
