"""hyperfarm.mongoexp where it is better than what it replaces; what is alike is compared in tests/legacy."""
# ruff: noqa: E501

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hyperopt import fmin, hp, rand
from pymongo import MongoClient

from hyperfarm import mongoexp
from hyperfarm.errors import UsageError
from hyperfarm.mongoexp import DomainSwapError, MongoTrials, MongoWorker
from tests.support import eventually, hyperfarm, worker

SPACE = {"x": hp.uniform("x", -5, 5), "c": hp.choice("c", [1, hp.uniform("deep", 10, 20)])}
POINTS = [{"x": 1.5, "c": 0}, {"x": -2.0, "c": 1, "deep": 12.5}]


def objective(point: dict[str, Any]) -> float:
    return point["x"] ** 2


@pytest.fixture
def trials(mongo_url: str) -> Iterator[MongoTrials]:
    made = MongoTrials(mongo_url, exp_key="k")
    yield made
    made.handle.conn.close()


def serve(trials: MongoTrials, count: int) -> threading.Thread:
    mine = MongoWorker(trials.handle, poll_interval=0.1, logfilename=None)

    def loop() -> None:
        for _ in range(count):
            mine.run_one(reserve_timeout=30, erase_created_workdir=True)

    thread = threading.Thread(target=loop)
    thread.start()
    return thread


def vals(trials: MongoTrials) -> list[dict[str, Any]]:
    docs = sorted(trials.trials, key=lambda doc: doc["tid"])
    return [{name: one[0] for name, one in doc["misc"]["vals"].items() if one} for doc in docs]


WAYS = {
    "as a method": lambda trials, **more: trials.fmin(objective, SPACE, rand.suggest, **more),
    "our fmin": lambda trials, **more: mongoexp.fmin(objective, SPACE, rand.suggest, trials=trials, **more),
}


@pytest.mark.parametrize("way", WAYS)
def test_points_to_evaluate_come_first(trials: MongoTrials, way: str) -> None:
    thread = serve(trials, 4)
    WAYS[way](trials, max_evals=4, points_to_evaluate=POINTS, show_progressbar=False)
    thread.join()
    assert vals(trials)[:2] == POINTS
    assert len(trials) == 4


@pytest.mark.parametrize(
    ("points", "told"),
    [
        ([{"y": 1}], "number 1: the space has no parameter 'y'; the nearest is"),
        ([POINTS[0], {"x": 1.0, "c": 1}], "number 2: deep is missing"),
        ([{"x": 1.0, "c": 7}], "number 1: c is 7; it must be the index of an option, 0 to 1"),
        ([3], "number 1 is no dict"),
    ],
)
def test_a_point_that_the_space_cannot_take_is_told_before_anything_runs(
    trials: MongoTrials, points: list[Any], told: str
) -> None:
    with pytest.raises(UsageError, match=told):
        trials.fmin(objective, SPACE, rand.suggest, 4, points_to_evaluate=points)
    assert not list(trials.handle.jobs.find())


def test_another_objective_is_refused_while_trials_wait(trials: MongoTrials, mongo_url: str) -> None:
    with pytest.raises(ValueError, match="no finished trials"):
        trials.fmin(objective, SPACE, rand.suggest, 4, timeout=0.5, show_progressbar=False)
    trials.handle.jobs.insert_one(
        {**trials.new_trial_docs([99], [None], [{"status": "new"}], [{"tid": 99, "cmd": None, "idxs": {}, "vals": {}}])[0]}
    )  # fmt: skip

    def other(point: dict[str, Any]) -> float:
        return -point["x"]

    with pytest.raises(DomainSwapError, match="other code"):
        trials.fmin(other, SPACE, rand.suggest, 4, show_progressbar=False)
    trials.handle.delete_all({"tid": 99})
    thread = serve(trials, 2)
    trials.fmin(other, SPACE, rand.suggest, 2, show_progressbar=False)  # Nothing waits any more.
    thread.join()
    assert all(doc["result"]["loss"] == -doc["misc"]["vals"]["x"][0] for doc in trials.trials)
    asked = MongoTrials(mongo_url, exp_key="k", replace_code=True)
    thread = serve(asked, 1)
    asked.fmin(objective, SPACE, rand.suggest, 3, show_progressbar=False)
    thread.join()
    assert len(asked) == 3


