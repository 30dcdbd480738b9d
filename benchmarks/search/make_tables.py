"""Make the tables of the two real problems: `python -m benchmarks.search.make_tables` (ten minutes of CPU, once).

Losses are means over three stratified folds. digits (500 of its images): the share of wrong answers.
breast_cancer (400 of its rows): 1 - the area under the ROC curve. Features are standardised on the training
rows. Forests, boosting and networks are fitted once for their largest number of trees or epochs, and looked at
on the way.
"""

from __future__ import annotations

import os

os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

import itertools
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.search import real

SEED = 5
FOLDS = 3
SAMPLES = {"digits": 500, "breast_cancer": 400}
Scores = NDArray[np.float64]
"""Of each test row and class, larger where the class is likelier."""


def folds(data_set: str) -> Iterator[tuple[Any, Any, Any, Any]]:
    """Training features and classes, test features and classes."""
    from sklearn import datasets
    from sklearn.model_selection import StratifiedKFold, train_test_split
    from sklearn.preprocessing import StandardScaler

    x, y = getattr(datasets, f"load_{data_set}")(return_X_y=True)
    x, _, y, _ = train_test_split(x, y, train_size=SAMPLES[data_set], stratify=y, random_state=SEED)
    for train, test in StratifiedKFold(FOLDS, shuffle=True, random_state=SEED).split(x, y):
        scaler = StandardScaler().fit(x[train])
        yield scaler.transform(x[train]), y[train], scaler.transform(x[test]), y[test]


def loss(data_set: str, scores: Scores, y: Any) -> float:
    """The data set's loss of scores."""
    from sklearn.metrics import roc_auc_score

    if data_set == "digits":
        return float((scores.argmax(axis=1) != y).mean())
    return 1 - float(roc_auc_score(y, scores[:, 1]))


def forest(x: Any, y: Any, test: Any, known: dict[str, Any]) -> Iterator[Scores]:
    """Scores for each number of trees."""
    from sklearn.ensemble import RandomForestClassifier

    model = RandomForestClassifier(
        n_estimators=60,
        max_depth=int(known["depth"]),
        max_features=known["features"],
        criterion=known["criterion"],
        random_state=SEED,
    ).fit(x, y)
    votes = np.cumsum([tree.predict_proba(test) for tree in model.estimators_], axis=0)
    for trees in real.GRIDS["forest"]["trees"].values():
        yield votes[int(trees) - 1]


def svm(x: Any, y: Any, test: Any, known: dict[str, Any]) -> Iterator[Scores]:
    """Scores for each gamma (all the same for the linear kernel, which has none)."""
    from sklearn.svm import SVC

    scores = None
    for log_gamma in real.GRIDS["svm"]["log_gamma"].values():
        if scores is None or known["kernel"] != "linear":
            model = SVC(
                C=10 ** known["log_c"], gamma=10**log_gamma, kernel=known["kernel"], max_iter=20_000
            ).fit(x, y)
            found = model.decision_function(test)
            scores = found if found.ndim == 2 else np.stack([-found, found], axis=1)
        yield scores


def mlp(x: Any, y: Any, test: Any, known: dict[str, Any]) -> Iterator[Scores]:
    """Scores after each number of epochs."""
    from sklearn.neural_network import MLPClassifier

    model = MLPClassifier(
        hidden_layer_sizes=(int(known["width"]),),
        activation=known["activation"],
        learning_rate_init=10 ** known["log_rate"],
        alpha=10 ** known["log_alpha"],
        batch_size=64,
        random_state=SEED,
    )
    classes, done = np.unique(y), 0
    for epochs in real.GRIDS["mlp"]["epochs"].values():
        for _ in range(int(epochs) - done):
            model.partial_fit(x, y, classes=classes)
        done = int(epochs)
        yield model.predict_proba(test)


def boosting(x: Any, y: Any, test: Any, known: dict[str, Any]) -> Iterator[Scores]:
    """Scores for each number of trees."""
    from sklearn.ensemble import GradientBoostingClassifier

    model = GradientBoostingClassifier(
        n_estimators=40,
        learning_rate=10 ** known["log_rate"],
        max_depth=int(known["depth"]),
        subsample=known["subsample"],
        max_features="sqrt",
        random_state=SEED,
    ).fit(x, y)
    stages = list(model.staged_predict_proba(test))
    for trees in real.GRIDS["boosting"]["trees"].values():
        yield stages[int(trees) - 1]


MODELS: dict[str, tuple[Callable[..., Iterator[Scores]], str]] = {
    "forest": (forest, "trees"),
    "svm": (svm, "log_gamma"),
    "mlp": (mlp, "epochs"),
    "boosting": (boosting, "trees"),
}
"""Each model, and the parameter that its function yields the scores of one by one."""


def table(data_set: str, model: str) -> NDArray[np.float32]:
    """Losses of all configurations, an axis per parameter in the order of real.GRIDS."""
    warnings.simplefilter("ignore")
    fit, along = MODELS[model]
    grid = real.GRIDS[model]
    axis = list(grid).index(along)
    others = [name for name in grid if name != along]
    data = list(folds(data_set))
    lines = []
    for found in itertools.product(*(grid[name].values() for name in others)):
        known = dict(zip(others, found, strict=True))
        per_fold = [
            [loss(data_set, scores, y_test) for scores in fit(x, y, test, known)]
            for x, y, test, y_test in data
        ]
        lines.append(np.mean(per_fold, axis=0))
    shape = [len(grid[name].values()) for name in others]
    return np.moveaxis(np.reshape(lines, [*shape, -1]), -1, axis).astype(np.float32)


def main() -> None:
    """Make both tables, two processes at a time."""
    real.FOLDER.mkdir(exist_ok=True)
    started = time.monotonic()
    with ProcessPoolExecutor(2) as pool:
        jobs = {
            (data_set, model): pool.submit(table, data_set, model) for data_set in SAMPLES for model in MODELS
        }
        for data_set in SAMPLES:
            found = {model: jobs[data_set, model].result() for model in MODELS}
            path = real.FOLDER / f"{data_set}.npz"
            np.savez_compressed(path, **found)
            size, took = sum(losses.size for losses in found.values()), time.monotonic() - started
            print(f"{path.name}: {size} configurations, {path.stat().st_size} bytes, after {took:.0f} s")
            for model, losses in found.items():
                print(f"  {model}: {losses.min():.4f} to {losses.max():.4f}, median {np.median(losses):.4f}")


if __name__ == "__main__":
    main()
