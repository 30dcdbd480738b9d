"""hyperopt-tpe chooses hyperopt's points, and is not fooled by the trials that are still running."""

from __future__ import annotations

import copy
import math
import random
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hyperopt import hp, rand, tpe
from hyperopt.base import Domain, Trials
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hyperfarm.controller.compiling import compile_space
from hyperfarm.controller.history import history_of
from hyperfarm.controller.hyperopt_evidence import Evidence, evidence_of
from hyperfarm.controller.hyperopt_tpe import suggest

SPACE = {
    "x": hp.uniform("x", -5, 5),
    "lr": hp.loguniform("lr", -9, 0),
    "n": hp.quniform("n", 1, 64, 1),
    "kind": hp.choice("kind", [{"name": "a", "depth": hp.randint("depth", 2, 9)}, {"name": "b"}]),
}


@pytest.fixture(scope="module")
def domain() -> Domain:
    return Domain(lambda point: 0.0, SPACE)


def history(domain: Domain, results: Sequence[Any], seed: int = 0, tids: Sequence[int] = ()) -> Trials:
    """Trials at random points: a number is the loss of a finished one, None is one that still runs."""
    trials = Trials()
    space = compile_space(domain.expr)
    rows = space.sample(np.random.default_rng(seed), len(results))
    for tid, row, loss in zip(tids or range(len(results)), rows, results, strict=True):
        point = space.point(row)
        misc = {
            "tid": tid,
            "cmd": domain.cmd,
            "workdir": None,
            "idxs": {label: [tid] if label in point else [] for label in domain.params},
            "vals": {label: [point[label]] if label in point else [] for label in domain.params},
        }
        [doc] = trials.new_trial_docs([tid], [None], [{"status": "new"}], [misc])
        if loss is None:
            doc["state"] = 1
        elif loss == "error":
            doc["state"] = 3
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


def assert_same_point(domain: Domain, trials: Trials, seed: int, **options: Any) -> None:
    """hyperopt and we suggest the same document: floats to 1e-12, all else equal."""
    ours = suggest([10_000], domain, trials, seed, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # hyperopt takes the logarithm of 0.
        theirs = tpe.suggest([10_000], domain, trials, seed, verbose=False, **options)
    assert len(ours) == len(theirs)
    for doc, other in zip(copy.deepcopy(ours), theirs, strict=True):
        for label, values in other["misc"]["vals"].items():
            assert doc["misc"]["vals"].pop(label) == pytest.approx(list(values), rel=1e-12, abs=0)
        assert doc["misc"].pop("vals") == {}
        assert doc["misc"] | {"vals": other["misc"]["vals"]} == other["misc"]
        assert doc | {"misc": other["misc"]} == other


# ---- any space, any history --------------------------------------------------------------------------------


NUMBERS = [
    "uniform", "quniform", "uniformint", "loguniform", "qloguniform", "normal", "qnormal", "lognormal", "qlognormal"
]  # fmt: skip


class SpaceMaker:
    """A random space: parameters of all kinds, choices in choices, the same object in several branches."""

    def __init__(self, draw: Callable[..., Any]) -> None:
        self.draw = draw
        self.made: list[Any] = []
        self.count = 0

    def space(self) -> Any:
        return {f"k{number}": self.node(3) for number in range(self.draw(st.integers(1, 4)))}

    def node(self, depth: int) -> Any:
        kinds = ["number", "number", "shared", "randint"] + ["choice", "choice", "pchoice"] * (depth > 0)
        kind = self.draw(st.sampled_from(kinds))
        if kind == "shared" and self.made:
            return self.draw(st.sampled_from(self.made))
        self.count += 1
        # The order of the labels is not that of the parameters.
        label = f"{self.draw(st.sampled_from('abc'))}{self.count}"
        made = getattr(self, kind, self.number)(label, depth)
        self.made.append(made)
        return made

    def choice(self, label: str, depth: int) -> Any:
        return hp.choice(label, self.options(depth))

    def pchoice(self, label: str, depth: int) -> Any:
        options = self.options(depth)
        weights = [self.draw(st.integers(1 if number == 0 else 0, 5)) for number in range(len(options))]
        return hp.pchoice(
            label, [(weight / sum(weights), one) for weight, one in zip(weights, options, strict=True)]
        )

    def options(self, depth: int) -> list[Any]:
        count = self.draw(st.integers(1, 4))
        return [
            {f"o{inner}": self.node(depth - 1) for inner in range(self.draw(st.integers(0, 2)))}
            for _ in range(count)
        ]

    def randint(self, label: str, depth: int) -> Any:
        low, count = self.draw(st.integers(-3, 8)), self.draw(st.integers(1, 12))
        return hp.randint(label, count) if low < 0 else hp.randint(label, low, low + count)

    def number(self, label: str, depth: int) -> Any:
        kind = self.draw(st.sampled_from(NUMBERS))
        low = self.draw(st.sampled_from([-4, -1.5, 0, 0.3, 1]))
        width = self.draw(st.sampled_from([0.7, 2, 5.5]))
        step = self.draw(st.sampled_from([0.1, 0.25, 0.5]))
        if kind == "uniformint":
            return hp.uniformint(label, round(low), round(low + 2 * width + 1))
        ends = (low, low + width) if "uniform" in kind else (low, width)
        if kind == "qloguniform":
            step *= math.exp(low + width) - math.exp(low)
        return getattr(hp, kind)(label, *ends, *([step] if kind.startswith("q") else []))


@st.composite
def spaces(draw: Callable[..., Any]) -> Any:
    return SpaceMaker(draw).space()


@st.composite
def outcomes(draw: Callable[..., Any]) -> list[Any]:
    count = draw(st.integers(0, 120))
    dice = random.Random(draw(st.integers(0, 2**32)))
    odd = draw(st.sampled_from([0, 0, 0.2, 0.9]))
    return [
        dice.choice(["fail", "error", math.nan, math.inf]) if dice.random() < odd else dice.gauss(0, 1)
        for _ in range(count)
    ]


OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "n_startup_jobs": st.sampled_from([0, 5]),
        "gamma": st.sampled_from([0.0, 0.5, 1.5, 4.0]),
        "prior_weight": st.sampled_from([0.5, 2, 3.3]),
        "n_EI_candidates": st.sampled_from([1, 2, 7, 60]),
    },
)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(spaces(), outcomes(), st.integers(0, 2**32), st.booleans(), OPTIONS)
def test_over_any_space_the_point_is_hyperopts(
    space: Any, results: list[Any], seed: int, in_order: bool, options: dict[str, Any]
) -> None:
    domain = Domain(lambda point: 0.0, space)
    tids = random.Random(seed).sample(range(1000), len(results))
    trials = history(domain, results, seed, sorted(tids) if in_order else tids)
    assert_same_point(domain, trials, seed, **options)


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(spaces(), outcomes(), st.integers(0, 2**32))
def test_so_it_is_while_the_history_grows_and_shrinks(space: Any, results: list[Any], seed: int) -> None:
    domain = Domain(lambda point: 0.0, space)
    docs = history(domain, results, seed)._dynamic_trials
    random.Random(seed).shuffle(docs)
    trials = Trials()
    for part in (docs[:60], docs, docs[20:], docs[40:] + docs[:30]):
        trials._dynamic_trials = part
        trials.refresh()
        assert_same_point(domain, trials, seed, n_startup_jobs=0)


