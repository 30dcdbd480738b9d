"""Scripts with templates on the farm: the main recipe with Keras, and all that travels with a model function."""

from __future__ import annotations

import ast
import io
import os
import re
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

from hyperfarm import MongoTrials, load_result
from hyperfarm.blobs import Blobs
from tests.support import eventually, hyperfarm, worker

KERAS = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1", "TF_ENABLE_ONEDNN_OPTS": "0"}
HEAD = """
import os, sys, time
from hyperopt import STATUS_OK, Trials, rand, tpe
from hyperfarm import MongoTrials, templates as optim
from hyperfarm.distributions import choice, quniform, uniform
URL = sys.argv[1]
"""
# The recipe, with its imports of hyperas replaced, on the digits that scikit-learn brings.
RECIPE = """
import sys
import tempfile
from datetime import datetime

import keras
from hyperopt import STATUS_OK, tpe
from keras.layers import Activation, BatchNormalization, Dense, Dropout
from keras.models import Sequential
from keras.optimizers import RMSprop
from sklearn.datasets import load_digits

from hyperfarm import MongoTrials
from hyperfarm import templates as optim
from hyperfarm.distributions import choice, quniform, uniform


def data():
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype('float32')
    num_classes = 10
    y = keras.utils.to_categorical(y, num_classes)
    x_train, y_train, x_test, y_test = x[:600], y[:600], x[600:], y[600:]
    return x_train, y_train, x_test, y_test


def block(model):
    model.add(Dense({{choice([8, 16])}}, activation='relu'))


def create_model(x_train, y_train, x_test, y_test):
    l1_size = {{quniform(12, 64, 4)}}
    l1_dropout = {{uniform(0.001, 0.7)}}
    params = {
        'l1_size': l1_size,
        'l1_dropout': l1_dropout
    }
    model = Sequential()
    model.add(Dense(int(l1_size), activation={{choice(['relu', 'sigmoid'])}}))
    model.add(Dropout(l1_dropout))
    model.add({{choice([Dropout({{uniform(0, 0.3)}}), Activation('linear')])}})
    for layer in {{choice([[Dense(20), BatchNormalization()], [Dense(30)]])}}:
        model.add(layer)
    if {{choice(['three', 'four'])}} == 'four':
        block(model)
    model.add(Dense(num_classes, activation='softmax'))
    model.compile(loss='categorical_crossentropy',
                  optimizer=RMSprop(),
                  metrics=['accuracy'])
    start = datetime.now()
    model.fit(x_train, y_train, batch_size={{choice([64, 128])}}, epochs=1, verbose=0)
    score, acc = model.evaluate(x_test, y_test, verbose=0)
    out = {
        'loss': -acc,
        'score': score,
        'status': STATUS_OK,
        'duration': (datetime.now() - start).total_seconds(),
        'ho_params': params,
        'model_config': model.get_config(),
        'model': model
    }
    with tempfile.TemporaryDirectory() as folder:
        model.save(folder + '/model.keras')
        with open(folder + '/model.keras', 'rb') as infile:
            out['model_serial'] = infile.read()
    return out


if __name__ == "__main__":
    trials = MongoTrials(sys.argv[1], exp_key='mnist_test')
    best_run, best_model = optim.minimize(model=create_model,
                                          data=data,
                                          functions=[block],
                                          algo=tpe.suggest,
                                          max_evals=3,
                                          trials=trials,
                                          keep_temp=True)
    print("Best performing model chosen hyper-parameters:")
    print(best_run)
    _, _, x_test, y_test = data()
    print("accuracy", best_model.evaluate(x_test, y_test, verbose=0)[1], -min(trials.losses()))
    print("layers", *[layer.name for layer in best_model.layers])
"""
NAMES = {"l1_size", "l1_dropout", "activation", "add", "Dropout", "add_1", "add_2", "batch_size", "Dense"}


def script(folder: Path, text: str, name: str = "optimise_task.py") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    return folder / name


