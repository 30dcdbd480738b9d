"""The search benchmark: its problems are what they say, its runs are fair and resumable, its tests are right."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hyperopt import rand, space_eval
from hyperopt.base import Domain, Trials

from benchmarks.search import compare, functions, problems, report, runs, simulate, spaces

ROOT = Path(__file__).parents[2]
PROBLEMS = problems.all_problems()

OPTIMA: dict[str, dict[str, Any]] = {
    "dev-smooth": {"x": np.pi, "y": 2.275},
    "dev-valley": {
        f"dev_valley_{i}": x
        for i, x in enumerate((0.20168951, 0.15001069, 0.47687398, 0.27533243, 0.31165162, 0.65730053))
    },
    "dev-noisy": {f"dev_noisy_{i}": -2.90353403 for i in range(4)},
    "dev-log": {"rate": 10**-3.5, "decay": 10**-5.7, "scale": 10**1.2},
    "dev-conditional": {"branch": {"is": "rule", "rate": 1e-2, "share": 0.3, "rule": "b"}},
    "dev-nested": {
        "scale": 0.62,
        "model": {
            "is": "net",
            "width": 64.0,
            "solver": {
                "is": "momentum",
                "rate": 10**-1.3,
                "momentum": 0.85,
                "plan": {"is": "warm-up", "warm_up": 0.2},
            },
        },
    },
    "rep-smooth": {"x": 0.08984201, "y": -0.7126564},
    "rep-valley": {f"rep_valley_{i}": 1.0 for i in range(5)},
    "rep-noisy": {f"rep_noisy_{i}": x for i, x in enumerate((0.11458887, 0.5556489, 0.85254698))},
    "rep-log": {"cost": 10**3.3, "width": 10**-4.4, "ridge": 10**-2.8, "step": 10**-1.1},
    "rep-conditional": {
        "branch": {"is": "large", "a": 0.15, "b": 0.62, "c": 0.4, "rate": 10**-1.5, "count": 3}
    },
    "rep-nested": {
        "gain": 10**1.5,
        "path": {"is": "forward", "rank": 6, "sieve": {"is": "smooth", "width": 10**-0.8, "share": 0.28}},
    },
}


def random_points(problem: problems.Problem, count: int) -> list[Any]:
    tree, domain = spaces.compiled(problem.space), Domain(simulate.never_called, problem.space)
    docs = rand.suggest(list(range(count)), domain, Trials(), 7)
    found = []
    for doc in docs:
        chosen = {label: values[0] for label, values in doc["misc"]["vals"].items() if values}
        found.append(spaces.point(tree, lambda parameter, chosen=chosen: chosen[parameter.label]))
        assert found[-1] == space_eval(problem.space, chosen)
    return found


def test_the_halves_have_the_same_kinds() -> None:
    kinds = Counter((problem.half, problem.kind) for problem in PROBLEMS.values())
    assert kinds == {(half, kind): 1 for half in problems.HALVES for kind in problems.KINDS}


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_a_problem_has_finite_losses_and_no_point_below_its_optimum(problem: problems.Problem) -> None:
    labels = [parameter.label for parameter in spaces.parameters(spaces.compiled(problem.space))]
    assert len(set(labels)) == len(labels)
    for point in random_points(problem, 60):
        assert problem.value(point) >= problem.best - 1e-12
        assert np.isfinite(problem.loss(point, np.random.default_rng(1)))
        assert np.isfinite(problem.regret(point))
        assert problem.loss(point, np.random.default_rng(1)) == problem.loss(point, np.random.default_rng(1))


@pytest.mark.parametrize("name", OPTIMA)
def test_the_optimum_is_where_it_is_said_to_be(name: str) -> None:
    assert PROBLEMS[name].value(OPTIMA[name]) == pytest.approx(PROBLEMS[name].best, abs=1e-9)


def test_a_factorial_function_is_the_same_at_one_point_and_everywhere() -> None:
    function = functions.Factorial(sizes=(3, 4, 5), ordered=(0, 2), seed=1)
    everywhere = function.everywhere()
    assert function.best == everywhere.min()
    for at in np.ndindex(everywhere.shape):
        assert function(at) == pytest.approx(everywhere[at])


def test_optuna_takes_every_point_of_a_space_to_be_inside() -> None:
    optuna = pytest.importorskip("optuna")
    for problem in PROBLEMS.values():
        search = simulate.OfOptuna(optuna.samplers.RandomSampler(seed=3), problem.space)
        for number in range(20):
            trial, point = search.ask(number)
            assert np.isfinite(problem.value(point))
            search.tell(trial, 1.0)


seen: list[tuple[int, int]] = []


def spy(new_ids: list[int], domain: Any, trials: Any, seed: int) -> list[dict[str, Any]]:
    states = Counter(doc["state"] for doc in trials.trials)
    assert all("loss" not in doc["result"] for doc in trials.trials if doc["state"] == 1)
    assert all("loss" in doc["result"] for doc in trials.trials if doc["state"] == 2)
    seen.append((states[1], states[2]))
    docs: list[dict[str, Any]] = rand.suggest(new_ids, domain, trials, seed)
    return docs


def test_as_many_trials_run_as_was_said_and_the_algorithm_sees_them() -> None:
    seen.clear()
    done = simulate.run(
        f"{__name__}:spy", PROBLEMS["rep-conditional"], running=4, seed=1, evals=12, budgets=(4, 12)
    )
    assert seen == [(0, 0), (1, 0), (2, 0), (3, 0), *((3, ended) for ended in range(1, 9))]
    assert done.budgets == (4, 12)
    assert done.regrets[0] >= done.regrets[1]


def test_regret_is_of_the_trial_with_the_best_loss_told() -> None:
    noise = iter([500.0, -900.0, 0.0])
    problem = PROBLEMS["rep-smooth"]
    values: list[float] = []

    class Noisy(problems.Problem):
        def loss(self, point: Any, rng: np.random.Generator) -> float:
            values.append(self.regret(point))
            return self.value(point) + next(noise)

    noisy = Noisy(**vars(problem))
    done = simulate.run("random", noisy, running=1, seed=2, evals=3, budgets=(1, 2, 3))
    assert done.regrets == (values[0], values[1], values[1])


def test_runs_of_every_algorithm_go_through_and_resume(tmp_path: Path) -> None:
    pytest.importorskip("optuna")

    def command(*options: str) -> str:
        words = [sys.executable, "-m", "benchmarks.search", *options]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr
        return done.stdout

    options = "run --problems dev-nested dev-real --running 8 --evals 30 --processes 1 --seeds 1"
    run = [*options.split(), "--out", str(tmp_path)]
    command(*run)
    files = {path.stem: path for path in tmp_path.iterdir()}
    assert set(files) == set(simulate.ALGORITHMS)
    before = {name: path.read_text() for name, path in files.items()}
    assert all(len(text.splitlines()) == 2 for text in before.values())
    files["random"].write_text(before["random"][:-30])  # As a killed process leaves it.
    command(*run)
    for name, path in files.items():
        if name != "random":
            assert path.read_text() == before[name]
    redone = [json.loads(line) for line in files["random"].read_text().splitlines()[2:]]
    original = [json.loads(line) for line in before["random"].splitlines()]
    assert [line["regret"] for line in redone] == [original[1]["regret"]]
    shown = command("report", "--show", "--out", str(tmp_path))
    assert "Mean rank" in shown
    assert all(name in shown for name in simulate.ALGORITHMS)


def test_done_again_throws_only_the_wanted_runs_away(tmp_path: Path) -> None:
    line = {"algo": "a", "running": 1, "seed": 0, "regret": {"25": 1.0}, "cpu_s": 0.1, "commit": "c"}
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({**line, "problem": name}) + "\n" for name in "xy"))
    runs.forget([runs.Key(seed=0, running=1, problem="x", algorithm="a")], tmp_path)
    assert [key.problem for key in runs.read(tmp_path)] == ["y"]


def test_holm_corrects_step_by_step() -> None:
    assert compare.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_a_paired_test_says_who_is_better_and_copes_with_equal_pairs() -> None:
    ours = np.arange(20.0)
    better = compare.paired("better", ours, ours + np.linspace(1, 2, 20))
    equal = compare.paired("equal", ours, ours)
    worse = compare.paired("worse", ours + 1, ours)
    unsure = compare.paired("unsure", ours, ours + np.where(np.arange(20) % 2, 1, -1))
    assert equal.p == 1
    won, lost, tied = compare.wins_and_losses([better, equal, worse, unsure])
    assert (won, lost, tied) == (["better"], ["worse"], ["equal", "unsure"])


def test_equal_regrets_share_their_rank() -> None:
    assert compare.ranks(np.array([[1.0, 1.0, 2.0], [3.0, 1.0, 2.0]])).tolist() == [2.25, 1.25, 2.5]


def test_tables_are_written_between_their_markers(tmp_path: Path) -> None:
    path = tmp_path / "search.md"
    path.write_text("before\n<!-- cost: begin -->\nold\n<!-- cost: end -->\nafter\n")
    report.write_between(path, "cost", "new")
    assert path.read_text() == "before\n<!-- cost: begin -->\n\nnew\n\n<!-- cost: end -->\nafter\n"
    with pytest.raises(ValueError, match="lacks the markers"):
        report.write_between(path, "quality", "new")