@pytest.mark.parametrize(
    "one",
    [
        hp.uniform("p", -1, 2), hp.quniform("p", -1, 2, 0.4), hp.uniformint("p", 0, 9),
        hp.loguniform("p", -7, 1), hp.qloguniform("p", -4, 1.5, 0.5), hp.qloguniform("p", 1, 5, 3),
        hp.normal("p", 1, 3), hp.qnormal("p", 1, 3, 0.5),
        hp.lognormal("p", 0.5, 2), hp.qlognormal("p", -0.5, 1, 0.5),
        hp.randint("p", 7), hp.randint("p", -3, 4), hp.choice("p", "abc"),
        hp.pchoice("p", [(0.1, "a"), (0.0, "b"), (0.9, "c")]),
    ],
)  # fmt: skip
def test_so_it_is_for_each_kind(one: Any) -> None:
    domain = Domain(lambda point: 0.0, one)
    for seed in range(5):
        assert_same_point(domain, history(domain, losses(130, seed), seed), seed, gamma=0.5)


@pytest.mark.parametrize("count", [0, 1, 19, 20, 21, 60, 700])
def test_so_it_is_after_any_number_of_trials(domain: Domain, count: int) -> None:
    trials = history(domain, losses(count))
    for seed in range(3):
        assert_same_point(domain, trials, 17 + seed)


@pytest.mark.parametrize(
    "odd", [["fail"] * 8, [math.inf] * 8, [math.nan] * 8, [math.nan, "fail", math.inf] * 3, [1, 1.0, 1]]
)
@pytest.mark.parametrize("count", [8, 15, 30])
def test_so_it_is_with_failures_and_odd_losses(domain: Domain, odd: list[Any], count: int) -> None:
    results = losses(count) + odd
    random.Random(1).shuffle(results)
    assert_same_point(domain, history(domain, results), 3)