def run(path: Path, url: str, *args: str, check: bool = True, **env: str) -> subprocess.CompletedProcess:
    """Run a script in a folder of its own."""
    cwd = path.parent / "cwd"
    cwd.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, str(path), url, *args],
        cwd=cwd,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=100,
    )
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_the_main_recipe_with_keras(mongo_url, store, tmp_path):
    path = script(tmp_path / "project", RECIPE)
    with worker(mongo_url, tmp_path / "elsewhere", **KERAS):
        done = run(path, mongo_url, **KERAS)
    docs = store.find_jobs("mnist_test")
    assert [doc["state"] for doc in docs] == [2] * 3, [doc.get("traceback") for doc in docs]
    assert set(docs[0]["misc"]["vals"]) == NAMES
    for doc in docs:
        result, vals = doc["result"], doc["misc"]["vals"]
        assert "model" not in result  # It is a file of the trial.
        assert [entry["name"] for entry in doc["artifacts"]] == ["model.keras"]
        assert result["ho_params"]["l1_size"] == vals["l1_size"][0]
        assert bool(vals["Dropout"]) == (vals["add"][0] == 0)
        config = result["model_config"]["layers"]
        kinds = [layer["class_name"] for layer in config if layer["class_name"] != "InputLayer"]
        wanted = ["Dense", "Dropout", ["Dropout", "Activation"][vals["add"][0]], "Dense"]
        wanted += ["BatchNormalization"] * (vals["add_1"][0] == 0) + ["Dense"] * (vals["add_2"][0] == 1)
        assert kinds == [*wanted, "Dense"]
        assert load_result(doc, mongo_url)["model_serial"].startswith(b"PK")
    accuracy = re.search(r"^accuracy ([\d.]+) ([\d.]+)$", done.stdout, re.MULTILINE)
    assert accuracy, done.stdout + done.stderr
    assert np.isclose(float(accuracy[1]), float(accuracy[2]), atol=1e-6)
    assert [one.name for one in (path.parent / "cwd").iterdir()] == ["temp_model.py"]
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert_pulled(docs, mongo_url, tmp_path)


def assert_pulled(docs: list[dict[str, Any]], url: str, folder: Path) -> None:
    """The model that a command brings is the best one."""
    import keras

    hyperfarm("best", "mnist_test", "--mongo", url)
    hyperfarm("pull", "mnist_test", "-o", str(folder / "best.keras"), "--mongo", url)
    x, y = load_digits(return_X_y=True)
    x, y = (x[600:] / 16).astype("float32"), keras.utils.to_categorical(y[600:], 10)
    model = keras.models.load_model(folder / "best.keras")
    best = min(doc["result"]["loss"] for doc in docs)
    assert np.isclose(model.evaluate(x, y, verbose=0)[1], -best, atol=1e-6)


def test_the_script_of_the_documentation_with_hyperopts_own_trials(tmp_path):
    text = (Path(__file__).parents[2] / "docs" / "templates.md").read_text()
    source = re.search(r"```python\n(import keras.*?)```", text, re.DOTALL)[1]
    connect = re.search(r"MongoTrials\(.*\)", source)[0]
    source = source.replace(connect, "Trials()").replace("import STATUS_OK", "import STATUS_OK, Trials")
    path = script(tmp_path / "project", source.replace("max_evals=10", "max_evals=2"))
    done = run(path, "", **KERAS)
    names = {"int", "activation", "Dropout", "Dropout_1", "Dropout_2", "add", "batch_size"}
    assert set(re.findall(r"^    (\w+) +\w+\(", done.stdout, re.MULTILINE)) == names, done.stdout
    best = re.search(r"^\{'.*\}$", done.stdout, re.MULTILINE)
    assert best, done.stdout
    assert set(ast.literal_eval(best[0])) | {"Dropout_2"} == names  # It takes part where it is chosen.


