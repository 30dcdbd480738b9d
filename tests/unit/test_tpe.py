"""Our TPE is hyperopt's, not fooled by the trials that are still running."""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hyperopt import hp, rand, tpe
from hyperopt.base import Domain, Trials
from hyperopt.pyll import scope

from hyperfarm.controller.algorithms import NAMES, resolve
from hyperfarm.controller.tpe import suggest
from hyperfarm.errors import UsageError

SPACE = {
    "x": hp.uniform("x", -5, 5),
    "lr": hp.loguniform("lr", -9, 0),
    "n": hp.quniform("n", 1, 64, 1),
    "kind": hp.choice("kind", [{"name": "a", "depth": hp.randint("depth", 2, 9)}, {"name": "b"}]),
}


@pytest.fixture(scope="module")
def domain() -> Domain:
    return Domain(lambda point: 0.0, SPACE)


def history(domain: Domain, results: Sequence[Any], seed: int = 0) -> Trials:
    """Trials at random points: a number is the loss of a finished one, None is one that still runs."""
    trials = Trials()
    for tid, loss in enumerate(results):
        [doc] = rand.suggest([tid], domain, trials, seed * 1000 + tid)
        if loss is None:
            doc["state"] = 1
        elif loss == "fail":
            doc |= {"state": 2, "result": {"status": "fail"}}
        else:
            doc |= {"state": 2, "result": {"status": "ok", "loss": loss}}
        trials.insert_trial_docs([doc])
        trials.refresh()
    return trials


def losses(count: int, seed: int = 0) -> list[float]:
    dice = random.Random(seed)
    return [dice.random() for _ in range(count)]


def point(docs: list[dict[str, Any]]) -> dict[str, Any]:
    return docs[0]["misc"]["vals"]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("count", [0, 1, 19, 20, 21, 60])
def test_with_nothing_running_the_point_is_hyperopts(domain: Domain, count: int, seed: int) -> None:
    trials = history(domain, losses(count, seed))
    ours = suggest([count], domain, trials, 17 + seed)
    theirs = tpe.suggest([count], domain, trials, 17 + seed, verbose=False)
    assert ours == theirs


@pytest.mark.parametrize(
    "options",
    [
        {"gamma": 0.5},
        {"n_startup_jobs": 5},
        {"n_startup_jobs": 0},
        {"n_EI_candidates": 3},
        {"prior_weight": 2.0},
    ],
)
@pytest.mark.parametrize("count", [10, 40])
def test_so_it_is_with_other_settings(domain: Domain, count: int, options: dict[str, Any]) -> None:
    trials = history(domain, losses(count))
    ours = suggest([count], domain, trials, 3, **options)
    assert ours == tpe.suggest([count], domain, trials, 3, verbose=False, **options)


@pytest.mark.parametrize(
    "odd", [["fail"] * 8, [math.inf] * 8, [math.nan] * 8, [math.nan, "fail", math.inf] * 3, [1, 1.0, 1]]
)
@pytest.mark.parametrize("count", [8, 15, 30])
def test_so_it_is_with_failures_and_odd_losses(domain: Domain, odd: list[Any], count: int) -> None:
    results = losses(count) + odd
    random.Random(1).shuffle(results)
    trials = history(domain, results)
    ours = suggest([len(results)], domain, trials, 3)
    assert ours == tpe.suggest([len(results)], domain, trials, 3, verbose=False)


def test_so_it_is_with_points_that_are_copies_of_others(domain: Domain) -> None:
    trials = history(domain, losses(24))
    for doc in trials._dynamic_trials[16:]:
        doc["misc"]["from_tid"] = 3
    trials.refresh()
    assert suggest([24], domain, trials, 3) == tpe.suggest([24], domain, trials, 3, verbose=False)


