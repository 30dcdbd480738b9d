"""Algorithms by name, and what the search makes of one that returns something else than it should."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hyperopt import anneal, hp, rand
from hyperopt.base import Domain, Trials

from hyperfarm.controller.algorithms import checked, resolve, with_grid_points
from hyperfarm.controller.grid import GridSearch
from hyperfarm.errors import UsageError

SPACE = {
    "lr": hp.loguniform("lr", -5, 0),
    "units": hp.quniform("units", 8, 64, 8),
    "kind": hp.choice("kind", [{"depth": hp.randint("depth", 2, 5)}, {"width": hp.normal("width", 0, 1)}]),
    "late": hp.pchoice("late", [(0.25, "a"), (0.75, "b")]),
}


@pytest.fixture(scope="module")
def domain() -> Domain:
    return Domain(lambda point: 0.0, SPACE)


def searched(name: str, domain: Domain, count: int, trials: Trials | None = None) -> Trials:
    """Trials of an algorithm: every fifth runs, every seventh has failed."""
    trials = trials or Trials()
    algo = checked(name)
    algo.prepare(domain)
    for tid in range(len(trials._dynamic_trials), count):
        docs = algo([tid], domain, trials, 100 + tid)
        if tid % 5 == 4:
            docs[0]["state"] = 1
        elif tid % 7 == 6:
            docs[0]["state"] = 3
        else:
            lr = docs[0]["misc"]["vals"]["lr"][0]
            docs[0] |= {"state": 2, "result": {"status": "ok", "loss": abs(lr - 0.1) - 0.05}}
        trials.insert_trial_docs(docs)
        trials.refresh()
    return trials


def vals(trials: Trials) -> list[Any]:
    return [doc["misc"]["vals"] for doc in trials._dynamic_trials]


def test_names_are_found() -> None:
    assert resolve("rand") == ("rand", rand.suggest)
    assert resolve("anneal") == ("anneal", anneal.suggest)
    assert resolve("grid") == ("grid", GridSearch())
    assert resolve("grid:5") == ("grid:5", GridSearch(points=5))
    assert resolve(with_grid_points("grid", 5)) == resolve("grid:5")
    assert with_grid_points("tpe", None) == "tpe"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("grit", "did you mean grid"),
        ("zzz", "there are tpe, .*grid:N, optuna:NAME, module:function"),
        ("grid:many", "grid:N with a number of points"),
        ("grid:0", "grid:N with a number of points"),
        ("grid:", "grid:N with a number of points"),
        (":search", "cannot be imported"),
        (".mine:search", "cannot be imported"),
    ],
)
def test_names_that_are_none_say_what_there_is(name: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        resolve(name)


def test_grid_points_are_for_the_grid() -> None:
    with pytest.raises(UsageError, match=r"--grid-points .* is for the algorithm grid, not for 'tpe'"):
        with_grid_points("tpe", 3)


@pytest.mark.parametrize(
    ("name", "package", "told"),
    [
        ("atpe", "lightgbm", r"atpe needs lightgbm: pip install 'hyperfarm\[atpe\]'"),
        ("atpe", "sklearn", r"pip install 'hyperfarm\[atpe\]'"),
        ("optuna:TPESampler", "optuna", r"optuna:NAME need Optuna: pip install 'hyperfarm\[optuna\]'"),
        ("optuna:CmaEsSampler", "cmaes", "optuna:CmaEsSampler needs cmaes: pip install cmaes"),
        ("optuna:GPSampler", "torch", "optuna:GPSampler needs torch: pip install torch"),
    ],
)
def test_a_missing_extra_says_what_to_install(
    name: str, package: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, f"{package}.preprocessing", None)
    with pytest.raises(UsageError, match=told):
        resolve(name)


# ---- what an algorithm returns ---------------------------------------------------------------------------


def documents(domain: Domain, ids: list[int], **changed: Any) -> list[Any]:
    docs = rand.suggest(ids, domain, Trials(), 3)
    for doc in docs:
        misc = doc["misc"]
        values = {"lr": [0.1], "units": [16.0], "kind": [0], "depth": [3], "width": [], "late": [1]}
        for label, value in {**values, **changed}.items():
            misc["vals"][label] = value
            misc["idxs"][label] = [doc["tid"]] * len(value)
    return docs


def returning(make: Callable[[Domain], Any], domain: Domain) -> Any:
    def suggest(new_ids: Any, domain: Any, trials: Any, seed: int) -> Any:
        return make(domain)

    suggest.__module__, suggest.__qualname__ = "mine", "search"
    return checked(suggest)([7], domain, Trials(), 0)


def without(domain: Domain, *path: str) -> Any:
    docs = documents(domain, [7])
    place = docs[0]
    for key in path[:-1]:
        place = place[key]
    del place[path[-1]]
    return docs


def with_id(domain: Domain, tid: int) -> Any:
    docs = documents(domain, [7])
    docs[0]["misc"]["idxs"]["lr"] = [tid]
    return docs


WRONG: list[tuple[Callable[[Domain], Any], str]] = [
    (lambda d: None, "returned no job document at all, not even a first one"),
    (lambda d: [], "returned no job document at all, not even a first one"),
    (lambda d: 42, "must return a list of job documents, not int"),
    (lambda d: documents(d, [7])[0], "must return a list of job documents, not SONify|not dict"),
    (lambda d: documents(d, [7, 8]), "returned 2 job documents where 1 was asked for"),
    (lambda d: documents(d, [8]), "with the id 8, but 7 was asked for"),
    (lambda d: ["x"], "returned 'x', which is no job document"),
    (lambda d: without(d, "misc"), "which is no job document"),
    (lambda d: without(d, "misc", "tid"), "with the id None"),
    (lambda d: without(d, "misc", "vals"), "whose misc.vals is None and no dict"),
    (lambda d: without(d, "misc", "vals", "lr"), "gives lr 0 values, but 1 ids"),
    (lambda d: documents(d, [7], lr=[]), "lr is missing; it must be a number from"),
    (lambda d: documents(d, [7], lr=[5.0]), "lr is 5.0; it must be a number from 0.0067"),
    (lambda d: documents(d, [7], lr=[float("nan")]), "lr is nan"),
    (lambda d: documents(d, [7], lr=["0.1"]), "lr is '0.1'"),
    (lambda d: documents(d, [7], lr=[0.1, 0.2]), "gives lr as .*one value"),
    (lambda d: documents(d, [7], units=[17.0]), "units is 17.0; it must be a multiple of 8"),
    (lambda d: documents(d, [7], kind=[2]), "kind is 2; it must be the index of an option, 0 to 1"),
    (lambda d: documents(d, [7], depth=[5]), "depth is 5; it must be a whole number from 2 to 4"),
    (lambda d: documents(d, [7], width=[0.5]), "width is given, but the options chosen do not use it"),
    (lambda d: without(d, "state"), "which is no job document"),
    (
        lambda d: [{**documents(d, [7])[0], "exp_key": "other"}],
        "a job document of another experiment, 'other'",
    ),
    (lambda d: with_id(d, 77), "gives lr the id 77, but 7 was asked for"),
    (lambda d: documents(d, [7], colour=[1]), "a point with 'colour', which the space does not have"),
]


@pytest.mark.parametrize(("make", "told"), WRONG, ids=[told[:30] for _, told in WRONG])
def test_what_is_wrong_is_named(make: Callable[[Domain], Any], told: str, domain: Domain) -> None:
    with pytest.raises(UsageError, match=f"^the search algorithm mine:search .*({told})"):
        returning(make, domain)


def test_what_is_right_passes(domain: Domain) -> None:
    trials = Trials()
    trials.insert_trial_docs(documents(domain, [6]))
    trials.refresh()
    for nothing_left in (None, []):
        assert checked(lambda *_, left=nothing_left: left)([7], domain, trials, 0) == []
    docs = documents(domain, [7], lr=np.array([0.1]), depth=[np.int64(3)])
    del docs[0]["misc"]["vals"]["width"], docs[0]["misc"]["idxs"]["width"]
    [doc] = returning(lambda d: tuple(docs), domain)
    assert doc["misc"]["vals"]["width"] == doc["misc"]["idxs"]["width"] == []
    assert doc["misc"]["vals"]["lr"] == [0.1]


def test_an_algorithm_that_raises_is_named_with_the_line_of_its_own(domain: Domain) -> None:
    def search(new_ids: Any, domain: Any, trials: Any, seed: int) -> Any:
        return np.array([1, 2]).reshape(3)

    told = r"search raised ValueError: cannot reshape array .* \(line \d+ of .*test_algorithms.py\)"
    with pytest.raises(UsageError, match=told) as caught:
        checked(search)([7], domain, Trials(), 0)
    assert isinstance(caught.value.__cause__, ValueError)
    with pytest.raises(UsageError, match=r"raised TypeError: list expected at most 1 argument, got 4$"):
        checked(list)([7], domain, Trials(), 0)


@pytest.mark.parametrize("name", ["tpe", "hyperopt-tpe", "grid"])
def test_a_space_is_refused_before_anything_is_stored(name: str) -> None:
    with pytest.raises(UsageError, match="x: the step q is 2, wider than the whole range"):
        checked(name).prepare(Domain(lambda point: 0.0, hp.quniform("x", 0, 1, 2)))


def test_a_space_that_only_hyperopt_understands_is_left_to_hyperopt() -> None:
    domain = Domain(lambda point: 0.0, hp.uniform("x", 0, hp.uniform("y", 1, 2)))
    [doc] = checked("rand")([0], domain, Trials(), 1)
    assert set(doc["misc"]["vals"]) == {"x", "y"}


@pytest.mark.parametrize("name", ["rand", "anneal", "tpe"])
def test_what_hyperopt_suggests_is_in_the_space(name: str) -> None:
    space = {
        "q": hp.quniform("q", -1.3, 2.4, 0.5),
        "l": hp.qloguniform("l", 0.3, 3.3, 3),
        "n": hp.qlognormal("n", 0, 1, 0.1),
        "lr": hp.loguniform("lr", -5, 0),
        "r": hp.choice("r", [hp.randint("a", 4), hp.randint("b", 2, 6), hp.uniform("c", 3, 3.001)]),
    }
    trials = searched(name, Domain(lambda point: 0.0, space), 70)
    assert len(trials._dynamic_trials) == 70


def test_atpe_repeats_itself_and_leaves_the_global_generators_alone(domain: Domain) -> None:
    pytest.importorskip("lightgbm")
    first = searched("rand", domain, 16)
    resolve("atpe")  # Importing lightgbm draws from them.
    second = searched("rand", domain, 16)
    for number, trials in enumerate((first, second)):
        random.seed(number)
        np.random.seed(number)
        before = (random.getstate(), np.random.get_state()[1].tolist())
        searched("atpe", domain, 19, trials)
        assert before == (random.getstate(), np.random.get_state()[1].tolist())
    assert vals(first) == vals(second)
    assert len({doc["lr"][0] for doc in vals(first)}) == 19