def test_so_it_is_with_the_loss_of_a_trial_that_failed_or_was_pruned(domain: Domain) -> None:
    trials = history(domain, losses(40))
    best = min(trials._dynamic_trials, key=lambda doc: doc["result"]["loss"])
    without = point(suggest([99], domain, trials, 3))
    best["result"] = {"status": "fail", "loss": 9.0}
    trials = history_again(trials)
    assert_same_point(domain, trials, 3)
    assert point(suggest([99], domain, trials, 3)) != without


def history_again(trials: Trials) -> Trials:
    """The same documents in another Trials object, so that nothing is remembered of them."""
    again = Trials()
    again.insert_trial_docs(trials._dynamic_trials)
    again.refresh()
    return again


@pytest.mark.parametrize("copied", [3, 20, 99])
@pytest.mark.parametrize("own", [None, 1.5, math.nan])
def test_so_it_is_with_points_that_are_copies_of_others(domain: Domain, copied: int, own: Any) -> None:
    trials = history(domain, losses(40))
    for doc in trials._dynamic_trials[16:24]:
        doc["misc"]["from_tid"] = copied
    if own is not None:
        trials._dynamic_trials[min(copied, 30)]["result"]["loss"] = own
    for seed in range(4):
        assert_same_point(domain, trials, seed)


def test_a_randint_with_its_end_by_name_stays_in_its_range() -> None:
    """hyperopt forgets the offset then: its points lie outside, and break it when they come back as history."""
    domain = Domain(lambda point: 0.0, {"n": hp.randint("n", 20, high=24)})
    trials = history(domain, losses(30))
    found = {point(suggest([99], domain, trials, seed))["n"][0] for seed in range(30)}
    assert found <= set(range(20, 24))
    positional = Domain(lambda point: 0.0, {"n": hp.randint("n", 20, 24)})
    trials = history(positional, losses(30))
    assert found == {point(suggest([99], positional, trials, seed))["n"][0] for seed in range(30)}


def test_what_todays_space_does_not_hold_is_no_evidence(domain: Domain) -> None:
    trials = history(domain, losses(40))
    trials._dynamic_trials[7]["misc"]["vals"]["x"] = [500.0]
    without = Trials()
    without._dynamic_trials = [doc for doc in trials._dynamic_trials if doc["tid"] != 7]
    without.refresh()
    assert point(suggest([99], domain, trials, 3)) == point(suggest([99], domain, without, 3))


# ---- with trials that still run ----------------------------------------------------------------------------


def evidence(domain: Domain, trials: Trials) -> Evidence:
    return evidence_of(history_of(trials, domain))


@pytest.mark.parametrize("running", [0, 1, 7, 64, 500])
@pytest.mark.parametrize("finished", [20, 21, 64, 65, 100])
def test_the_good_part_has_the_size_of_what_is_finished(domain: Domain, finished: int, running: int) -> None:
    results: list[Any] = losses(finished) + [None] * running
    random.Random(finished + running).shuffle(results)
    seen = evidence(domain, history(domain, results))
    good, bad = seen.split(0.25)
    ranked = sorted((loss, tid) for tid, loss in enumerate(results) if loss is not None)
    best = {tid for _, tid in ranked[: math.ceil(0.25 * math.sqrt(finished))]}
    assert set(seen.tids[good]) == best
    assert set(seen.tids[bad]) == set(range(len(results))) - best, "and what runs is still evidence"


def test_the_good_part_is_capped_as_hyperopts(domain: Domain) -> None:
    good, bad = evidence(domain, history(domain, losses(400) + [None] * 30)).split(3.0)
    assert (good.sum(), bad.sum()) == (25, 405)


@pytest.mark.parametrize("finished", [[], ["fail"] * 5, [math.inf] * 5])
def test_running_trials_are_never_in_the_good_part(domain: Domain, finished: list[Any]) -> None:
    trials = history(domain, [None] * 30 + finished)
    seen = evidence(domain, trials)
    good, _ = seen.split(2.0)
    assert good.sum() == len(finished)
    assert not np.any(good & seen.is_running)
    assert suggest([35], domain, trials, 5, n_startup_jobs=0)


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


def test_a_running_trial_counts_as_what_it_becomes(domain: Domain) -> None:
    """The document of a running trial is changed in place by hyperopt's own `fmin`."""
    trials = history(domain, [*losses(40), None])
    before = point(suggest([99], domain, trials, 3))
    trials._dynamic_trials[-1] |= {"state": 2, "result": {"status": "ok", "loss": -1.0}}
    trials.refresh()
    assert_same_point(domain, trials, 3)
    assert point(suggest([99], domain, trials, 3)) != before
