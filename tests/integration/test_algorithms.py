"""Algorithms end to end: a whole grid on several workers, Optuna's sampler, one that misbehaves."""

from __future__ import annotations

import pytest
from hyperopt import hp

from hyperfarm import minimize
from hyperfarm.errors import UsageError
from tests.support import hyperfarm

GRID = """
from hyperfarm import hp
space = {"a": hp.randint("a", 4), "b": hp.choice("b", [0, {"c": hp.quniform("c", 1, 2, 0.5)}])}
def objective(p):
    if p["a"] == 2:
        raise ValueError("never")
    return float(p["a"])
"""
WRONG = """
from hyperopt import rand
def search(new_ids, domain, trials, seed):
    docs = rand.suggest(new_ids, domain, trials, seed)
    if sum(doc["state"] == 2 for doc in trials.trials) >= 5:
        docs[0]["misc"]["vals"]["x"] = [7.0]
    return docs
"""
SPACE = {"x": hp.uniform("x", -5, 5), "n": hp.quniform("n", 1, 9, 1)}


def bowl(point):
    return point["x"] ** 2 + point["n"]


def points(docs):
    return [tuple(sorted((k, v[0]) for k, v in doc["misc"]["vals"].items() if v)) for doc in docs]


def test_the_whole_grid_runs_once_and_is_the_budget(mongo_url, store, tmp_path):
    script = tmp_path / "gridded.py"
    script.write_text(GRID)
    command = ["run", str(script), "--mongo", mongo_url, "--algo", "grid", "--workers", "2"]
    hyperfarm(*command, "--max-evals", "5")
    assert len(store.find_jobs("gridded")) == 5
    done = hyperfarm(*command, "--max-evals", "100", "--extend")
    assert "12 ok, 4 failed" in done.stdout
    assert "the algorithm has no further points" in done.stdout
    assert "carry it on" not in done.stdout
    docs = store.find_jobs("gridded")
    wanted = {(("a", a), ("b", 0)) for a in range(4)}
    wanted |= {(("a", a), ("b", 1), ("c", c)) for a in range(4) for c in (1.0, 1.5, 2.0)}
    assert len(docs) == 16
    assert set(points(docs)) == wanted
    hyperfarm(*command, "--exp-key", "another")
    assert store.experiment("another")["max_evals"] == 16
    assert store.experiment("another")["algo"] == "grid"
    assert set(points(store.find_jobs("another"))) == wanted


def test_a_grid_over_continuous_parameters_needs_a_number_of_points(mongo_url, store):
    wishes = {"exp_key": "bowl", "mongo": mongo_url, "workers": 2, "progress": False}
    with pytest.raises(UsageError, match="x is continuous; say --grid-points N"):
        minimize(bowl, {"x": SPACE["x"]}, max_evals=None, algo="grid", **wishes)
    assert store.experiment("bowl") is None
    result = minimize(bowl, SPACE, max_evals=None, algo="grid", grid_points=3, **wishes)
    assert result.complete
    assert result.best == {"x": 0.0, "n": 1.0}
    assert len(store.find_jobs("bowl")) == 27
    assert store.experiment("bowl")["algo"] == "grid:3"


def test_a_sampler_of_optuna_drives_a_search(mongo_url, store):
    pytest.importorskip("optuna")
    result = minimize(
        bowl, SPACE, max_evals=30, algo="optuna:TPESampler", exp_key="bowl", mongo=mongo_url, workers=2, seed=1,
        progress=False,
    )  # fmt: skip
    docs = store.find_jobs("bowl")
    assert [doc["state"] for doc in docs] == [2] * 30
    assert store.experiment("bowl")["algo"] == "optuna:TPESampler"
    assert result.best_loss < 4.0


def test_an_algorithm_that_leaves_the_space_ends_the_search_tidily(mongo_url, store, tmp_path):
    (tmp_path / "gridded.py").write_text(GRID.replace('"a"', '"x"'))
    (tmp_path / "wrong.py").write_text(WRONG)
    command = ["run", "gridded.py", "--mongo", mongo_url, "--algo", "wrong:search", "--workers", "2"]
    done = hyperfarm(*command, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert "the search algorithm wrong:search returned a point outside the space: x is 7.0" in done.stderr
    assert "Traceback" not in done.stderr
    docs = store.find_jobs("gridded")
    assert len([doc for doc in docs if doc["state"] in (2, 3)]) >= 5
    assert all(doc["state"] != 0 for doc in docs)
    assert 7.0 not in [value for doc in docs for value in doc["misc"]["vals"]["x"]]
    hyperfarm(*command[:-4], "--algo", "rand", "--workers", "2", cwd=tmp_path)
    assert len(store.find_jobs("gridded")) == 20
