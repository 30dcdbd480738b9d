"""Opening an experiment: a new one, or the one that is already there, with its seed, budget and code."""

from __future__ import annotations

import contextlib
import random
import re
import sys
import uuid
from dataclasses import dataclass, field
from typing import Any

from hyperfarm import __version__, settings
from hyperfarm.blobs import Blobs
from hyperfarm.bundle import Bundle, sign, verify
from hyperfarm.controller.known_space import describe
from hyperfarm.errors import (
    BundleError,
    DatabaseError,
    DatabaseUnavailable,
    ExperimentConflict,
    OutcomeUnknown,
    UsageError,
)
from hyperfarm.jobs import TrialLimits
from hyperfarm.mongo import Document
from hyperfarm.store import Store

UNLIMITED = sys.maxsize
MAX_SEED = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a caller wants of an experiment.

    `bundle` None: a study, whose objective runs where it is asked. `trial_limits` of the trials that are queued by
    hand later on; `points`: so many of the caller's own take the first slots. `max_evals` None: no limit.
    `extend`: another budget than the experiment has replaces it; `grow`: only a larger one does, silently
    (hyperopt's meaning). `replace_code`: other code goes on under the same key.
    """

    exp_key: str | None
    bundle: Bundle | None
    space: Any
    algo: str
    max_evals: int | None
    trial_limits: TrialLimits = field(default_factory=TrialLimits)
    points: int = 0
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
    bundles = [] if request.bundle is None else [_store_bundle(blobs, request.bundle, request.exp_key)]
    seed = request.seed if request.seed is not None else random.SystemRandom().randrange(MAX_SEED)
    doc = {
        "_id": request.exp_key,
        "exp_key": request.exp_key,
        "uid": uuid.uuid4().hex,
        "state": "open",
        **_space_fields(request.space),
        "algo": request.algo,
        "max_evals": UNLIMITED if request.max_evals is None else request.max_evals,
        "seed": seed,
        "bundles": bundles,
        "ask_and_tell": request.bundle is None,
        "trial_limits": request.trial_limits.fields,
        "first_points": request.points,
        "hyperopt_losses": request.hyperopt_losses,
        "versions": {"hyperfarm": __version__},
    }
    if store.create_experiment(doc):
        return doc
    blobs.delete([entry["blob"] for entry in bundles])
    return None


def _store_bundle(blobs: Blobs, bundle: Bundle, exp_key: str | None) -> Document:
    ref = blobs.put(bundle.content, "bundle", exp_key=exp_key, kind="bundle")
    signature = sign(settings.farm_secret(), bundle.content, exp_key, bundle.revision)
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
    changes: Document = {"state": "open", "algo": request.algo, "trial_limits": request.trial_limits.fields}
    changes["first_points"] = max(request.points, doc.get("first_points", 0))
    if request.seed is not None and request.seed != doc["seed"]:
        raise ExperimentConflict(
            f"experiment {key!r} was begun with seed {doc['seed']}, not {request.seed}; leave the seed out to "
            "carry it on, or choose another name"
        )
    if doc.get("ask_and_tell", False) != (request.bundle is None):
        kind = "a study (ask and tell)" if doc.get("ask_and_tell") else "a search that workers run"
        raise ExperimentConflict(f"experiment {key!r} is {kind}; choose another name")
    changes |= _code_changes(blobs, request, doc)
    wanted = UNLIMITED if request.max_evals is None else request.max_evals
    if wanted not in (doc["max_evals"], doc["max_evals"] - doc.get("extra_evals", 0)):
        if request.extend or (request.grow and wanted > doc["max_evals"]):
            changes |= {"max_evals": wanted, "extra_evals": 0}
        elif not request.grow:
            raise ExperimentConflict(
                f"experiment {key!r} has a budget of {_budget(doc['max_evals'])} trials, not "
                f"{_budget(wanted)}; change it by --extend (extend=True), or choose another name"
            )
    return changes


def _code_changes(blobs: Blobs, request: Request, doc: Document) -> Document:
    """The fields that other code, or another space, changes. Raises ExperimentConflict unless it may."""
    key, bundle, bundles = request.exp_key, request.bundle, doc.get("bundles", [])
    if bundle is None:
        fields = _space_fields(request.space)
        if fields["columns"] != doc.get("columns"):
            raise ExperimentConflict(
                f"study {key!r} was begun with another space; choose another name (warm_start={key!r} learns from it)"
            )
        return {}
    same = bool(bundles) and bundles[-1]["revision"] == bundle.revision
    if same and not (request.replace_code and not _is_signed(blobs, key, bundles[-1])):
        return {} if "columns" in doc else _space_fields(request.space)
    if bundles and not request.replace_code:
        raise ExperimentConflict(
            f"experiment {key!r} was begun with other code or another space than {bundle.name} has now; choose "
            "another name, or carry it on with the new code by --replace-code (replace_code=True)"
        )
    return {"bundles": [*bundles, _store_bundle(blobs, bundle, key)], **_space_fields(request.space)}


def _is_signed(blobs: Blobs, exp_key: str | None, entry: Document) -> bool:
    """False when workers would refuse the bundle: the farm's secret is a new one, or somebody exchanged it."""
    try:
        verify(settings.farm_secret(), blobs.read(entry), exp_key, entry["revision"], entry.get("signature"))
    except (DatabaseUnavailable, OutcomeUnknown):
        raise
    except (BundleError, DatabaseError):
        return False
    return True


def _space_fields(space: Any) -> Document:
    """What an experiment's document says of its space; `columns` None for one that has none (compiling.py)."""
    columns = None
    with contextlib.suppress(UsageError):
        columns = describe(space).document()
    return {"space": space_text(space), "columns": columns}


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
        revision=doc["bundles"][-1]["revision"] if doc["bundles"] else "",
        resumed=resumed,
    )
