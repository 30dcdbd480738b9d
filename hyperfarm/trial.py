"""What an objective calls inside a trial.

    from hyperfarm import trial

    def objective(point):
        ...
        trial.report(loss=loss, step=epoch)
        trial.save_model(model)
        return loss

Outside a farm (the script runs alone) the same calls check their arguments and do nothing else.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Protocol

__all__ = [
    "attempt",
    "checkpoint",
    "exp_key",
    "id",
    "is_draining",
    "keras_callback",
    "report",
    "resume",
    "save",
    "save_model",
]

MODEL_NAME = "model.keras"
DRAINING = ".hyperfarm-draining"
"""A worker that was told to stop puts a file of this name into the scratch folders of its trials."""

id: int | None = None
"""The number of this trial (tid), unique in its database; None outside a farm."""
exp_key: str | None = None
"""The experiment of this trial; None outside a farm."""
attempt: int = 1
"""Counts from 1: how often this trial has been begun."""


class Link(Protocol):
    """The way to the supervisor of this process."""

    def report(self, values: dict[str, Any]) -> None: ...

    def save(self, name: str, path: Path, kind: str) -> None: ...

    def keep_checkpoint(self, path: Path) -> None: ...

    def last_checkpoint(self) -> Path | None: ...


_link: Link | None = None
_scratch: Path | None = None


def enter(link: Link, scratch: Path, *, trial_id: int, experiment: str | None, attempt_number: int) -> None:
    """Make this process's calls belong to one trial; for the process that runs objectives."""
    global _link, _scratch, id, exp_key, attempt
    _link, _scratch, id, exp_key, attempt = link, scratch, trial_id, experiment, attempt_number


def leave() -> None:
    """Undo `enter`."""
    global _link, _scratch, id, exp_key, attempt
    _link, _scratch, id, exp_key, attempt = None, None, None, None, 1


def report(loss: float | None = None, step: int | None = None, **values: Any) -> None:
    """Record intermediate values of this trial: a loss, a step (an epoch, say), any numbers by name.

    They are sent at once and stored within about a second; `hyperfarm show K --trial T` lists them.
    """
    if loss is not None:
        values["loss"] = float(loss)
    if step is not None:
        values["step"] = int(step)
    if _link is not None and values:
        _link.report(values)


def save(name: str, data: str | os.PathLike[str] | bytes | IO[bytes]) -> None:
    """Store a file with this trial: a path, bytes, or a file object opened for reading bytes.

    The copy is in the database when the call returns; it becomes visible when the trial's result is
    accepted. A second save under the same name replaces the first. Raises FileNotFoundError for a path
    that is not there, TypeError for other data, OSError when the database refuses it.
    """
    name = str(name)
    if not name or "\0" in name:
        raise ValueError("a saved file needs a name")
    path, temporary = _as_file(data)
    try:
        if _link is not None:
            _link.save(name, path, "artifact")
    finally:
        if temporary:
            path.unlink(missing_ok=True)


def save_model(model: Any, name: str = MODEL_NAME) -> None:
    """Store a Keras model as a `.keras` file with this trial (see `save`).

    Any model whose `save(path)` writes one file will do; the ending of `name` tells Keras the format.
    """
    if _link is None:
        return
    folder = Path(tempfile.mkdtemp(dir=_scratch))
    try:
        path = folder / Path(name).name
        name = str(name)
        model.save(path)
        _link.save(name, path, "model")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def checkpoint(data: str | os.PathLike[str] | bytes | IO[bytes]) -> None:
    """Store how far this trial has come: a path, bytes, or a file object opened for reading bytes.

    When the call returns it is in the database, and a later attempt at this trial, on any host, gets it from
    `resume`. It replaces the one before, and goes when the trial ends. Raises FileNotFoundError for a path
    that is not there, TypeError for other data, OSError when the database refuses it. When the trial is
    another worker's by now, nothing is stored and this process is stopped.
    """
    path, temporary = _as_file(data)
    try:
        if _link is not None:
            _link.keep_checkpoint(path)
    finally:
        if temporary:
            path.unlink(missing_ok=True)


def resume() -> Path | None:
    """Return a local copy of this trial's last checkpoint, byte for byte; None when there is none.

    The file is this trial's to read until it ends. Outside a farm there is never one.
    """
    return None if _link is None else _link.last_checkpoint()


def is_draining() -> bool:
    """Say whether this trial's worker was told to stop: what no checkpoint has in `--grace` seconds is lost.

    It looks for a file and asks nobody, so it may be called at every step. Outside a farm False.
    """
    return _scratch is not None and (_scratch / DRAINING).exists()


def keras_callback(
    *,
    every: int = 1,
    every_s: float = 0.0,
    loss: str | Callable[[dict[str, Any]], float] | None = None,
    name: str = "fit",
) -> Any:
    """Return a Keras callback that reports each epoch, keeps checkpoints, and resumes from the last one.

        model.fit(x, y, epochs=50, callbacks=[..., trial.keras_callback()])

    At the end of each epoch Keras' logs are reported with `step=epoch`. The reported `loss` is `val_loss` where
    there is one (the training loss is `train_loss` then), else the training loss; `loss` names another log or
    is a function of the logs. With `validation_freq` above 1 name it: epochs without it report no loss.

    A checkpoint is stored after `every` epochs and when training ends, but not until `every_s` seconds after
    the one before (or after the trial's first fit began), unless the worker was told to stop: then at the end of
    the epoch. In a later attempt at the trial the same `fit` goes
    on after the last stored epoch, with weights, optimizer, random states of layers and the History of all
    epochs; shuffled data come in another order, and other callbacks begin anew (EarlyStopping's patience and
    best weights). Put it last, so that it sees what the others do. Raises OSError when the database refuses
    a checkpoint.

    A trial may have several fits: the n-th one of a `name` goes on as the n-th one of that name. One that had
    ended is not trained again, its model is restored. A checkpoint of another model (classes, shapes) is not
    used. The trial has one checkpoint, so use this or `checkpoint`: the later one replaces the earlier.
    Outside a farm it does nothing but check.
    """
    from hyperfarm.keras_callback import make

    return make(every=every, every_s=every_s, loss=loss, name=name)


def _as_file(data: str | os.PathLike[str] | bytes | IO[bytes]) -> tuple[Path, bool]:
    """Return (a file that holds the data, whether we made it)."""
    if isinstance(data, (str, os.PathLike)):
        path = Path(data).absolute()
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {path} to store")
        return path, False
    descriptor, made = tempfile.mkstemp(dir=_scratch)
    with os.fdopen(descriptor, "wb") as out:
        if isinstance(data, (bytes, bytearray, memoryview)):
            out.write(data)
        elif hasattr(data, "read"):
            shutil.copyfileobj(data, out)
        else:
            raise TypeError(f"what to store is a path, bytes or a file object, not {type(data).__name__}")
    return Path(made), True
