"""The Keras callback of `trial.keras_callback`: it reports, checkpoints and resumes a trial's training.

Keras' own BackupAndRestore saves and restores a fit (weights, optimizer, epoch) in a folder. Here the folders
of all fits of a trial are packed into the trial's one checkpoint, which is committed whole or not at all, and
unpacked by the next attempt. Finished fits stay in it: an attempt that resumes in the second fit passes
through the first one again, and must leave it with the model it had.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import shutil
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from hyperfarm import trial
from hyperfarm.values import to_plain

log = logging.getLogger("hyperfarm.trial")
MARK = b"hyperfarm: fits of trial.keras_callback, 1"
MAX_NAME = 100

Loss = str | Callable[[dict[str, Any]], float] | None


def make(*, every: int, every_s: float, loss: Loss, name: str) -> Any:
    """Return a keras.callbacks.Callback; see `trial.keras_callback`, the contract."""
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise ValueError(f"every is a number of epochs from 1 on, not {every!r}")
    if isinstance(every_s, bool) or not isinstance(every_s, (int, float)) or not 0 <= every_s < math.inf:
        raise ValueError(f"every_s is a number of seconds from 0 on, not {every_s!r}")
    if not (loss is None or isinstance(loss, str) or callable(loss)):
        raise TypeError(f"loss is the name of one of Keras' logs or a function of them, not {loss!r}")
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME:
        raise ValueError(f"name is a text of 1 to {MAX_NAME} characters, not {name!r}")
    from keras.callbacks import LambdaCallback

    training = Training(every=every, every_s=every_s, loss=loss, name=name)
    training.callback = LambdaCallback(
        on_train_begin=training.on_train_begin,
        on_epoch_begin=training.on_epoch_begin,
        on_epoch_end=training.on_epoch_end,
        on_train_end=training.on_train_end,
    )
    return training.callback


class Fits:
    """The fits of one trial, each in a folder of its own, as they lie in the trial's checkpoint."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.folder = Path(tempfile.mkdtemp(prefix="keras-", dir=scratch))
        self._begun: Counter[str] = Counter()
        self._committed_at = time.monotonic()
        stored = trial.resume()
        if stored is not None and not self._unpack(stored):
            log.warning("this trial's checkpoint is not one of trial.keras_callback: training begins anew")

    def _unpack(self, stored: Path) -> bool:
        try:
            with zipfile.ZipFile(stored) as packed:
                if packed.comment != MARK:
                    return False
                packed.extractall(self.folder)
        except zipfile.BadZipFile:
            self.discard()
            self.folder.mkdir()
            return False
        return True

    def begin(self, name: str) -> tuple[Path, int]:
        """Return (the folder of this fit, its number within the trial).

        The n-th fit under a name has the same folder in every attempt.
        """
        self._begun[name] += 1
        return self.folder / f"{quote(name, safe='')}-{self._begun[name]}", self._begun.total()

    def commit(self) -> None:
        """Make all fits, as their folders hold them now, the trial's checkpoint."""
        descriptor, path = tempfile.mkstemp(prefix="keras-", suffix=".zip", dir=self.scratch)
        try:
            # Not compressed: trained weights do not shrink.
            with os.fdopen(descriptor, "wb") as file, zipfile.ZipFile(file, "w") as packed:
                packed.comment = MARK
                for one in sorted(self.folder.rglob("*")):
                    packed.write(one, one.relative_to(self.folder))
            trial.checkpoint(path)
        finally:
            os.unlink(path)
        self._committed_at = time.monotonic()

    def age_s(self) -> float:
        """Seconds since the last commit of any fit, or since the trial's first fit began."""
        return time.monotonic() - self._committed_at

    def discard(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


_fits: Fits | None = None


def fits_of_this_trial() -> Fits | None:
    """Return the fits of the trial that this process runs; None outside a farm. Raises OSError.

    Each `trial.enter` brings a path object of its own, so its identity tells the trials of a warm process
    apart, also two attempts at the same trial.
    """
    global _fits
    if trial._link is None or trial._scratch is None:
        return None
    if _fits is None or _fits.scratch is not trial._scratch:
        if _fits is not None:
            _fits.discard()
        _fits = Fits(trial._scratch)
    return _fits


class Training:
    """What one callback does during the fits that it is given to, one after the other."""

    def __init__(self, *, every: int, every_s: float, loss: Loss, name: str) -> None:
        self._every, self._every_s, self._loss, self._name = every, every_s, loss, name
        self.callback: Any = None
        self._fits: Fits | None = None
        self._folder = Path()
        self._number = 1
        self._backup: Any = None
        self._epochs: list[tuple[int, dict[str, Any]]] = []
        self._unsaved = 0
        self._trained = self._resumed = False

    def on_train_begin(self, _logs: Any = None) -> None:
        self._fits, self._epochs = fits_of_this_trial(), []
        self._trained = self._resumed = False
        self._unsaved = 0
        if self._fits is None:
            return
        from keras.callbacks import BackupAndRestore

        self._folder, self._number = self._fits.begin(self._name)
        self._backup = BackupAndRestore(str(self._folder / "backup"), delete_checkpoint=False)
        self._backup.set_model(self.callback.model)
        if (self._folder / "fit.json").exists():
            self._resume(json.loads((self._folder / "fit.json").read_text()))

    def _resume(self, before: dict[str, Any]) -> None:
        from keras.saving import deserialize_keras_object

        model, planned = self.callback.model, self.callback.params["epochs"]
        if not model.built:
            model.build_from_config(deserialize_keras_object(before["build"]))
        if signature(model) != before["model"]:
            log.warning("fit %r: the checkpoint holds another model; training begins anew", self._name)
            shutil.rmtree(self._folder)
            return
        model.built = (
            True  # All variables are there; Keras does not say so of subclassed models built this way.
        )
        self._backup.on_train_begin()
        for variable, value in zip(random_states(model), before["random"], strict=True):
            variable.assign(value)
        done = before["epoch"]
        if getattr(model, "_initial_epoch", None) != done:
            raise RuntimeError("this version of Keras does not restore a fit as trial.keras_callback expects")
        if before["stopped"]:
            model._initial_epoch = max(done, planned)
        self._resumed = True
        self._epochs = [(epoch, logs) for epoch, logs in before["epochs"]]
        for epoch, logs in self._epochs:  # Readers see the reports of a trial's last attempt only.
            self._report(epoch, logs)
        print(f"hyperfarm: fit {self._name!r} goes on: {done} of {planned} epochs are done", flush=True)

    def on_epoch_begin(self, _epoch: int, _logs: Any = None) -> None:
        self._after_resuming()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        plain = to_plain(dict(logs or {}), where="logs")
        self._report(epoch, plain)
        if self._fits is None:
            return
        self._epochs.append((epoch, plain))
        self._trained = True
        self._unsaved += 1
        # The last epoch is stored at the end of training: then the model has what other callbacks do there.
        last = epoch + 1 >= self.callback.params["epochs"] or self.callback.model.stop_training
        due = self._unsaved >= self._every and self._fits.age_s() >= self._every_s
        if not last and (due or trial.is_draining()):
            self._write(stopped=False)
            self._fits.commit()
            self._unsaved = 0

    def on_train_end(self, _logs: Any = None) -> None:
        self._after_resuming()
        if self._fits is not None and self._trained:
            stopped = self._epochs[-1][0] + 1 < self.callback.params["epochs"]
            self._write(stopped=stopped)  # Also when it is not due: later fits commit it with their own.
            if self._fits.age_s() >= self._every_s or (stopped and self._unsaved == 0):
                self._fits.commit()
        self._fits = self._backup = None

    def _after_resuming(self) -> None:
        """Once `fit` has taken note of where to begin: undo that for the next fit, complete the History."""
        from keras.callbacks import History

        if not self._resumed:
            return
        self._resumed = False
        model = self.callback.model
        model._initial_epoch = None
        history = getattr(model, "history", None)
        if isinstance(history, History) and not history.epoch:
            for epoch, logs in self._epochs:
                history.on_epoch_end(epoch, dict(logs))

    def _write(self, *, stopped: bool) -> None:
        """Bring this fit's folder up to date."""
        from keras.saving import serialize_keras_object

        model, epoch = self.callback.model, self._epochs[-1][0]
        self._backup.on_epoch_end(epoch)
        now = {
            "epoch": epoch + 1,
            "stopped": stopped,
            "epochs": self._epochs,
            "random": [variable.numpy().tolist() for variable in random_states(model)],
            "model": signature(model),
            "build": serialize_keras_object(model.get_build_config()),
        }
        (self._folder / "fit.json").write_text(json.dumps(now, default=str))

    def _report(self, epoch: int, logs: dict[str, Any]) -> None:
        values = {f"{name}_" if name in ("step", "fit") else name: value for name, value in logs.items()}
        if self._loss is not None or "val_loss" in logs:
            if "loss" in values:
                values["train_loss"] = values.pop("loss")
            values["loss"] = self._loss_of(logs)
        if self._number > 1:
            values["fit"] = self._number
        trial.report(step=epoch, **values)

    def _loss_of(self, logs: dict[str, Any]) -> float | None:
        """The loss to report, of logs that have one; None for an epoch without validation."""
        if callable(self._loss):
            return float(self._loss(dict(logs)))
        name = self._loss or "val_loss"
        unvalidated = name.startswith("val_") and not any(one.startswith("val_") for one in logs)
        if name not in logs and not unvalidated:
            raise ValueError(f"Keras' logs have no {name!r} to report as loss; they have {', '.join(logs)}")
        return None if unvalidated else float(logs[name])


def random_states(model: Any) -> list[Any]:
    """The variables behind dropout and the like, which Keras leaves out of saved weights."""
    return [variable for variable in model.variables if variable.name == "seed_generator_state"]


def signature(model: Any) -> str:
    """Tell models apart by what their saved state depends on; names, which Keras counts up, are not in it."""
    shapes = [[list(weight.shape), str(weight.dtype)] for weight in model.weights]
    classes = [type(model).__name__, type(model.optimizer).__name__]
    parts = [*classes, len(model.trainable_weights), len(random_states(model)), shapes]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
