"""The main recipe with real Keras training: README's demonstration, on both data sets."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "keras_digits.py"


def demo(*args: str, cwd: Path, check: bool = True, **env: str) -> subprocess.CompletedProcess:
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), *args],
        cwd=cwd,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=170,
    )
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done


def same_numbers(output: str) -> None:
    """What the model that came back scores is what was stored with the trial, up to the order of float32's sums."""
    pairs = re.findall(r"held-out (\w+) +([\d.]+) +stored with the trial: ([\d.]+)", output)
    assert [name for name, _, _ in pairs] == ["loss", "accuracy"], output
    assert all(float(measured) == pytest.approx(float(stored), abs=5e-6) for _, measured, stored in pairs), (
        output
    )


def test_the_demonstration_on_digits(mongo_url, store, tmp_path):
    done = demo("--mongo", mongo_url, "--max-evals", "6", "--epochs", "3", cwd=tmp_path)
    same_numbers(done.stdout)
    docs = store.find_jobs("digits")
    assert [doc["state"] for doc in docs] == [2] * 6
    models = [entry for doc in docs for entry in doc["artifacts"] if entry["kind"] == "model"]
    assert [entry["name"] for entry in models] == ["model.keras"] * 6
    assert all(store.reports(doc)[-1]["step"] == 2 for doc in docs)
    picture = tmp_path / "demo-output" / "digits-3d.png"
    assert str(picture) in done.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "next:" in done.stdout
    # TensorFlow is imported once per slot: the trial that does it takes seconds longer than the others.
    assert sum(doc["duration"] > 2 * np.median([doc["duration"] for doc in docs]) for doc in docs) <= 2


def test_the_demonstration_on_mnists_real_path_with_a_made_file(mongo_url, store, tmp_path):
    x, y = load_digits(return_X_y=True)
    images = np.kron(x.reshape(-1, 8, 8), np.ones((4, 4)))[:, 2:30, 2:30] * 15.9
    folder = tmp_path / "keras" / "datasets"
    folder.mkdir(parents=True)
    images = images.astype("uint8")
    np.savez(folder / "mnist.npz", x_train=images[:800], y_train=y[:800], x_test=images[800:], y_test=y[800:])
    known = tmp_path / "site"
    known.mkdir()
    # Keras checks the hash of the real file; everything else is its real loading code.
    (known / "sitecustomize.py").write_text(
        "import keras.src.utils.file_utils as files\nfiles.validate_file = lambda *a, **k: True\n"
        "import keras.src.datasets.mnist\n"
    )
    env = {"KERAS_HOME": str(tmp_path / "keras"), "PYTHONPATH": str(known)}
    options = [
        "--dataset",
        "mnist",
        "--mongo",
        mongo_url,
        "--max-evals",
        "2",
        "--epochs",
        "1",
        "--workers",
        "1",
    ]
    done = demo(*options, cwd=tmp_path, **env)
    same_numbers(done.stdout)
    assert [doc["state"] for doc in store.find_jobs("mnist")] == [2, 2]


def test_mnist_without_the_internet_is_one_clear_sentence(tmp_path):
    proxy = {"https_proxy": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}
    done = demo("--dataset", "mnist", cwd=tmp_path, check=False, KERAS_HOME=str(tmp_path / "empty"), **proxy)
    assert done.returncode == 1
    assert "MNIST cannot be fetched" in done.stderr
    assert "--dataset digits" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_scripts_of_analysis_run_by_themselves(mongo_url, store, tmp_path):
    demo("--mongo", mongo_url, "--max-evals", "2", "--epochs", "1", cwd=tmp_path)
    for script, *options in (["best_model.py", "-o", "best.keras"], ["plot_3d.py"]):
        done = subprocess.run(
            [sys.executable, str(ROOT / "analysis" / script), "digits", *options, "--mongo", mongo_url],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=100,
            check=True,
        )
        assert Path(done.stdout.splitlines()[-1]).is_file()