def test_fmin_ends_at_its_timeout_though_a_dead_worker_holds_a_job(trials: MongoTrials) -> None:
    began = time.monotonic()

    def hold() -> None:
        eventually(lambda: trials.handle.reserve("a dead worker", exp_key="k"), "a job")

    thread = threading.Thread(target=hold)
    thread.start()
    trials.fmin(objective, SPACE, rand.suggest, 3, timeout=3, return_argmin=False, show_progressbar=False)
    thread.join()
    assert time.monotonic() - began < 20


def test_a_lease_brings_the_job_of_a_dead_worker_back(trials: MongoTrials, tmp_path: Path) -> None:
    (tmp_path / "die.py").write_text("""
import cloudpickle, os, sys
from hyperfarm.mongoexp import MongoTrials, MongoWorker
trials = MongoTrials(sys.argv[1], exp_key="k")
def once(spec, ctrl):
    if ctrl.current_trial["attempt"] == 1:
        os.kill(os.getpid(), 9)
    return {"loss": 1.0, "status": "ok"}
[tid] = trials.new_trial_ids(1)
misc = {"tid": tid, "cmd": ["cpickled fn", cloudpickle.dumps(once)], "workdir": None, "idxs": {}, "vals": {}}
trials.insert_trial_docs(trials.new_trial_docs([tid], [None], [{"status": "new"}], [misc]))
MongoWorker(trials.handle, logfilename=None, lease_s=1).run_one()
""")
    url = f"mongodb://127.0.0.1:{trials.handle.conn.address[1]}/{trials.handle.db.name}"
    died = subprocess.run([sys.executable, "die.py", url], cwd=tmp_path, check=False, timeout=60)
    assert died.returncode == -9
    search = (
        threading.Thread(  # Whoever watches the experiment takes expired leases back: a controller, a worker.
            target=lambda: hyperfarm("worker", "--lease", "3", "--max-jobs", "1", HYPERFARM_MONGO=url)
        )
    )
    search.start()
    search.join()
    trials.refresh()
    assert (trials.statuses(), trials.trials[0]["attempt"]) == (["ok"], 2), trials.handle.jobs.find_one()


