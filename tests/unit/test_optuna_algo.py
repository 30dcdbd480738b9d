"""Optuna's samplers over hyperopt's spaces: what they are shown, and what comes back."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import pytest
from hyperopt import hp
from hyperopt.base import Domain, Trials

from hyperfarm.controller import optuna_algo
from hyperfarm.controller.algorithms import checked, resolve
from hyperfarm.controller.points import doc_of_point
from hyperfarm.errors import UsageError

optuna = pytest.importorskip("optuna")

SPACE = {
    "x": hp.uniform("x", -5, 5),
    "lr": hp.loguniform("lr", -9, 0),
    "n": hp.quniform("n", 0.5, 3, 0.5),
    "m": hp.qloguniform("m", 0, 5, 8),
    "w": hp.qloguniform("w", 2, 5, 4),
    "r": hp.randint("r", 3, 9),
    "g": hp.normal("g", 100, 2),
    "p": hp.pchoice("p", [(0.5, "a"), (0.0, "never"), (0.5, {"u": hp.uniform("u", 0, 1)})]),
    "kind": hp.choice("kind", [{"d": hp.randint("d", 2, 9)}, {"e": hp.qlognormal("e", 0, 2, 1)}]),
}
POINT = {
    "x": 1.0,
    "lr": 0.01,
    "n": 1.5,
    "m": 0.0,
    "w": 12.0,
    "r": 4,
    "g": 102.0,
    "p": 2,
    "u": 0.5,
    "kind": 0,
    "d": 3,
}


@pytest.fixture(scope="module")
def domain() -> Domain:
    return Domain(lambda point: 0.0, SPACE)


def point(doc: Any) -> dict[str, Any]:
    return {label: values[0] for label, values in doc["misc"]["vals"].items() if values}


def trial(domain: Domain, tid: int, state: int, loss: float | None = None, **changed: Any) -> Any:
    doc = doc_of_point(Trials(), domain, tid, {**POINT, **changed})
    doc["state"] = state
    if loss is not None:
        doc["result"] = {"status": "ok", "loss": loss}
    return doc


def put(trials: Trials, *docs: Any) -> Trials:
    trials.insert_trial_docs(list(docs))
    trials.refresh()
    return trials


def searched(name: str, domain: Domain, count: int, trials: Trials | None = None) -> Trials:
    trials = trials or Trials()
    algo = checked(f"optuna:{name}")
    for tid in range(len(trials._dynamic_trials), count):
        [doc] = algo([tid], domain, trials, 10 + tid)
        put(trials, doc)
        if tid % 5 == 4:
            continue
        doc = trials._dynamic_trials[-1]
        doc["state"] = 3 if tid % 7 == 6 else 2
        doc["result"] = {"status": "ok", "loss": (point(doc)["x"] - 2) ** 2}
    return trials


def study_of(trials: Trials) -> Any:
    return optuna_algo._mirrors[trials][2].study


@pytest.mark.parametrize(
    "name", ["TPESampler", "RandomSampler", "QMCSampler", "CmaEsSampler", "NSGAIISampler", "NSGAIIISampler"]
)
def test_points_are_in_the_space_and_follow_its_branches(name: str, domain: Domain) -> None:
    trials = searched(name, domain, 40)  # `checked` looks at every point.
    points = [point(doc) for doc in trials._dynamic_trials]
    assert {one["kind"] for one in points} == {0, 1}
    assert {one["p"] for one in points} == {0, 2}
    assert len({one["x"] for one in points}) == 40


def test_tpe_finds_what_chance_does_not(domain: Domain) -> None:
    best = {
        name: sum(abs(point(doc)["x"] - 2) for doc in searched(name, domain, 60)._dynamic_trials[-20:])
        for name in ("TPESampler", "RandomSampler")
    }
    assert best["TPESampler"] < 0.7 * best["RandomSampler"]


def test_the_study_mirrors_the_trials(domain: Domain) -> None:
    algo = checked("optuna:TPESampler")
    trials = put(
        Trials(),
        trial(domain, 0, 2, 0.5),
        trial(domain, 1, 3),
        trial(domain, 2, 1),
        trial(domain, 3, 2, math.nan),
        trial(domain, 4, 2, 0.7, x=99.0),
        trial(domain, 5, 4),
        trial(domain, 6, 0),
    )
    for _ in range(2):
        [suggested] = algo([7], domain, trials, 1)
        told = [one for one in study_of(trials).trials if one.state.name != "FAIL"]
        assert [one.state.name for one in told] == [
            "COMPLETE",
            "PRUNED",
            "RUNNING",
            "PRUNED",
            "RUNNING",
            "RUNNING",
        ]
    assert told[0].value == 0.5
    g = NormalDist(100, 2).cdf(102)
    wanted = {**POINT, "n": 3, "m": 1, "w": 3, "g": pytest.approx(g)}
    assert told[0].params == wanted
    assert told[-1].params["x"] == point(suggested)["x"]
    # What we have asked for is told once it is finished, and is not there twice.
    suggested |= {"state": 2, "result": {"status": "ok", "loss": 0.25}}
    put(trials, suggested)
    trials._dynamic_trials[2]["state"] = 4
    algo([8], domain, trials, 1)
    told = [one for one in study_of(trials).trials if one.state.name != "FAIL"]
    assert [one.value for one in told] == [0.5, None, None, None, 0.25, None]
    del trials._dynamic_trials[0]
    algo([9], domain, trials, 1)
    assert 0.5 not in [one.value for one in study_of(trials).trials]


@pytest.mark.parametrize("name", ["TPESampler", "RandomSampler"])
def test_a_controller_started_again_suggests_the_same(name: str, domain: Domain) -> None:
    trials = searched(name, domain, 25)
    again = put(Trials(), *trials._dynamic_trials)
    algo = checked(f"optuna:{name}")
    one, other = (algo([25], domain, some, 77)[0] for some in (trials, again))
    assert point(one) == pytest.approx(point(other), rel=1e-9)
    assert point(algo([25], domain, again, 78)[0]) != point(other)


def test_qmc_goes_on_with_its_sequence_when_it_is_started_again() -> None:
    domain = Domain(lambda point: 0.0, [hp.uniform("x", 0, 1), hp.uniform("y", 0, 1)])
    whole = searched("QMCSampler", domain, 12)
    half = searched("QMCSampler", domain, 6)
    again = searched("QMCSampler", domain, 12, put(Trials(), *half._dynamic_trials))
    assert [point(doc) for doc in again._dynamic_trials] == [point(doc) for doc in whole._dynamic_trials]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("TPESamplr", "Optuna has no sampler 'TPESamplr'; the nearest is optuna:TPESampler"),
        ("tpe", "Optuna has no sampler 'tpe'; the nearest is optuna:"),
        ("PartialFixedSampler", "cannot be made without arguments"),
        ("BaseSampler", "cannot be made without arguments"),
        ("GridSampler", "the algorithm grid is the same"),
        ("BruteForceSampler", "the algorithm grid is the same"),
    ],
)
def test_names_of_no_sampler(name: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        resolve(f"optuna:{name}")
