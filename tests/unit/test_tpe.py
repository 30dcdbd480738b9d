"""The default algorithm: a function of seed and history, aware of what runs, never lost in a bad history."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hyperopt import hp
from hyperopt.base import Domain, Trials
from threadpoolctl import ThreadpoolController

from hyperfarm.controller import tpe
from hyperfarm.controller.history import history_of
from hyperfarm.controller.points import doc_of_point
from hyperfarm.jobs import JobState

SPACE = {
    "x": hp.uniform("x", -5, 5),
    "kind": hp.choice(
        "kind",
        [{"lr": hp.loguniform("lr", -9, 0)}, {"n": hp.quniform("n", 1, 9, 1), "d": hp.normal("d", 0, 1)}],
    ),
}


def never(_: Any) -> float:
    raise AssertionError("nothing is evaluated here")


def search(space: Any, suggest: Any = tpe.suggest) -> tuple[Domain, Trials, Callable[..., dict[str, Any]]]:
    """A domain, its trials, and a function that adds the next suggestion in the state that is wanted."""
    domain, trials = Domain(never, space), Trials()

    def step(loss: float | Callable[[dict[str, Any]], float] | None = None, **fields: Any) -> dict[str, Any]:
        number = len(trials._dynamic_trials)
        (doc,) = suggest([number], domain, trials, number)
        point = {label: values[0] for label, values in doc["misc"]["vals"].items() if values}
        if loss is None:
            doc["state"] = JobState.RUNNING
        else:
            value = loss(point) if callable(loss) else loss
            doc |= {"state": JobState.DONE, "result": {"status": "ok", "loss": value}}
        doc |= fields
        trials.insert_trial_docs([doc])
        trials.refresh()
        return point

    return domain, trials, step


def bowl(point: dict[str, Any]) -> float:
    inner = (math.log(point["lr"]) + 4) ** 2 / 10 if point["kind"] == 0 else 1 + abs(point["n"] - 4)
    return float((point["x"] - 2) ** 2 + inner)


def test_it_finds_what_there_is_to_find() -> None:
    _, trials, step = search(SPACE)
    for _ in range(60):
        step(bowl)
    assert min(trials.losses()) < 0.01


def test_densities_find_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tpe, "PROCESS_TRIALS", 0)
    _, trials, step = search(SPACE)
    for _ in range(150):
        step(bowl)
    late = [bowl({k: v[0] for k, v in doc["misc"]["vals"].items() if v}) for doc in trials.trials[-30:]]
    early = [loss for loss in trials.losses()[:30] if loss is not None]
    assert np.median(late) < np.median(early) / 4
    assert min(trials.losses()) < 0.3


@pytest.mark.parametrize("process_trials", [0, 300])
def test_the_same_seed_and_history_give_the_same_point(
    monkeypatch: pytest.MonkeyPatch, process_trials: int
) -> None:
    """Also for a controller that was started again, and whatever was asked in between."""
    monkeypatch.setattr(tpe, "PROCESS_TRIALS", process_trials)
    domain, trials, step = search(SPACE)
    for number in range(40):
        step(bowl if number % 5 else None)
    first = tpe.suggest([99], domain, trials, 7)
    tpe.suggest([100], domain, trials, 8)
    again = Trials()
    again.insert_trial_docs(list(reversed(trials._dynamic_trials)))
    again.refresh()
    fresh = Domain(never, SPACE)
    for other in (tpe.suggest([99], domain, trials, 7), tpe.suggest([99], fresh, again, 7)):
        assert other[0]["misc"]["vals"] == first[0]["misc"]["vals"]
    assert tpe.suggest([99], domain, trials, 8)[0]["misc"]["vals"] != first[0]["misc"]["vals"]


def test_a_search_that_was_carried_on_goes_the_same_way() -> None:
    """Whatever was fitted on the way: a fresh controller at any moment suggests what the old one does."""
    domain, trials, step = search({"x": hp.uniform("x", 0, 1), "y": hp.uniform("y", 0, 1)})
    rng = np.random.default_rng(0)
    for number in range(60):
        step(lambda p: (p["x"] - 0.3) ** 2 + (p["y"] - 0.6) ** 2 + 0.1 * rng.standard_normal())
        if number % 4:
            continue
        fresh = Trials()
        fresh.insert_trial_docs([dict(doc) for doc in trials._dynamic_trials])
        fresh.refresh()
        suggested = [tpe.suggest([99], domain, one, 7)[0]["misc"]["vals"] for one in (trials, fresh)]
        assert suggested[0] == suggested[1], f"after {number + 1} trials"


@pytest.mark.parametrize("process_trials", [0, 300])
def test_what_runs_keeps_others_away(monkeypatch: pytest.MonkeyPatch, process_trials: int) -> None:
    monkeypatch.setattr(tpe, "PROCESS_TRIALS", process_trials)
    _, _, step = search({"x": hp.uniform("x", 0, 1), "y": hp.uniform("y", 0, 1)})
    for _ in range(20):
        step(lambda p: (p["x"] - 0.3) ** 2 + (p["y"] - 0.6) ** 2)
    running = np.array([list(step().values()) for _ in range(8)])
    apart = np.linalg.norm(running[:, None] - running[None], axis=-1)[np.triu_indices(8, 1)]
    assert apart.min() > 1e-4
    assert np.median(apart) > 0.002, "0.0007 where the process does not know them"


@pytest.mark.parametrize("process_trials", [0, 300])
def test_a_finite_space_is_tried_whole_before_anything_twice(
    monkeypatch: pytest.MonkeyPatch, process_trials: int
) -> None:
    monkeypatch.setattr(tpe, "PROCESS_TRIALS", process_trials)
    space = hp.choice("c", [hp.randint("r", 4), {"q": hp.quniform("q", 0, 4, 1), "p": hp.choice("p", "ab")}])
    _, trials, step = search(space)
    for number in range(14):
        step(None if number % 4 == 3 else lambda p: float(p.get("r", 9)))
    points = [str(doc["misc"]["vals"]) for doc in trials._dynamic_trials]
    assert len(set(points)) == 14
    step(1.0)
    assert len(trials._dynamic_trials) == 15, "the budget may be larger than the space"


@pytest.mark.parametrize("process_trials", [0, 300])
def test_a_used_up_space_goes_on_with_what_can_be_drawn(
    monkeypatch: pytest.MonkeyPatch, process_trials: int
) -> None:
    """An option of probability 0 was the best, in a history that is older than the space."""
    monkeypatch.setattr(tpe, "PROCESS_TRIALS", process_trials)
    space = {"p": hp.pchoice("p", [(0.5, "a"), (0.5, "b"), (0.0, "z")]), "r": hp.randint("r", 4)}
    domain, trials, step = search(space)
    for number in range(12):
        point = {"p": number // 4, "r": number % 4}
        doc = doc_of_point(trials, domain, number, point)
        doc |= {"state": JobState.DONE, "result": {"status": "ok", "loss": float(point["p"] != 2)}}
        trials.insert_trial_docs([doc])
    trials.refresh()
    assert 2 not in [step(1.0)["p"] for _ in range(20)]


def test_threads_leave_the_threads_of_the_linear_algebra_alone() -> None:
    def threads() -> list[int]:
        return [pool["num_threads"] for pool in ThreadpoolController().info()]

    def search_something(_: int) -> None:
        _, _, step = search(SPACE)
        for _ in range(30):
            step(bowl)

    before = threads()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(search_something, range(8)))
    assert threads() == before


def test_the_largest_losses_are_numbers_still() -> None:
    targets = tpe._standardized(np.array([1.2e308, 1.5e308, 1e308, 1.6e308, math.inf]))
    assert np.isfinite(targets).all()


BAD: dict[str, Any] = {
    "all failed": lambda n: {"state": JobState.ERROR, "result": {"status": "new"}},
    "all equal": lambda n: {"result": {"status": "ok", "loss": 1.0}},
    "all infinite": lambda n: {"result": {"status": "ok", "loss": math.inf}},
    "all below everything": lambda n: {"result": {"status": "ok", "loss": -math.inf}},
    "all NaN": lambda n: {"result": {"status": "ok", "loss": math.nan}},
    "all pruned": lambda n: {"result": {"status": "fail", "pruned": True, "loss": 0.5}},
    "huge and tiny": lambda n: {"result": {"status": "ok", "loss": [1e300, 1e-300, -1e300, math.inf][n % 4]}},
}


@pytest.mark.parametrize("history", BAD)
@pytest.mark.parametrize("process_trials", [0, 300])
def test_no_history_stops_it(monkeypatch: pytest.MonkeyPatch, history: str, process_trials: int) -> None:
    monkeypatch.setattr(tpe, "PROCESS_TRIALS", process_trials)
    _, trials, step = search(SPACE)
    for number in range(30):
        step(0.0, **BAD[history](number))
    assert len({str(doc["misc"]["vals"]) for doc in trials._dynamic_trials}) == 30


@pytest.mark.parametrize("process_trials", [0, 300])
def test_failures_are_evidence(monkeypatch: pytest.MonkeyPatch, process_trials: int) -> None:
    """One half of the space fails, the other is all alike: few of the later points fail."""
    monkeypatch.setattr(tpe, "PROCESS_TRIALS", process_trials)
    _, trials, step = search({"x": hp.uniform("x", 0, 1), "y": hp.uniform("y", 0, 1)})
    for _ in range(60):
        step(lambda point: math.nan if point["x"] < 0.5 else 1.0)
    assert sum(math.isnan(loss) for loss in trials.losses()[30:]) < 11


def test_trials_outside_todays_space_are_named_and_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    domain, trials, step = search(SPACE)
    for _ in range(12):
        step(bowl)
    docs = doc_of_point(trials, domain, 77, {"x": 42.0, "kind": 0, "lr": 0.1})
    docs |= {"state": JobState.DONE, "result": {"status": "ok", "loss": -100.0}}
    trials.insert_trial_docs([docs])
    trials.refresh()
    tpe.suggest([99], domain, trials, 1)
    tpe.suggest([100], domain, trials, 1)
    assert [record.message for record in caplog.records] == [
        "trial 77 is kept, but the search learns nothing from it: x is 42.0; it must be a number from -5 to 5"
    ]
    assert 77 not in history_of(trials, domain).tids


def test_a_trial_is_turned_into_a_row_once_and_deleted_ones_are_forgotten() -> None:
    domain, trials, step = search(SPACE)
    for number in range(10):
        step(None if number == 3 else float(number))
    history = history_of(trials, domain)
    rows = history.rows
    assert history_of(trials, domain).rows is rows
    assert list(history.tids) == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    assert len(history.running) == 1
    trials._dynamic_trials[3] |= {"state": JobState.DONE, "result": {"status": "ok", "loss": 3.0}}
    assert list(history_of(trials, domain).losses) == [float(n) for n in range(10)], (
        "in the order of trial ids"
    )
    del trials._dynamic_trials[5]
    assert 5 not in history_of(trials, domain).tids
    assert not len(history.running)


def test_a_burst_is_as_good_as_one_at_a_time() -> None:
    domain, trials, step = search(SPACE)
    for _ in range(20):
        step(bowl)
    docs = tpe.suggest([100, 101, 102], domain, trials, 5)
    assert [doc["tid"] for doc in docs] == [100, 101, 102]
    assert len({str(doc["misc"]["vals"]) for doc in docs}) == 3


@pytest.mark.parametrize("process_trials", [0, 300])
@pytest.mark.parametrize("written", [lambda k: k * 0.1, lambda k: k / 10], ids=["steps", "decimals"])
def test_values_are_the_same_however_they_were_rounded(
    monkeypatch: pytest.MonkeyPatch, process_trials: int, written: Callable[[int], float]
) -> None:
    monkeypatch.setattr(tpe, "PROCESS_TRIALS", process_trials)
    domain, trials, _ = search({"x": hp.quniform("x", 0, 1, 0.1)})
    for k in range(10):
        doc = doc_of_point(trials, domain, k, {"x": written(k)})
        doc |= {"state": JobState.DONE, "result": {"status": "ok", "loss": abs(k - 3)}}
        trials.insert_trial_docs([doc])
    trials.refresh()
    assert {tpe.suggest([99], domain, trials, seed)[0]["misc"]["vals"]["x"][0] for seed in range(6)} == {1.0}


@pytest.mark.parametrize("process_trials", [0, 300])
def test_what_has_probability_0_is_not_suggested_even_if_it_was_best(
    monkeypatch: pytest.MonkeyPatch, process_trials: int
) -> None:
    monkeypatch.setattr(tpe, "PROCESS_TRIALS", process_trials)
    space = {"c": hp.pchoice("c", [(0.5, "a"), (0.5, "b"), (0.0, "z")]), "x": hp.uniform("x", 0, 1)}
    domain, trials, step = search(space)
    doc = doc_of_point(trials, domain, 77, {"c": 2, "x": 0.5})
    doc |= {"state": JobState.DONE, "result": {"status": "ok", "loss": -9.0}}
    trials.insert_trial_docs([doc])
    trials.refresh()
    assert {step(lambda p: p["x"])["c"] for _ in range(30)} == {0, 1}


def test_points_far_out_do_not_stop_it() -> None:
    domain, trials, step = search({"x": hp.normal("x", 0, 1)})
    for number in range(6):
        doc = doc_of_point(trials, domain, 100 + number, {"x": 3e6 * (1 + 1e-9 * number)})
        doc |= {"state": JobState.DONE, "result": {"status": "ok", "loss": -1.0 - number}}
        trials.insert_trial_docs([doc])
    trials.refresh()
    for _ in range(12):
        step(lambda p: abs(p["x"]))


def test_a_finished_trial_that_was_run_again_or_deleted_is_seen_among_many() -> None:
    domain, trials, step = search(SPACE)
    for number in range(12):
        step(float(number))
    assert history_of(trials, domain).losses[2] == 2.0
    trials._dynamic_trials[2] = {**trials._dynamic_trials[2], "result": {"status": "ok", "loss": -1.0}}
    assert history_of(trials, domain).losses[2] == -1.0
    del trials._dynamic_trials[0]
    assert list(history_of(trials, domain).tids) == list(range(1, 12))
    trials._dynamic_trials[5] = {**trials._dynamic_trials[5], "state": JobState.RUNNING}
    assert list(history_of(trials, domain).tids) == [1, 2, 3, 4, 5, 7, 8, 9, 10, 11]
    assert len(history_of(trials, domain).running) == 1
