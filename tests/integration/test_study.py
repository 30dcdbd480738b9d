"""Ask and tell: exact budgets over several processes, leases, and what belongs to whom."""

from __future__ import annotations

import math
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hyperopt import hp, rand

from hyperfarm import Study, minimize
from hyperfarm.errors import BudgetSpent, ExperimentConflict, InvalidResult, LeaseLost, UsageError
from hyperfarm.store import Store
from tests.making import expire
from tests.support import eventually, hyperfarm, worker

SPACE = {"x": hp.uniform("x", -5, 5), "c": hp.choice("c", ["flat", {"n": hp.quniform("n", 1, 9, 1)}])}


@pytest.fixture
def opened(mongo_url: str) -> Iterator[Any]:
    """Open studies that are closed at the end."""
    studies: list[Study] = []

    def open_study(**options: Any) -> Study:
        settings = {"space": SPACE, "exp_key": "lab", "mongo": mongo_url, "algo": "rand", **options}
        studies.append(Study(settings.pop("space"), **settings))
        return studies[-1]

    yield open_study
    for study in studies:
        study.close()


def outcomes(store: Store) -> Counter[int]:
    return Counter(doc["state"] for doc in store.find_jobs("lab"))


def test_a_loop_asks_exactly_the_budget_and_finds_the_best(opened: Any, store: Store) -> None:
    study = opened(max_evals=12, seed=1)
    numbers = []
    for trial in study:
        assert set(trial.params) == {"x", "c"}
        assert trial.params["c"] == "flat" or 1 <= trial.params["c"]["n"] <= 9
        trial.report(loss=1.0, step=trial.number)
        study.tell(trial, trial.params["x"] ** 2)
        numbers.append(trial.number)
    assert numbers == list(range(12))
    docs = store.find_jobs("lab")
    assert [doc["state"] for doc in docs] == [2] * 12
    assert study.best_loss == min(doc["result"]["loss"] for doc in docs) == study.best["x"] ** 2
    assert [report["step"] for report in store.reports(docs[5])] == [5]
    with pytest.raises(BudgetSpent, match="12 trials; raise it by extend=True"):
        study.ask()


def test_a_result_may_say_more_and_may_be_a_failure(opened: Any, store: Store) -> None:
    study = opened(max_evals=5)
    rich, failed, raised, nan, odd = (study.ask() for _ in range(5))
    study.tell(rich, {"loss": 0.5, "note": "by hand", "big": b"x" * 2_000_000})
    study.tell(failed, status="fail", error="the lamp broke")
    study.tell(raised, status="fail", error=ValueError("no light"))
    study.tell(nan, math.nan)
    with pytest.raises(InvalidResult, match="a str"):
        study.tell(odd, "0.5")
    study.tell(odd, 0.75)
    with pytest.raises(UsageError, match="told, or given back, already"):
        study.tell(odd, 0.75)
    docs = store.find_jobs("lab")
    assert [doc["state"] for doc in docs] == [2, 3, 3, 3, 2]
    assert docs[0]["result"]["note"] == "by hand"
    assert [doc["error"] for doc in docs[1:3]] == [["Failed", "the lamp broke"], ["ValueError", "no light"]]
    assert "cannot be compared" in docs[3]["error"][1]
    assert study.best_loss == 0.5


def test_the_algorithm_sees_what_was_told_and_what_is_still_out(opened: Any) -> None:
    seen = []

    def watching(new_ids: Any, domain: Any, trials: Any, seed: int) -> Any:
        seen.append([doc["result"].get("loss") for doc in trials.trials])
        return rand.suggest(new_ids, domain, trials, seed)

    study = opened(max_evals=4, algo=watching)
    first, second = study.ask(), study.ask()
    study.tell(second, 2.0)
    study.ask()
    study.tell(first, 1.0)
    study.ask()
    assert seen == [[], [None], [None, 2.0], [1.0, 2.0, None]]