PLAIN = (
    HEAD
    + """
SIZES = [10, 20]

def data():
    word = "-".join(["never", "in", "the", "database"])
    with open(os.environ["SEEN"], "a") as seen:
        seen.write(f"{os.getpid()}\\n")
    return word

def block():
    return {{choice(['p', 'q'])}}

def create_model(word):
    time.sleep(float(os.environ.get("PAUSE", 0)))
    size = {{choice(SIZES)}}
    rate = {{uniform(0, 1)}}
    return {'loss': rate + size, 'status': STATUS_OK, 'length': len(word), 'block': block(), 'pid': os.getpid()}

if __name__ == "__main__":
    trials = MongoTrials(URL, exp_key='plain')
    print(optim.minimize(create_model, data, rand.suggest, int(sys.argv[2]), trials))
"""
)


def test_data_is_loaded_once_in_each_process_and_never_stored(mongo_url, store, tmp_path):
    path, seen = script(tmp_path / "project", PLAIN), tmp_path / "seen"
    with worker(mongo_url, tmp_path / "elsewhere", "--slots", "2", SEEN=str(seen), PAUSE="0.05"):
        done = run(path, mongo_url, "12", SEEN=str(seen))
    docs = store.find_jobs("plain")
    assert [doc["result"]["length"] for doc in docs] == [len("never-in-the-database")] * 12
    pids = seen.read_text().split()
    assert sorted(pids) == sorted({str(doc["result"]["pid"]) for doc in docs})
    assert len(pids) == 2
    best = min(docs, key=lambda doc: doc["result"]["loss"])
    assert str({name: vals[0] for name, vals in sorted(best["misc"]["vals"].items())}) in done.stdout
    assert "never-in-the-database" not in everything(store)
    assert set(MongoTrials(mongo_url, exp_key="plain").argmin) == {"size", "rate", "block"}
    shown = hyperfarm("show", "plain", "--mongo", mongo_url).stdout
    assert re.search(r"objective +__main__:create_model\nspace +block, rate, size\n", shown), shown


def everything(store: Any) -> str:
    """All documents and files of the database as text, with what is in the bundles."""
    text = ""
    for name in store.database.list_collection_names():
        if name != "farm.chunks":
            text += repr(list(store.database[name].find()))
    blobs = Blobs(store.database)
    for entry in store.experiment("plain")["bundles"]:
        with zipfile.ZipFile(io.BytesIO(blobs.read(entry))) as archive:
            text += repr([archive.read(name) for name in archive.namelist()])
    assert "create_model" in text
    return text


def test_a_killed_controller_goes_on_also_after_an_edit_beside_the_code(mongo_url, store, tmp_path):
    path = script(tmp_path / "project", PLAIN)
    env = {**os.environ, "SEEN": os.devnull}
    with worker(mongo_url, tmp_path / "elsewhere", SEEN=os.devnull, PAUSE="0.1"):
        with subprocess.Popen([sys.executable, str(path), mongo_url, "15"], env=env) as first:
            eventually(lambda: store.jobs.count_documents({"state": 2}) >= 3, "three trials")
            first.send_signal(signal.SIGKILL)
        path.write_text("# A comment moves all lines.\n\n" + PLAIN)
        run(path, mongo_url, "15", SEEN=os.devnull)
    docs = store.find_jobs("plain")
    assert [doc["state"] for doc in docs] == [2] * 15
    assert len({doc["slot"] for doc in docs}) == 15
    assert len(store.experiment("plain")["bundles"]) == 1


def test_changed_code_under_the_same_name_is_refused(mongo_url, store, tmp_path):
    path = script(tmp_path / "project", PLAIN)
    with worker(mongo_url, tmp_path / "elsewhere", SEEN=os.devnull):
        run(path, mongo_url, "2", SEEN=os.devnull)
        path.write_text(PLAIN.replace("['p', 'q']", "['p', 'r']"))
        done = run(path, mongo_url, "4", check=False, SEEN=os.devnull)
    assert "other code or another space than create_model" in done.stderr.replace("__main__:", "")
    assert len(store.find_jobs("plain")) == 2


FAILING = (
    HEAD
    + """
def data():
    return 1


def helper(x):
    return x.missing


def create_model(x):
    rate = {{uniform(0, 1)}}
    made = {{choice([
        helper(x)
    ])}}
    return {'loss': rate, 'status': STATUS_OK}

if __name__ == "__main__":
    optim.minimize(create_model, data, rand.suggest, 2, MongoTrials(URL, exp_key='failing'))
"""
)


