"""trial.keras_callback: training goes on elsewhere, on a real farm; and what it does by itself, in this process."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hyperfarm import trial
from tests.support import eventually, gone, started, worker

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # In Keras, of NumPy.

OBJECTIVE = '''
import hashlib, json, os, time
import numpy as np
from hyperfarm import hp, trial

os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", TF_ENABLE_ONEDNN_OPTS="0", CUDA_VISIBLE_DEVICES="-1")
space = {"x": hp.uniform("x", 0, 1)}

def note(**entry):
    with open(JOURNAL, "a") as out:
        out.write(json.dumps({"trial": trial.id, "attempt": trial.attempt, **entry}) + "\\n")

def state(values):
    return hashlib.sha256(b"".join(np.asarray(value).tobytes() for value in values)).hexdigest()

def journal(fit, hang_at=None):
    """Write down every epoch that is begun, and with which state; the first attempt hangs in one."""
    import keras

    def on_epoch_begin(epoch, logs):
        model = callback.model
        metrics = {id(value) for value in model.metrics_variables}  # Keras clears them at each epoch.
        kept = [value for value in [*model.variables, *model.optimizer.variables] if id(value) not in metrics]
        everything = [value.numpy() for value in kept]
        note(fit=fit, epoch=epoch, iterations=int(model.optimizer.iterations.numpy()), state=state(everything))
        if epoch == hang_at and trial.attempt == 1:
            time.sleep(600)

    callback = keras.callbacks.LambdaCallback(on_epoch_begin=on_epoch_begin)
    return callback

def network(units, known=True):
    import keras

    keras.utils.set_random_seed(7)
    layers = [keras.Input((64,))] if known else []
    layers += [keras.layers.Dense(units, activation="relu"), keras.layers.Dropout(0.2, seed=3)]
    model = keras.Sequential([*layers, keras.layers.Dense(10, activation="softmax")])
    model.compile(loss="sparse_categorical_crossentropy", optimizer="adam")
    return model

def train(model, epochs, *callbacks):
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    options = {"batch_size": 128, "shuffle": False, "verbose": 0}
    return model.fit(x[:512] / 16, y[:512], epochs=epochs, callbacks=[*callbacks], **options)

def one_fit():
    model, uncut = network(16), network(16)
    history = train(model, 6, journal("one", hang_at=3), trial.keras_callback())
    whole = train(uncut, 6)
    return {"epochs": history.epoch, "losses": history.history["loss"], "whole": whole.history["loss"]}

def several_fits():
    import keras

    model, other = network(16), network(32, known=False)
    stopping = keras.callbacks.EarlyStopping("loss", patience=1, min_delta=1e9, restore_best_weights=True)
    history = train(model, 8, stopping, journal("first"), trial.keras_callback())
    note(after="first", epochs=history.epoch, state=state(model.get_weights()))
    train(other, 5, journal("second", hang_at=2), trial.keras_callback(name="second"))
    history = train(model, 3, journal("third"), trial.keras_callback())
    return {"epochs": history.epoch}

def objective(point):
    return {"loss": point["x"], "status": "ok", **(several_fits() if trial.id % 2 else one_fit())}
'''


@pytest.mark.timeout(400)
def test_training_goes_on_where_a_killed_worker_stopped(mongo_url, store, tmp_path):
    journal, script = tmp_path / "journal", tmp_path / "cut.py"
    journal.touch()
    script.write_text(f"JOURNAL = {str(journal)!r}\n{OBJECTIVE}")

    def lines(**wanted: Any) -> list[dict[str, Any]]:
        entries = [json.loads(line) for line in journal.read_text().splitlines()]
        return [entry for entry in entries if wanted.items() <= entry.items()]

    options = ["--slots", "2", "--lease", "2"]
    with started("run", str(script), "--mongo", mongo_url, "--max-evals", "2") as controller:
        with worker(mongo_url, tmp_path / "w1", *options) as first:
            eventually(
                lambda: lines(fit="one", epoch=3) and lines(fit="second", epoch=2), "both trials hang", 150
            )
            first.send_signal(signal.SIGKILL)
            eventually(lambda: gone([first.pid]), "the worker is dead")
        with worker(mongo_url, tmp_path / "w2", *options):
            output, _ = controller.communicate(timeout=150)
    one, several = sorted(store.find_jobs("cut"), key=lambda doc: doc["tid"] % 2)
    assert [one["state"], several["state"]] == [2, 2], output
    assert [one["attempt"], several["attempt"]] == [2, 2]
    one_fit_is_whole(lines, one, store.reports(one))
    several_fits_are_whole(lines, several)
    left = [file["metadata"]["kind"] for file in store.database["farm.files"].find()]
    assert "checkpoint" not in left


def one_fit_is_whole(lines: Any, doc: dict[str, Any], reports: list[dict[str, Any]]) -> None:
    """Epochs once each, but for the one that was cut, and as if nothing had happened."""
    epochs = {attempt: lines(fit="one", attempt=attempt) for attempt in (1, 2)}
    assert [entry["epoch"] for entry in epochs[1]] == [0, 1, 2, 3]
    assert [entry["epoch"] for entry in epochs[2]] == [3, 4, 5]
    assert [entry["iterations"] for entry in epochs[2]] == [12, 16, 20]
    # Weights, Adam's moments, the state of the dropout: bit by bit what they were.
    assert epochs[2][0]["state"] == epochs[1][3]["state"]
    result = doc["result"]
    assert result["epochs"] == [0, 1, 2, 3, 4, 5]
    np.testing.assert_allclose(result["losses"], result["whole"], rtol=1e-4)
    assert [report["step"] for report in reports] == [0, 1, 2, 3, 4, 5]
    np.testing.assert_allclose([report["loss"] for report in reports], result["losses"])


def several_fits_are_whole(lines: Any, doc: dict[str, Any]) -> None:
    """A fit that had ended gives its model again without training; the cut one goes on; the next begins at 0."""
    tid = doc["tid"]
    done = [
        (entry["fit"], entry["attempt"], entry["epoch"]) for entry in lines(trial=tid) if "epoch" in entry
    ]
    first, second = [("first", 1, 0), ("first", 1, 1)], [("second", 1, 0), ("second", 1, 1), ("second", 1, 2)]
    again = [("second", 2, epoch) for epoch in (2, 3, 4)] + [("third", 2, epoch) for epoch in (0, 1, 2)]
    assert done == [*first, *second, *again]
    before, after = lines(trial=tid, after="first")
    assert before["epochs"] == after["epochs"] == [0, 1]
    assert before["state"] == after["state"]  # The best weights, not the last.
    assert [entry["iterations"] for entry in lines(trial=tid, fit="third")] == [8, 12, 16]
    assert doc["result"]["epochs"] == [0, 1, 2]


class Shelf:
    """A trial's link that puts checkpoints into a folder and reports into a list."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count, self.reports = folder, 0, []

    def report(self, values: dict[str, Any]) -> None:
        self.reports.append(values)

    def keep_checkpoint(self, path: Path) -> None:
        self.count += 1
        shutil.copy(path, self.folder / str(self.count))

    def last_checkpoint(self) -> Path | None:
        return self.folder / str(self.count) if self.count else None