def test_the_control_shows_the_other_trials_and_takes_results(trials: MongoTrials, tmp_path: Path) -> None:
    (tmp_path / "inject.py").write_text("""
import sys
from hyperopt import Ctrl, hp, rand
from hyperopt.fmin import fmin_pass_expr_memo_ctrl
from hyperopt.pyll import rec_eval
from hyperfarm.mongoexp import MongoTrials

@fmin_pass_expr_memo_ctrl
def objective(expr, memo, ctrl):
    x = rec_eval(expr, memo=memo)
    seen = len(ctrl.trials)
    tid = ctrl.current_trial["tid"]
    misc = {"idxs": {"x": [tid]}, "vals": {"x": [-x]}}
    if seen < 3:
        ctrl.inject_results([None], [{"loss": 100.0, "status": "ok"}], [misc])
    return {"loss": x, "status": "ok", "seen": seen}

trials = MongoTrials(sys.argv[1], exp_key="k")
try:
    trials.fmin(objective, hp.uniform("x", 0, 1), rand.suggest, 2, show_progressbar=False)
except ValueError:
    print(list(trials.handle.jobs.find()), file=sys.stderr)
    raise
""")
    url = f"mongodb://127.0.0.1:{trials.handle.conn.address[1]}/{trials.handle.db.name}"
    with worker(url, tmp_path / "host"):
        done = subprocess.run(
            [sys.executable, "inject.py", url], cwd=tmp_path, capture_output=True, text=True, timeout=90, check=False
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    trials.refresh()
    assert sorted(trials.losses())[-1] == 100.0
    injected = [doc for doc in trials.trials if doc["misc"].get("from_tid") is not None]
    assert len(injected) >= 1
    assert all(doc["state"] == 2 for doc in injected)


def test_in_the_place_of_hyperopts(tmp_path: Path, mongo_url: str) -> None:
    """A program whose imports cannot be changed."""
    (tmp_path / "program.py").write_text("""
import threading
from hyperopt import fmin, hp, rand, mongoexp
from hyperopt.mongoexp import MongoTrials, MongoWorker, main_worker
import hyperopt.mongoexp
import hyperopt.fmin as module
from hyperas import optim
from hyperas.distributions import choice, uniform
import hyperas.distributions, hyperas.optim

def run(url):
    trials = MongoTrials(url, exp_key="k")
    worker = MongoWorker(trials.handle, 0.1, logfilename=None)
    thread = threading.Thread(target=lambda: [worker.run_one(None, 30, True) for _ in range(3)])
    thread.start()
    fmin(lambda x: x ** 2, hp.uniform("x", -5, 5), rand.suggest, 3, trials=trials, points_to_evaluate=[{"x": 0.25}],
         show_progressbar=False)
    thread.join()
    print(MongoTrials.__module__, mongoexp.__name__, optim.minimize.__module__, trials.losses()[0])
    plain = fmin(lambda x: x ** 2, hp.uniform("x", -5, 5), rand.suggest, 3, points_to_evaluate=[{"x": 0.0}], show_progressbar=False)
    print(plain)
""")
    (tmp_path / "start.py").write_text("""
import sys, hyperfarm.mongoexp
hyperfarm.mongoexp.install()
hyperfarm.mongoexp.install()
import program
program.run(sys.argv[1])
""")
    done = subprocess.run(
        [sys.executable, "start.py", mongo_url], cwd=tmp_path, capture_output=True, text=True, timeout=90, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()[-2:]
    assert first.startswith("hyperfarm.mongo_trials hyperfarm.mongoexp hyperfarm.templates")
    assert first.endswith(" 0.0625")
    assert second == "{'x': 0.0}"


def test_a_refresh_costs_what_changed(trials: MongoTrials) -> None:
    """During a search, where it is done all the time; hyperopt reads all versions each time."""
    docs = trials.new_trial_docs(*_many(trials, 300))
    trials.insert_trial_docs([{**doc, "state": 2, "result": {"status": "ok", "loss": 1.0}} for doc in docs])
    trials.refresh()
    asked = _statements(trials, trials.local.refresh)
    assert asked == ["find"], "one look at what is unfinished or newer"


def _many(trials: MongoTrials, count: int) -> tuple[list[int], list[None], list[Any], list[Any]]:
    tids = trials.new_trial_ids(count)
    miscs = [{"tid": tid, "cmd": None, "idxs": {"x": [tid]}, "vals": {"x": [0.5]}} for tid in tids]
    return tids, [None] * count, [{"status": "new"} for _ in tids], miscs


def _statements(trials: MongoTrials, call: Any) -> list[str]:
    """The commands on `jobs` that the server sees during a call."""
    database = trials.handle.db
    with MongoClient("127.0.0.1", trials.handle.conn.address[1], directConnection=True) as client:
        mine = client[database.name]
        mine.command("profile", 2)
        call()
        mine.command("profile", 0)
        seen = mine["system.profile"].find({"ns": f"{database.name}.jobs"})
        return [next(iter(entry["command"])) for entry in seen]


def test_connections_are_given_back_and_stay_as_long_as_somebody_needs_them(mongo_url: str) -> None:
    jobs = MongoTrials(mongo_url, exp_key="k").handle.jobs
    gc.collect()
    assert jobs.count_documents({}) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del jobs
        gc.collect()


def test_searches_of_several_experiments_at_once(trials: MongoTrials, mongo_url: str) -> None:
    """Two workers serve three searches, each with a handle of its own; whoever has no exp_key sees all."""
    handles = {key: MongoTrials(mongo_url, exp_key=key) for key in ("a", "b", "c")}
    searches = [
        threading.Thread(
            target=fmin,
            args=(objective, SPACE, rand.suggest, 4),
            kwargs={"trials": one, "show_progressbar": False, "return_argmin": False},
        )
        for one in handles.values()
    ]
    workers = [serve(trials, 6), serve(trials, 6)]
    for thread in searches:
        thread.start()
    for thread in [*searches, *workers]:
        thread.join()
    assert [len(one) for one in handles.values()] == [4, 4, 4]
    whole = MongoTrials(mongo_url)
    assert sorted(doc["exp_key"] for doc in whole.trials) == [*"aaaa", *"bbbb", *"cccc"]
    assert len({doc["tid"] for doc in whole.trials}) == 12


def test_the_same_seed_makes_the_same_search(mongo_url: str) -> None:
    found = []
    for key in ("a", "b"):
        trials = MongoTrials(mongo_url, exp_key=key)
        thread = serve(trials, 5)
        fmin(
            objective,
            SPACE,
            rand.suggest,
            5,
            trials=trials,
            rstate=np.random.default_rng(7),
            show_progressbar=False,
        )
        thread.join()
        found.append(vals(trials))
        trials.handle.conn.close()
    assert found[0] == found[1]