@pytest.fixture
def splits(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(size of the good part, size of the history) of every split that hyperopt really made for `x`."""
    seen: list[tuple[int, int]] = []
    original = scope._impls["ap_split_trials"]

    def watching(o_idxs: Any, o_vals: Any, l_idxs: Any, l_vals: Any, *rest: Any, **more: Any) -> Any:
        below, above = original(o_idxs, o_vals, l_idxs, l_vals, *rest, **more)
        if len(o_idxs) == len(l_idxs):  # A parameter that every trial has.
            seen.append((len(below), len(below) + len(above)))
        return below, above

    monkeypatch.setitem(scope._impls, "ap_split_trials", watching)
    return seen


@pytest.mark.parametrize("running", [0, 1, 7, 64, 500])
@pytest.mark.parametrize("finished", [20, 21, 64, 65, 100])
def test_the_good_part_has_the_size_of_what_is_finished(
    domain: Domain, splits: list[tuple[int, int]], finished: int, running: int
) -> None:
    results: list[Any] = losses(finished) + [None] * running
    trials = history(domain, results)
    suggest([len(results)], domain, trials, 5)
    good = math.ceil(0.25 * math.sqrt(finished))
    assert set(splits) == {(good, finished + running)}, "and what runs is still evidence"


def test_the_good_part_is_capped_as_hyperopts(domain: Domain, splits: list[tuple[int, int]]) -> None:
    trials = history(domain, losses(400) + [None] * 30)
    suggest([430], domain, trials, 5, gamma=3.0)
    assert set(splits) == {(25, 430)}


def test_running_trials_are_never_in_the_good_part(domain: Domain, splits: list[tuple[int, int]]) -> None:
    trials = history(domain, [None] * 30)
    suggest([30], domain, trials, 5, n_startup_jobs=0)
    assert set(splits) == {(0, 30)}


@pytest.mark.parametrize(
    ("finished", "running", "random_point"), [(19, 50, True), (20, 50, False), (0, 30, True)]
)
def test_running_trials_do_not_end_the_start_up(
    domain: Domain, finished: int, running: int, random_point: bool
) -> None:
    trials = history(domain, losses(finished) + [None] * running)
    new = finished + running
    at_random = point(rand.suggest([new], domain, trials, 5))
    assert (point(suggest([new], domain, trials, 5)) == at_random) is random_point


def test_points_keep_away_from_those_that_run() -> None:
    domain = Domain(lambda point: 0.0, {"x": hp.uniform("x", -5, 5)})
    results = [(tid - 15) ** 2 / 100 for tid in range(30)]
    trials = history(domain, results)
    crowd = history(domain, results + [None] * 40)
    best = min(trials.trials, key=lambda doc: doc["result"]["loss"])["misc"]["vals"]["x"][0]
    for doc in crowd.trials[30:]:
        doc["misc"]["vals"]["x"] = [best + 0.01 * (doc["tid"] - 50)]
    near = [
        np.mean([abs(point(suggest([99], domain, past, seed))["x"][0] - best) < 0.3 for seed in range(30)])
        for past in (trials, crowd)
    ]
    assert near[1] < near[0]


def test_algorithms_are_found_by_name_and_by_function(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve(None) == ("tpe", suggest)
    assert resolve("rand") == ("rand", rand.suggest)
    assert resolve(tpe.suggest) == ("tpe", suggest)
    assert resolve(rand.suggest) == ("rand", rand.suggest)
    name, bound = resolve(functools.partial(tpe.suggest, gamma=0.5))
    assert (name, bound.func, bound.keywords) == ("tpe", suggest, {"gamma": 0.5})
    (tmp_path / "my_algorithm.py").write_text("def search(new_ids, domain, trials, seed): return []\nX = 1\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    name, found = resolve("my_algorithm:search")
    assert (name, found([], None, None, 0)) == ("my_algorithm:search", [])
    for wrong, told in [
        ("tpee", "did you mean tpe"),
        ("zzz", f"there are {', '.join(NAMES)}"),
        ("my_algorithm:missing", "cannot be imported"),
        ("no_such_module:f", "cannot be imported"),
        ("my_algorithm:X", "is not a function"),
        (42, "not 42"),
    ]:
        with pytest.raises(UsageError, match=told):
            resolve(wrong)