@pytest.fixture
def shelf(tmp_path):
    (tmp_path / "scratch").mkdir()
    (tmp_path / "shelf").mkdir()
    yield Shelf(tmp_path / "shelf")
    trial.leave()


def attempt(shelf: Shelf, number: int = 1) -> None:
    """Begin an attempt at a trial as a warm process does: in the same scratch folder."""
    trial.enter(shelf, shelf.folder.parent / "scratch", trial_id=1, experiment="exp", attempt_number=number)


def fit(*callbacks: Any, epochs: int = 3, units: int = 4, model: Any = None, **options: Any) -> Any:
    """Train a small network, a new one if none is given; return Keras' History."""
    os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", TF_ENABLE_ONEDNN_OPTS="0", CUDA_VISIBLE_DEVICES="-1")
    import keras

    if model is None:
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(units), keras.layers.Dense(1)])
        model.compile("adam", "mse", run_eagerly=True)
    x = np.linspace(0, 1, 60).reshape(20, 3)
    return model.fit(x, x.sum(axis=1), epochs=epochs, verbose=0, callbacks=[*callbacks], **options)


def test_outside_a_farm_it_does_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    callback = trial.keras_callback()
    for _ in range(2):
        assert fit(callback).epoch == [0, 1, 2]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "wrong",
    [
        {"every": 0},
        {"every": 1.5},
        {"every": True},
        {"every_s": -1},
        {"every_s": float("nan")},
        {"every_s": "5"},
        {"loss": 3},
        {"name": ""},
        {"name": None},
        {"name": "x" * 101},
    ],
)
def test_wrong_arguments_are_refused_also_outside_a_farm(wrong):
    with pytest.raises((TypeError, ValueError), match=next(iter(wrong))):
        trial.keras_callback(**wrong)


