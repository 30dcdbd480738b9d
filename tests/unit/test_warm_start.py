"""Which trials of another experiment a space holds, and what is said of the rest."""

from __future__ import annotations

from typing import Any

import pytest
from hyperopt import hp, rand, tpe
from hyperopt.base import Domain, Trials

from hyperfarm.controller.known_space import describe
from hyperfarm.controller.points import job_of_point
from hyperfarm.controller.warm_start import TrialsWithEvidence, differences, take_over, tell

HERE = {
    "lr": hp.uniform("lr", 0, 1),
    "act": hp.choice("act", ["relu", "tanh", "elu"]),
    "net": hp.choice("net", [{"width": hp.quniform("width", 8, 64, 8)}, {"depth": hp.randint("depth", 5)}]),
}


def test_points_of_the_same_space_are_all_taken() -> None:
    here = describe(HERE)
    points: list[dict[str, Any]] = [
        {"lr": 0.5, "act": 2, "net": 0, "width": 16.0},
        {"lr": 0.1, "act": 0, "net": 1, "depth": 4},
    ]
    assert take_over(points, here, describe(HERE)) == (points, {})
    assert take_over(points, here, None) == (points, {})
    assert differences(here, describe(HERE)) == []
    assert tell("K2", 2, {}, []) == "from K2: 2 of 2 trials used"


def test_what_does_not_agree_is_told_and_what_is_outside_is_counted() -> None:
    there = describe(
        {
            "lr": hp.uniform("lr", 0, 2),
            "act": hp.choice("act", ["tanh", "gelu", "relu"]),
            "net": hp.choice("net", [{"width": hp.quniform("width", 8, 64, 4)}, {}]),
            "momentum": hp.normal("momentum", 0, 1),
        }
    )
    fits = {"lr": 0.5, "act": 0, "net": 0, "width": 16.0}
    points = [
        fits,
        {**fits, "act": 2},
        {**fits, "lr": 1.5},
        {**fits, "lr": 1.7},
        {**fits, "act": 1},
        {**fits, "width": 12.0},
        {"lr": 0.5, "act": 0, "net": 1},
        {**fits, "momentum": 0.1},
        {**fits, "act": "odd"},
    ]
    taken, left_out = take_over(points, describe(HERE), there)
    assert taken[:2] == [{**fits, "act": 1}, {**fits, "act": 0}], "an option is known by what it says"
    assert taken[2:] == [None] * 7
    assert left_out == {
        "lr is outside": 2,
        "act is outside": 2,
        "width is outside": 1,
        "depth is missing": 1,
        "the space has no parameter 'momentum'": 1,
    }
    differ = differences(describe(HERE), there)
    assert differ == [
        "act has other options",
        "depth is new",
        "lr has another range",
        "momentum is gone",
        "width has another range",
    ]
    said = tell("K2", 9, left_out, differ[:1])
    assert said.startswith("from K2: 2 of 9 trials used; act has other options; 2 left out: act is outside; ")


@pytest.mark.parametrize("there", [hp.randint("x", 1, 5), hp.quniform("x", 1, 4, 1)])
def test_an_option_is_not_taken_for_a_number(there: Any) -> None:
    choice, number = describe({"x": hp.choice("x", [1, 2, 3, 4])}), describe({"x": there})
    assert take_over([{"x": 2}], number, choice) == ([None], {"x is outside": 1})
    assert take_over([{"x": 2}], choice, number) == ([None], {"x is outside": 1})


def test_another_kind_of_parameter_is_told() -> None:
    one, other = describe({"x": hp.uniform("x", 1, 2)}), describe({"x": hp.loguniform("x", 0, 1)})
    assert differences(one, other) == ["x is uniform here and loguniform there"]


def test_algorithms_see_the_evidence_before_the_searchs_own_trials() -> None:
    space = {"x": hp.uniform("x", -5, 5)}
    own = Trials(exp_key="k")
    evidence = []
    for number in range(30):
        doc = job_of_point("k", ["x"], number - 30, {"x": number / 3 - 5})
        evidence.append({**doc, "state": 2, "result": {"status": "ok", "loss": abs(number / 3 - 6)}})
    seen = TrialsWithEvidence(own, evidence)
    doc = job_of_point("k", ["x"], 0, {"x": 4.0})
    own._dynamic_trials.append({**doc, "state": 2, "result": {"status": "ok", "loss": 9.0}})
    own.refresh()
    seen.refresh()
    assert seen.tids == [*range(-30, 1)]
    assert all(one is two for one, two in zip(seen._dynamic_trials, evidence, strict=False)), "no copies"
    domain = Domain(lambda point: 0.0, space)
    for seed in range(5):
        warm, cold, chance = (
            suggest([1], domain, trials, seed)[0]["misc"]["vals"]
            for suggest, trials in ((tpe.suggest, seen), (tpe.suggest, own), (rand.suggest, own))
        )
        assert cold == chance, "with one trial its start is random"
        assert warm != chance
    assert len(own) == 1