PROCESS = """
import os, sys, time
from hyperopt import hp
from hyperfarm import Study
from tests.integration.test_study import SPACE
study = Study(SPACE, exp_key="lab", mongo=sys.argv[1], algo="rand", max_evals=int(sys.argv[2]), lease=1.5)
for trial in study:
    if sys.argv[3] == "hold":
        print(trial.tid, flush=True)
        time.sleep(600)
    study.tell(trial, {"loss": trial.params["x"] ** 2, "by": os.getpid()})
study.close()
"""


def process(*args: str) -> subprocess.Popen[str]:
    root = Path(__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", PROCESS, *args], cwd=root, stdout=subprocess.PIPE, text=True
    )


def test_processes_that_ask_at_the_same_time_fill_the_budget_exactly(mongo_url: str, store: Store) -> None:
    running = [process(mongo_url, "40", "tell") for _ in range(2)]
    try:
        assert [one.wait(90) for one in running] == [0, 0]
    finally:
        for one in running:
            one.kill()
            one.communicate()
    docs = store.find_jobs("lab")
    assert [doc["state"] for doc in docs] == [2] * 40
    assert sorted(doc["slot"] for doc in docs) == list(range(40))
    assert {doc["result"]["by"] for doc in docs} == {one.pid for one in running}


def test_what_a_killed_process_held_is_asked_again_by_another(
    mongo_url: str, store: Store, opened: Any
) -> None:
    holder = process(mongo_url, "3", "hold")
    try:
        held = int(holder.stdout.readline())
    finally:
        holder.kill()
        holder.communicate()
    study = opened(max_evals=3, lease=1.5)
    asked = []
    for trial in study:  # It waits for the trial that the other held.
        asked.append((trial.tid, trial.attempt))
        study.tell(trial, 1.0)
    assert (held, 2) in asked
    assert len(asked) == 3
    assert outcomes(store) == {2: 3}


def test_a_lease_is_renewed_while_the_process_lives(opened: Any, store: Store) -> None:
    study = opened(max_evals=2, lease=1.0)
    trial = study.ask()

    def expiry() -> Any:
        return store.job("lab", trial.tid)["lease"]["expires"]

    first = expiry()
    eventually(lambda: (expiry() - first).total_seconds() > 1.2, "the lease outlives itself")
    study.tell(trial, 1.0)
    assert outcomes(store) == {2: 1}


def test_a_late_tell_is_refused_and_its_trial_is_another_ones(opened: Any, store: Store) -> None:
    late, other = opened(max_evals=1, lease=60.0), opened(max_evals=1)
    trial = late.ask()
    with pytest.raises(BudgetSpent, match="of which 1 are not told yet"):
        other.ask()
    expire(store, trial.claim)
    store.reap()
    again = other.ask()
    assert (again.tid, again.attempt, again.params) == (trial.tid, 2, trial.params)
    with pytest.raises(LeaseLost):
        trial.report(loss=3.0)
    with pytest.raises(LeaseLost):
        late.tell(trial, 3.0)
    other.tell(again, 2.0)
    assert [doc["result"]["loss"] for doc in store.find_jobs("lab")] == [2.0]


def test_processes_that_die_use_up_the_attempts(opened: Any, store: Store) -> None:
    study = opened(max_evals=1, max_attempts=2)
    for _ in range(2):
        expire(store, study.ask().claim)
        store.reap()
    assert outcomes(store) == {3: 1}
    with pytest.raises(BudgetSpent):
        study.ask()


def test_closing_gives_back_what_was_not_told(opened: Any, store: Store) -> None:
    with opened(max_evals=2) as study:
        given_back, told = study.ask(), study.ask()
        study.tell(told, 1.0)
    with pytest.raises(UsageError, match="is closed"):
        study.ask()
    again = opened(max_evals=2).ask()
    assert (again.tid, again.attempt) == (given_back.tid, 1)
    assert study.best_loss == 1.0


