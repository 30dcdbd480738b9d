"""Finding the trials that hyperas's users ask for, and bringing their models back."""

from __future__ import annotations

import math
import sys
import tempfile
import types
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from hyperfarm.jobs import JobDoc
from hyperfarm.template_objective import MODEL
from hyperfarm.template_space import unpacked


def model_of_run(trials: Any, run: Mapping[str, Any], namespace: Mapping[str, Any]) -> Any:
    """Return the model of the trial whose values are `run`; of several such trials, of the best one.

    None if there is none with a model. `namespace` is where the user's own layers and losses are defined.
    """
    matching = [one for one in _ranked(trials) if unpacked(one["misc"]["vals"]) == run]
    return next((model for one in matching if (model := _model(trials, one, namespace)) is not None), None)


def best_trial_models(trials: Any, count: int, namespace: Mapping[str, Any]) -> list[Any]:
    """Return the models of the `count` trials with the lowest losses, the best first; None where one is missing."""
    return [_model(trials, one, namespace) for one in _ranked(trials)[:count]]


def _ranked(trials: Iterable[JobDoc]) -> list[JobDoc]:
    """The successful trials, the lowest loss first, NaN apart."""
    losses = []
    for doc in trials:
        result = doc.get("result") or {}
        loss = result.get("loss")
        if result.get("status") == "ok" and loss is not None and not math.isnan(loss):
            losses.append((float(loss), doc))
    return [doc for _, doc in sorted(losses, key=lambda pair: pair[0])]


def _model(trials: Any, doc: JobDoc, namespace: Mapping[str, Any]) -> Any:
    """The model that a trial returned: as it is in its result, or loaded from the file stored with the trial."""
    result, blobs = doc.get("result") or {}, getattr(trials, "blobs", None)
    files = [one for one in doc.get("artifacts") or () if one["kind"] == "model"]
    if MODEL in result or blobs is None or not files:
        whole = result if blobs is None else blobs.internalise(result)
        return whole.get(MODEL)
    with tempfile.TemporaryDirectory(prefix="hyperfarm-") as folder:
        path = Path(folder) / PurePath(str(files[0]["name"])).name
        blobs.save(files[0], path)
        try:
            return _loaded(path, namespace)
        except Exception as error:  # noqa: BLE001 - the search is done, and its result must not be lost
            print(
                f"hyperfarm: the model of trial {doc['tid']} cannot be loaded here: {type(error).__name__}: {error}\n"
                f"hyperfarm: fetch it with `hyperfarm pull {doc['exp_key']} --trial {doc['tid']} -o {path.name}` and "
                "load it with your own custom_objects",
                file=sys.stderr,
            )
            return None


def _loaded(path: Path, namespace: Mapping[str, Any]) -> Any:
    """Load a Keras model; the user's own classes and functions are only brought in if it does not load without."""
    import keras

    try:
        return keras.models.load_model(path)
    except (TypeError, ValueError, ImportError, AttributeError):
        return keras.models.load_model(path, custom_objects=_own(namespace))


def _own(namespace: Mapping[str, Any], libraries: Sequence[str] = ("keras", "tensorflow")) -> dict[str, Any]:
    return {
        name: value
        for name, value in namespace.items()
        if isinstance(value, type | types.FunctionType)
        and str(getattr(value, "__module__", "")).partition(".")[0] not in libraries
    }
