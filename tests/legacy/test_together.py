"""hyperopt 0.2.7's own programs and ours in one farm: each with the other's jobs, and both at once."""
# ruff: noqa: E501

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pymongo.database import Database

from tests.legacy.conftest import OURS, THEIRS, tell
from tests.legacy.original import Original
from tests.support import descendants, eventually, hyperfarm, worker

SEARCH = """
import json, os, sys, time
import numpy as np
from hyperopt import fmin, hp, rand, tpe
from {module} import MongoTrials
from helping import square

def objective(point):
    time.sleep(point.get("pause", 0))
    if point["x"] > 99:
        raise ValueError("too much")
    return {{"loss": square(point["x"] - 1), "status": "ok", "by": os.path.basename(sys.argv[0]), "attachments": {{"note": b"hi"}}}}

space = {{"x": hp.uniform("x", -5, {high}), "c": hp.choice("c", [("a",), ("b", hp.loguniform("rate", -3, 0))]), "pause": {pause}}}
if __name__ == "__main__":
    trials = MongoTrials(sys.argv[1], exp_key=sys.argv[2])
    fmin(objective, space, tpe.suggest, int(sys.argv[3]), trials=trials, rstate=np.random.default_rng(3), show_progressbar=False, return_argmin=False)
    trials.refresh()
    print("TOLD" + json.dumps({{"len": len(trials), "best": trials.best_trial["result"]["loss"], "argmin": sorted(trials.argmin),
        "by": sorted(set(one.get("by", "") for one in trials.results)), "note": trials.trial_attachments(trials.best_trial)["note"].decode(),
        "errors": trials.count_by_state_unsynced(3)}}))
"""
FAST = ("--poll-interval=0.1", "--max-consecutive-failures=1000", "--reserve-timeout=100")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The folder of a person's program: its helper module is nowhere else."""
    folder = tmp_path / "program"
    folder.mkdir()
    (folder / "helping.py").write_text("def square(x):\n    return x ** 2\n")
    return folder


def write(home: Path, module: str, *, pause: float = 0.0, high: float = 5.0) -> str:
    name = f"search_{module.split('.')[0]}.py"
    (home / name).write_text(SEARCH.format(module=module, pause=pause, high=high))
    return name


