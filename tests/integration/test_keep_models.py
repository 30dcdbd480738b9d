"""`hyperfarm run --keep-models`: a real search keeps the models of its best trials, and says so of the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hyperfarm.store import Store
from tests.support import eventually, hyperfarm, worker

SCRIPT = """
from hyperfarm import hp, trial
space = {"x": hp.uniform("x", -5, 5)}

class Model:
    def __init__(self, x):
        self.x = x

    def save(self, path):
        with open(path, "w") as file:
            file.write(f"model of {self.x}")

def objective(point):
    trial.save("notes.txt", b"notes")
    trial.save_model(Model(point["x"]))
    return (point["x"] - 1) ** 2
"""
TRIALS = 9


def search(store: Store, url: str, folder: Path, *options: str, text: str = SCRIPT) -> list[dict[str, Any]]:
    """Run the search on a worker with three slots; return its trials, the best first."""
    (folder / "task.py").write_text(text)
    with worker(url, folder / "w", "--slots", "3"):
        hyperfarm(
            "run", str(folder / "task.py"), "--mongo", url, "--max-evals", str(TRIALS), "--algo", "rand", *options
        )  # fmt: skip
        eventually(lambda: settled(store), "the last trials have removed what they pushed out")
    docs = store.find_jobs("task")
    assert [doc["state"] for doc in docs] == [2] * TRIALS
    return sorted(docs, key=lambda doc: (doc["result"]["loss"], doc["tid"]))


def settled(store: Store) -> bool:
    """True when every stored model belongs to a trial: workers delete files after they have told the trials."""
    referred = {one["blob"] for doc in store.find_jobs("task") for one in doc.get("artifacts", ())}
    saved = {"metadata.kind": {"$in": ["model", "artifact"]}}
    return referred == set(store.database["farm.files"].distinct("_id", saved))


def kinds(store: Store) -> dict[str, int]:
    rows = store.database["farm.files"].aggregate([{"$group": {"_id": "$metadata.kind", "n": {"$sum": 1}}}])
    return {row["_id"]: row["n"] for row in rows if row["_id"] != "log"}


def names(doc: dict[str, Any]) -> list[str]:
    return sorted(one["name"] for one in doc["artifacts"])


def said(*args: str) -> str:
    """What a command that must be refused says: one sentence."""
    done = hyperfarm(*args, check=False)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("hyperfarm: ")
    return line


def test_the_two_best_trials_keep_their_models(mongo_url: str, store: Store, tmp_path: Path) -> None:
    best, second, *others = search(store, mongo_url, tmp_path, "--keep-models", "2")
    assert kinds(store) == {"bundle": 1, "model": 2, "artifact": TRIALS}
    assert names(best) == names(second) == ["model.keras", "notes.txt"]
    assert all(names(doc) == ["notes.txt"] and doc["models_removed"] for doc in others)
    assert not {"models_removed"} & {*best, *second}
    gc = hyperfarm("gc", "--older-than", "0", "--mongo", mongo_url).stdout
    assert "nothing that nothing refers to" in gc

    file = tmp_path / "best.keras"
    for named, doc in (((), best), (("--trial", str(second["tid"])), second)):
        hyperfarm("pull", "task", *named, "-o", str(file), "--mongo", mongo_url)
        assert file.read_text() == f"model of {doc['misc']['vals']['x'][0]}"
    file.unlink()
    pull = ("pull", "task", "--trial", str(others[0]["tid"]), "-o", str(file), "--mongo", mongo_url)
    told = said(*pull)
    assert f"the model of trial {others[0]['tid']} of task was removed" in told
    assert "only the models of the 2 best trials are kept" in told
    assert "notes.txt" in told, "what there is instead"
    assert "only the models of the 2 best trials are kept" in said(*pull, "--name", "model.keras")
    assert not file.exists()
    hyperfarm(*pull, "--name", "notes.txt")
    assert file.read_bytes() == b"notes"


def test_none_keeps_no_model(mongo_url: str, store: Store, tmp_path: Path) -> None:
    best, *_ = search(store, mongo_url, tmp_path, "--keep-models", "none")
    assert kinds(store) == {"bundle": 1, "artifact": TRIALS}
    assert names(best) == ["notes.txt"]
    told = said("pull", "task", "-o", str(tmp_path / "f"), "--mongo", mongo_url)
    assert "was removed, because no models are kept" in told


def test_all_keeps_all(mongo_url: str, store: Store, tmp_path: Path) -> None:
    docs = search(store, mongo_url, tmp_path, "--keep-models", "all")
    assert kinds(store) == {"bundle": 1, "model": TRIALS, "artifact": TRIALS}
    assert not any("models_removed" in doc for doc in docs)


def test_failed_trials_keep_none_and_cost_the_others_nothing(
    mongo_url: str, store: Store, tmp_path: Path
) -> None:
    fails = SCRIPT.replace(
        "    return (", "    if trial.id % 2:\n        raise ValueError('odd')\n    return ("
    )
    (tmp_path / "task.py").write_text(fails)
    with worker(mongo_url, tmp_path / "w", "--slots", "3"):
        hyperfarm(
            "run", str(tmp_path / "task.py"), "--mongo", mongo_url, "--max-evals", "6", "--keep-models", "1"
        )
        eventually(lambda: settled(store), "the last trials have removed what they pushed out")
    docs = store.find_jobs("task")
    assert [doc["state"] for doc in docs] == [2, 3] * 3
    best = store.best_job("task")
    assert [doc["tid"] for doc in docs if "model.keras" in names(doc)] == [best["tid"]]
    told = said(
        "pull", "task", "--trial", str(docs[1]["tid"]), "-o", str(tmp_path / "f"), "--mongo", mongo_url
    )
    assert "only the model of the best trial is kept" in told


@pytest.mark.parametrize("value", ["x", "-1", "1.5", "", "best"])
def test_a_value_that_makes_no_sense(mongo_url: str, store: Store, tmp_path: Path, value: str) -> None:
    (tmp_path / "task.py").write_text(SCRIPT)
    told = said("run", str(tmp_path / "task.py"), "--mongo", mongo_url, "--keep-models", value)
    assert "keep_models" in told
    assert not store.experiments()