def test_tracebacks_of_workers_show_the_scripts_lines(mongo_url, store, tmp_path):
    """Also when a host knows the same code from another file, where it stood on other lines."""
    moved = "# One line more.\n" + FAILING.replace("exp_key='failing'", "exp_key='moved'")
    with worker(mongo_url, tmp_path / "elsewhere"):
        for key, text in (("failing", FAILING), ("moved", moved)):
            path = script(tmp_path / key, text)
            done = run(path, mongo_url, check=False)
            trial = store.find_jobs(key)[0]
            assert_lines(trial["traceback"], path)
            shown = hyperfarm("show", key, "--trial", str(trial["tid"]), "--mongo", mongo_url)
            assert_lines(shown.stdout, path)
    assert "no trial of create_model has succeeded" in done.stderr
    assert "AttributeError: 'int' object has no attribute 'missing'" in done.stderr


def assert_lines(told: str, path: Path) -> None:
    lines = path.read_text().splitlines()
    for text, where in (
        ("    made = {{choice([", "create_model"),
        ("        helper(x)", "<lambda>"),
        ("    return x.missing", "helper"),
    ):
        assert f'File "{path}", line {lines.index(text) + 1}, in {where}' in told, told
        assert text.strip() in told


def test_mistakes_in_a_script_end_it_before_anything_is_queued(mongo_url, store, tmp_path):
    text = FAILING.replace("{{uniform(0, 1)}}", "{{unifrom(0, 1)}}")
    path = script(tmp_path / "project", text)
    done = run(path, mongo_url, check=False)
    line = text.splitlines().index("    rate = {{unifrom(0, 1)}}") + 1
    assert f"{path}, line {line}: unifrom in {{{{unifrom(0, 1)}}}} is not a distribution" in done.stderr
    assert store.find_jobs("failing") == []


# The script's imports are hyperas's own; its functions lie in a module, which travels as a file.
UNCHANGED = """
from hyperfarm.mongoexp import install
install()
import sys
from hyperas import optim
from hyperas.distributions import choice, uniform
from hyperopt import rand, mongoexp
from task import create_model, data

if __name__ == "__main__":
    trials = mongoexp.MongoTrials(sys.argv[1], exp_key='unchanged')
    print(optim.minimize(model=create_model, data=data, algo=rand.suggest, max_evals=3, trials=trials, verbose=False))
    print("models", optim.best_models(2, create_model, data, rand.suggest, 3, trials))
"""
TASK = """
from hyperas import optim
from hyperas.distributions import choice, uniform
import helpers

def data():
    values = helpers.VALUES
    return values

def build():
    return helpers.shift({{uniform(0, 1)}})

class Model:
    def save(self, path):
        raise RuntimeError("cannot be saved")

def create_model(values):
    loss = build() + values[{{choice([0, 1])}}]
    return {'loss': loss, 'status': 'ok', 'model': Model()}
"""


def test_unchanged_imports_of_hyperas_after_install(mongo_url, store, tmp_path):
    path = script(tmp_path / "project", UNCHANGED)
    script(tmp_path / "project", TASK, "task.py")
    script(tmp_path / "project", "VALUES = [5, 6]\ndef shift(x):\n    return x + 10\n", "helpers.py")
    address = re.sub(r"^mongodb(://[^?]*).*", r"mongo\1/jobs", mongo_url)
    with worker(mongo_url, tmp_path / "elsewhere"):
        done = run(path, address)
    docs = store.find_jobs("unchanged")
    assert [doc["state"] for doc in docs] == [2] * 3, [doc.get("traceback") for doc in docs]
    assert all(15 <= doc["result"]["loss"] <= 17 for doc in docs)
    assert all("model" not in doc["result"] for doc in docs)
    assert "models [None, None]" in done.stdout
    log = hyperfarm("logs", "unchanged", "0", "--mongo", mongo_url).stdout
    assert "the model of this trial could not be saved: RuntimeError: cannot be saved" in log
