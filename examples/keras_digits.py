"""The main recipe: tune a one-layer Keras network on handwritten digits, on the farm.

    python examples/keras_digits.py                     scikit-learn's digits, all on this machine
    python examples/keras_digits.py --dataset mnist     MNIST itself (fetched by Keras: needs the internet)
    python examples/keras_digits.py --mongo mongodb://db.example.org/jobs --workers 0
                                                        workers elsewhere: hyperfarm worker --mongo ...

Every trial trains one network and stores it as a .keras file. At the end the best one comes back from the
database, is loaded and evaluated again, and the search is drawn in three dimensions.
"""

from __future__ import annotations

import argparse
import functools
import os
import shutil
import sys
from pathlib import Path

import numpy as np

from hyperfarm import hp, minimize, trial
from hyperfarm.errors import HyperfarmError

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

CLASSES = 10
BATCH = 128

space = {
    "l1_size": hp.quniform("l1_size", 12, 256, 4),
    "l1_dropout": hp.uniform("l1_dropout", 0.001, 0.7),
}


def load_data(dataset: str):
    """Return (x_train, y_train, x_test, y_test): rows of pixels from 0 to 1, and class numbers."""
    if dataset == "mnist":
        import keras

        keras_home = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras")
        try:
            (x_train, y_train), (x_test, y_test) = keras.datasets.mnist.load_data()
        except Exception as error:
            raise RuntimeError(
                f"MNIST cannot be fetched ({error}); it needs the internet once. Try --dataset digits, or put "
                f"mnist.npz into {keras_home / 'datasets'}"
            ) from error
        x_train, x_test = x_train.reshape(len(x_train), -1) / 255.0, x_test.reshape(len(x_test), -1) / 255.0
    else:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        x, y = load_digits(return_X_y=True)
        x_train, x_test, y_train, y_test = train_test_split(x / 16.0, y, test_size=0.25, random_state=0)
    return (
        x_train.astype("float32"),
        y_train.astype("int64"),
        x_test.astype("float32"),
        y_test.astype("int64"),
    )


@functools.cache
def cached_data(dataset: str):
    """The data, loaded once per process: a slot's process runs one trial after the other."""
    return load_data(dataset)


def objective(point: dict, *, dataset: str, epochs: int) -> dict:
    """Train one network; its loss on the held-out set is what the search minimises."""
    import keras

    x_train, y_train, x_test, y_test = cached_data(dataset)
    keras.utils.set_random_seed(trial.id or 0)
    model = keras.Sequential(
        [
            keras.Input((x_train.shape[1],)),
            keras.layers.Dense(int(point["l1_size"]), activation="relu"),
            keras.layers.Dropout(point["l1_dropout"]),
            keras.layers.Dense(CLASSES, activation="softmax"),
        ]
    )
    model.compile(loss="sparse_categorical_crossentropy", optimizer="rmsprop", metrics=["accuracy"])
    model.fit(
        x_train,
        y_train,
        batch_size=BATCH,
        epochs=epochs,
        validation_data=(x_test, y_test),
        callbacks=[trial.keras_callback(every_s=10)],  # Reports; goes on where a killed worker stopped.
        verbose=2,
    )
    loss, accuracy = model.evaluate(x_test, y_test, batch_size=BATCH, verbose=0)
    trial.save_model(model)
    return {"loss": loss, "status": "ok", "accuracy": accuracy, "epochs": epochs}


def evaluate_again(path: Path, dataset: str) -> tuple[float, float]:
    """Load a model file and return its loss and accuracy on the held-out set."""
    import keras

    _, _, x_test, y_test = load_data(dataset)
    loss, accuracy = keras.models.load_model(path).evaluate(x_test, y_test, batch_size=BATCH, verbose=0)
    return loss, accuracy


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", choices=["digits", "mnist"], default="digits")
    parser.add_argument("--max-evals", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--workers", type=int, default=2, help="slots on this machine")
    parser.add_argument("--mongo", help="URL of the database (default: a private one)")
    parser.add_argument("--exp-key", help="name of the experiment (default: that of the data set)")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--output", type=Path, default=Path("demo-output"), help="folder for model and plot")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    load_data(args.dataset)  # A data set that cannot be had is better found out now than in every trial.
    result = minimize(
        functools.partial(objective, dataset=args.dataset, epochs=args.epochs),
        space,
        max_evals=args.max_evals,
        exp_key=args.exp_key or args.dataset,
        mongo=args.mongo,
        workers=args.workers,
        seed=args.seed,
    )
    if result.best_trial is None:
        raise RuntimeError(f"no trial has succeeded; see why: hyperfarm show {result.exp_key}")
    args.output.mkdir(parents=True, exist_ok=True)
    point = ", ".join(f"{name} {value:.4g}" for name, value in sorted(result.best.items()))
    print(f"\nbest of {len(result.trials.finished())} trials: trial {result.best_trial['tid']} with {point}")

    model = result.pull(args.output / f"{result.exp_key}.keras")
    loss, accuracy = evaluate_again(model, args.dataset)
    stored = result.best_trial["result"]
    print(f"its model, fetched from the database: {model}")
    print(f"  held-out loss      {loss:.6f}   stored with the trial: {stored['loss']:.6f}")
    print(f"  held-out accuracy  {accuracy:.6f}   stored with the trial: {stored['accuracy']:.6f}")
    if not np.isclose(loss, stored["loss"], rtol=1e-5):
        raise RuntimeError("the model that came back is not the one that was stored")

    picture = result.plot(args.output / f"{result.exp_key}-3d.png", x="l1_size", y="l1_dropout", z="loss")
    print(f"3D plot: {picture}")
    command = (
        "hyperfarm"
        if shutil.which("hyperfarm")
        else os.path.relpath(Path(sys.executable).parent / "hyperfarm")
    )
    key = result.exp_key
    print("\nnext:")
    print(f"  {command} show {key}      every trial")
    print(f"  {command} logs {key} {result.best_trial['tid']}   what a trial printed")
    print(f"  {command} plot {key} --kind 3d --x l1_size --y l1_dropout --z result.accuracy")
    print("  your own objective: README.md, 'Your own objective'")


if __name__ == "__main__":
    try:
        main()
    except (HyperfarmError, RuntimeError) as error:
        sys.exit(f"keras_digits: {error}")
    except KeyboardInterrupt:
        sys.exit("\nstopped; finished trials are kept. Carry on with the same command.")