@contextlib.contextmanager
def mongo_worker(
    command: str, url: str, folder: Path, *options: str, path: Path | str = ""
) -> Iterator[subprocess.Popen[bytes]]:
    """A process of hyperopt-mongo-worker's kind; its output goes to `folder/log`. `path` is its PYTHONPATH."""
    folder.mkdir(exist_ok=True)
    words = [command, f"--mongo={url.removeprefix('mongo://').removesuffix('/jobs')}", *FAST, *options]
    with open(folder / "log", "ab") as log:
        process = subprocess.Popen(
            words,
            cwd=folder,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": str(path)},
            start_new_session=True,
        )
    try:
        yield process
    finally:
        for pid in [process.pid, *descendants(process.pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def mongodb(url: str) -> str:
    """The address as the rest of hyperfarm's commands take it, too."""
    return f"mongodb{url.removeprefix('mongo').removesuffix('/jobs')}"


def test_its_workers_run_our_search(legacy: Original, home: Path, url: str, tmp_path: Path) -> None:
    script = write(home, OURS)
    with mongo_worker(legacy.worker, url, tmp_path / "host"):
        told = tell(sys.executable, home, script, url, "k", "6")
    assert (told["len"], told["note"], told["by"]) == (6, "hi", ["hyperopt-mongo-worker"])


def test_our_workers_run_its_search_if_they_are_told_to_trust_it(
    legacy: Original, home: Path, url: str, tmp_path: Path, database: Database[dict[str, Any]]
) -> None:
    """The objective's module is its own, and hyperopt copies no files: it must lie where the worker runs."""
    script = write(home, THEIRS)
    host = {"PYTHONPATH": str(home)}
    search = subprocess.Popen([legacy.python, script, url, "k", "6"], cwd=home, stdout=subprocess.PIPE)
    try:
        with worker(mongodb(url), tmp_path / "careful"):
            refusal = eventually(lambda: database["workers"].find_one({"refused.exp_key": "k"}), "a refusal")
            assert "--trust-unsigned runs them" in refusal["refused"][0]["reason"]
            assert database["jobs"].count_documents({"state": {"$ne": 0}}) == 0
        with worker(mongodb(url), tmp_path / "trusting", "--trust-unsigned", **host):
            out, _ = search.communicate(timeout=100)
    finally:
        search.kill()
        search.wait()
    assert b'"len": 6' in out
    assert b'"note": "hi"' in out


def test_one_search_with_both_kinds_of_workers(
    legacy: Original, home: Path, url: str, tmp_path: Path, database: Database[dict[str, Any]]
) -> None:
    script = write(home, OURS, pause=0.3)
    with mongo_worker(legacy.worker, url, tmp_path / "theirs"), worker(mongodb(url), tmp_path / "ours"):
        told = tell(sys.executable, home, script, url, "k", "20")
    assert (told["len"], told["errors"]) == (20, 0)
    by_ours = database["jobs"].count_documents({"accepted": {"$exists": True}})
    assert 0 < by_ours < 20
    assert database["jobs"].count_documents({"state": 2, "accepted": None}) == 20 - by_ours


@pytest.mark.parametrize("end", ["killed", "stopped for a while"])
def test_the_job_of_its_worker_is_taken_back(
    legacy: Original,
    home: Path,
    url: str,
    tmp_path: Path,
    database: Database[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    end: str,
) -> None:
    script = write(home, OURS, pause=2)
    monkeypatch.setenv("HYPERFARM_LEGACY_GRACE", "4")
    search = subprocess.Popen(
        [sys.executable, script, url, "k", "1"], cwd=home, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        with mongo_worker(legacy.worker, url, tmp_path / "theirs") as theirs:
            jobs = database["jobs"]
            eventually(lambda: jobs.find_one({"state": 1, "lease": None}), "its claim")
            family = [theirs.pid, *descendants(theirs.pid)]
            for pid in family:
                os.kill(pid, signal.SIGKILL if end == "killed" else signal.SIGSTOP)
            taken = eventually(lambda: jobs.find_one({"state": 0, "history": {"$exists": True}}), "it back")
            assert (taken["attempt"], taken["owner"]) == (1, None)
            assert "no sign of life" in taken["history"][0]["reason"]
            with worker(mongodb(url), tmp_path / "ours"):
                out, err = search.communicate(timeout=100)
            assert b'"len": 1' in out
            assert err.count(b"is no worker of hyperfarm's") <= 1
            done = jobs.find_one({})
            if end != "killed":
                for pid in family:
                    os.kill(pid, signal.SIGCONT)
                log = tmp_path / "theirs" / "log"
                eventually(lambda: "OperationFailure" in log.read_text(), "its late result is refused")
            assert jobs.find_one({}) == done
            assert (done["state"], done["attempt"]) == (2, 2)
    finally:
        search.kill()
        search.wait()


def test_a_database_of_the_original_is_opened_and_carried_on_and_goes_back(
    legacy: Original, home: Path, url: str, tmp_path: Path, database: Database[dict[str, Any]]
) -> None:
    theirs, ours = write(home, THEIRS), write(home, OURS)
    with mongo_worker(legacy.worker, url, tmp_path / "theirs", path=home):
        first = tell(legacy.python, home, theirs, url, "k", "5")
    assert first["len"] == 5
    before = list(database["jobs"].find())
    env = {"HYPERFARM_MONGO": mongodb(url)}
    assert "5" in hyperfarm("ls", **env).stdout
    assert "k" in hyperfarm("ls", **env).stdout
    assert f"{first['best']:.6g}" in hyperfarm("best", "k", **env).stdout
    assert hyperfarm("show", "k", **env).stdout.count("done") >= 5
    hyperfarm("plot", "k", "--x", "x", "--y", "c", "-o", str(tmp_path / "k.png"), **env)
    assert (tmp_path / "k.png").stat().st_size > 5000
    assert [doc["version"] for doc in database["jobs"].find()] == [doc["version"] for doc in before]
    with worker(mongodb(url), tmp_path / "host"):
        second = tell(sys.executable, home, ours, url, "k", "9")
    assert second["len"] == 9
    assert database["jobs"].count_documents({}) == 9
    with mongo_worker(legacy.worker, url, tmp_path / "theirs", path=home):
        third = tell(legacy.python, home, theirs, url, "k", "11")
    assert third["len"] == 11
    assert third["best"] <= second["best"] <= first["best"]