def test_workers_keep_their_hands_off(opened: Any, store: Store, mongo_url: str, tmp_path: Path) -> None:
    with opened(max_evals=2) as study:
        study.ask()
    lost = opened(max_evals=2).ask()
    expire(store, lost.claim)
    store.reap()
    assert [doc["state"] for doc in store.find_jobs("lab")] == [0]
    with worker(mongo_url, tmp_path / "w"):
        eventually(store.live_workers, "the worker is there")
        # It serves others meanwhile, so it has looked.
        minimize(lambda p: p["x"] ** 2, {"x": hp.uniform("x", 0, 1)}, max_evals=4, exp_key="search",
                 mongo=mongo_url, progress=False)  # fmt: skip
        assert store.waiting().exp_keys == []
        (row,) = store.live_workers()
        assert not row["refused"]
    assert [doc["state"] for doc in store.find_jobs("lab")] == [0]


def test_what_is_a_study_and_what_is_a_search_stays_so(opened: Any, mongo_url: str) -> None:
    opened(max_evals=2)
    with pytest.raises(ExperimentConflict, match="is a study"):
        minimize(lambda p: 1.0, SPACE, max_evals=2, exp_key="lab", mongo=mongo_url, progress=False)
    minimize(lambda p: 1.0, SPACE, max_evals=1, exp_key="s", mongo=mongo_url, workers=1, progress=False)
    with pytest.raises(ExperimentConflict, match="is a search that workers run"):
        opened(exp_key="s", max_evals=1)
    with pytest.raises(ExperimentConflict, match="another space"):
        opened(max_evals=2, space={"x": hp.uniform("x", -5, 6)})
    with pytest.raises(ExperimentConflict, match="budget of 2"):
        opened(max_evals=3)
    opened(max_evals=3, extend=True)


def test_a_point_at_which_the_space_has_no_value_is_a_failed_trial(opened: Any, store: Store) -> None:
    study = opened(space={"x": 1 / hp.randint("x", 3)}, algo="grid", max_evals=3)
    for trial in study:
        study.tell(trial, trial.params["x"])
    assert outcomes(store) == {2: 2, 3: 1}
    assert store.find_jobs("lab")[0]["error"][0] == "ZeroDivisionError"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"space": {"x": 1}}, "no parameters"),
        ({"lease": 0}, "lease is 0"),
        ({"max_attempts": 0}, "max_attempts"),
        ({"points_to_evaluate": [{"x": 9, "c": 0}]}, "number 1: x is 9"),
        ({"warm_start": "labb"}, "no experiment is called 'labb'"),
    ],
)
def test_what_makes_no_sense_is_told(opened: Any, options: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        opened(**{"max_evals": 2, **options})


def test_a_cancelled_study_says_so(opened: Any, mongo_url: str, store: Store) -> None:
    study = opened(max_evals=4)
    trial = study.ask()
    hyperfarm("cancel", "lab", "--mongo", mongo_url)
    with pytest.raises(UsageError, match="was cancelled"):
        study.ask()
    with pytest.raises(LeaseLost):
        study.tell(trial, 1.0)
    assert len(list(opened(max_evals=4))) == 4, "a cancelled trial frees its slot"


def test_points_queued_by_hand_are_asked_next_and_other_searches_are_evidence(
    opened: Any, mongo_url: str, store: Store
) -> None:
    minimize(lambda p: p["x"] ** 2, SPACE, max_evals=5, exp_key="s", mongo=mongo_url, workers=1, algo="rand",
             progress=False)  # fmt: skip
    seen = []

    def watching(new_ids: Any, domain: Any, trials: Any, seed: int) -> Any:
        seen.append(len(trials.trials))
        return rand.suggest(new_ids, domain, trials, seed)

    study = opened(max_evals=3, algo=watching, warm_start="s", points_to_evaluate=[{"x": 1.0, "c": "flat"}])
    hyperfarm("enqueue", "lab", '{"x": 2.5, "c": 1, "n": 3}', "--mongo", mongo_url)
    asked = [trial.params for trial in study]
    assert asked[:2] == [{"x": 2.5, "c": {"n": 3.0}}, {"x": 1.0, "c": "flat"}]
    assert seen == [5 + 2]
    assert store.waiting().exp_keys == []
