"""Templates in a notebook: a real Jupyter kernel, and workers that have never seen it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.support import worker

IMPORTS = """\
import os
from hyperopt import STATUS_OK, Trials, rand
from hyperfarm import MongoTrials
from hyperfarm.templates import minimize
from hyperfarm.distributions import choice, uniform
"""
DATA = """\
def data():
    word = 'from data'
    return word
"""
BLOCK = """\
!true
def block():
    return {{choice(['p', 'q'])}}
"""
MODEL = """\
def create_model(word):
    rate = {{uniform(0, 1)}}
    return {'loss': rate, 'status': STATUS_OK, 'word': word, 'block': block()}
"""
FAILING = """\
def failing(word):
    rate = {{uniform(0, 1)}}
    return word.missing
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run a notebook's cells in a kernel; return what the last cell's expression shows, evaluated."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")
    folder = tmp_path / "notebooks"
    folder.mkdir()

    def execute(*cells: str, save_as: str | None = None) -> Any:
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        if save_as is not None:
            nbformat.write(notebook, folder / save_as)
        NotebookClient(
            notebook, timeout=100, kernel_name="python3", resources={"metadata": {"path": folder}}
        ).execute()
        shown = [one["data"]["text/plain"] for one in notebook.cells[-1].outputs if "data" in one]
        assert [one.name for one in folder.iterdir()] == ([save_as] if save_as else [])
        return json.loads(shown[-1].strip("'").replace("\\\\", "\\").replace("\\'", "'"))

    return execute


def test_a_search_in_the_kernel(run):
    """The model's cell is run under %%time, so that only the history has it; then it is defined anew."""
    search = (
        "import json\ntrials = Trials()\n"
        "best_run, best_model = minimize(create_model, data, rand.suggest, 3, trials, verbose=False)\n"
        "json.dumps([best_run, best_model, trials.results])"
    )
    best_run, best_model, results = run(IMPORTS, DATA, BLOCK, "%%time\n" + MODEL, search)
    assert set(best_run) == {"rate", "block"}
    assert best_model is None
    assert {one["word"] for one in results} == {"from data"}
    assert {one["block"] for one in results} <= {"p", "q"}
    changed = MODEL.replace("uniform(0, 1)", "uniform(5, 6)")
    best_run, _, _ = run(IMPORTS, DATA, BLOCK, "%%time\n" + MODEL, "%%time\n" + changed, search)
    assert 5 <= best_run["rate"] <= 6


def test_a_search_on_the_farm_from_a_notebook(run, mongo_url, store, tmp_path):
    search = (
        f"import json\ntrials = MongoTrials({mongo_url!r}, exp_key='notebook')\n"
        "best_run, _ = minimize(create_model, data, rand.suggest, 3, trials, notebook_name='mine')\n"
        f"other = MongoTrials({mongo_url!r}, exp_key='failing')\n"
        "try:\n    minimize(failing, data, rand.suggest, 1, other, verbose=False)\n"
        "except Exception as error:\n    told = str(error)\n"
        "json.dumps([best_run, told])"
    )
    with worker(mongo_url, tmp_path / "elsewhere"):
        best_run, told = run(IMPORTS, DATA, BLOCK, MODEL, FAILING, search, save_as="mine.ipynb")
    docs = store.find_jobs("notebook")
    assert [doc["state"] for doc in docs] == [2, 2, 2], [doc.get("traceback") for doc in docs]
    assert {doc["result"]["word"] for doc in docs} == {"from data"}
    best = min(docs, key=lambda doc: doc["result"]["loss"])
    assert best_run == {name: vals[0] for name, vals in best["misc"]["vals"].items()}
    assert "no attribute 'missing'" in told
    traceback = store.find_jobs("failing")[0]["traceback"]
    assert ", line 3, in failing\n    return word.missing\n" in traceback, traceback


def test_a_mistake_in_a_cell_is_told_with_its_line(run):
    search = (
        "import json\n"
        "try:\n    minimize(create_model, data, rand.suggest, 1, Trials(), verbose=False)\n"
        "except Exception as error:\n    told = str(error)\n"
        "json.dumps(told)"
    )
    told = run(IMPORTS, DATA, BLOCK, MODEL.replace("uniform", "unifrom"), search)
    assert ", line 2: unifrom in {{unifrom(0, 1)}} is not a distribution; did you mean uniform?" in told