def test_a_loss_that_is_not_among_the_logs_is_refused_with_their_names():
    with pytest.raises(ValueError, match="no 'val_los' to report as loss; they have loss, val_loss"):
        fit(trial.keras_callback(loss="val_los"), validation_split=0.2)


@pytest.mark.parametrize(
    ("arguments", "options", "expected"),
    [
        ({}, {}, [{"loss": "loss"}] * 3),
        (
            {},
            {"validation_split": 0.2},
            [{"loss": "val_loss", "train_loss": "loss", "val_loss": "val_loss"}] * 3,
        ),
        (
            {"loss": "val_loss"},
            {"validation_split": 0.2, "validation_freq": [3]},
            [{"train_loss": "loss"}] * 2
            + [{"loss": "val_loss", "train_loss": "loss", "val_loss": "val_loss"}],
        ),
    ],
)
def test_what_an_epoch_reports(shelf, arguments, options, expected):
    attempt(shelf)
    history = fit(trial.keras_callback(**arguments), **options).history
    for step, (report, names) in enumerate(zip(shelf.reports, expected, strict=True)):
        wanted = {key: history[name][step if name == "loss" else -3 + step] for key, name in names.items()}
        assert report == {"step": step, **wanted}


def test_a_function_of_the_logs_can_be_the_loss(shelf):
    attempt(shelf)
    history = fit(trial.keras_callback(loss=lambda logs: -logs["loss"])).history
    assert [report["loss"] for report in shelf.reports] == [-loss for loss in history["loss"]]


@pytest.mark.parametrize(
    ("arguments", "commits"), [({}, 5), ({"every": 2}, 3), ({"every": 9}, 1), ({"every_s": 3600}, 0)]
)
def test_checkpoints_are_stored_as_often_as_asked(shelf, arguments, commits):
    attempt(shelf)
    fit(trial.keras_callback(**arguments), epochs=5)
    assert shelf.count == commits
    assert len(shelf.reports) == 5


def test_a_worker_that_stops_soon_gets_a_checkpoint_at_the_end_of_the_epoch(shelf):
    import keras

    attempt(shelf)
    seen = []

    def on_epoch_end(epoch: int, _logs: Any) -> None:
        seen.append(shelf.count)
        if epoch == 2:
            (shelf.folder.parent / "scratch" / trial.DRAINING).touch()

    callbacks = [keras.callbacks.LambdaCallback(on_epoch_end=on_epoch_end), trial.keras_callback(every=100)]
    fit(*callbacks, epochs=6)
    assert seen == [0, 0, 0, 1, 2, 3]


def test_more_epochs_than_before_go_on_from_there_and_the_next_fit_does_not(shelf):
    attempt(shelf)
    fit(trial.keras_callback(), epochs=2)
    attempt(shelf, 2)
    callback = trial.keras_callback()
    again = fit(callback, epochs=4)
    assert again.epoch == [0, 1, 2, 3]
    assert len(again.history["loss"]) == 4
    assert shelf.count == 2 + 2
    assert fit(callback, epochs=2, model=again.model).epoch == [0, 1]
    assert [report.get("fit") for report in shelf.reports[-3:]] == [None, 2, 2]


@pytest.mark.parametrize("names", [("fit", "fit"), ("../a", "../b")])
def test_another_model_does_not_get_the_checkpoint(shelf, caplog, capsys, names):
    attempt(shelf)
    fit(trial.keras_callback(name=names[0]), epochs=2)
    attempt(shelf, 2)
    fit(trial.keras_callback(name=names[1]), epochs=2, units=5)
    assert len(shelf.reports) == 2 + 2
    assert "goes on" not in capsys.readouterr().out
    assert ("another model" in caplog.text) == (names[0] == names[1])
    assert sorted(path.name for path in shelf.folder.parent.iterdir()) == ["scratch", "shelf"]


def test_a_checkpoint_of_the_users_own_is_passed_over_aloud(shelf, caplog):
    attempt(shelf)
    trial.checkpoint(b"my own")
    attempt(shelf, 2)
    assert fit(trial.keras_callback(), epochs=2).epoch == [0, 1]
    assert "not one of trial.keras_callback" in caplog.text
    assert shelf.count == 1 + 2


def test_a_warm_process_keeps_the_fits_of_one_trial_only(shelf):
    for number in (1, 2, 3):
        shelf.count = 0
        attempt(shelf, number)
        fit(trial.keras_callback(), epochs=2)
        assert shelf.count == 2
    (left,) = (shelf.folder.parent / "scratch").iterdir()
    assert [path.name for path in left.iterdir()] == ["fit-1"]
