"""What people add to a search: points to try, other experiments' trials, limits on what goes on at once."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from hyperopt import hp, rand
from hyperopt.early_stop import no_progress_loss

from hyperfarm import MongoTrials, minimize
from hyperfarm.controller.enqueue import enqueue
from hyperfarm.errors import ExperimentConflict, UsageError
from hyperfarm.store import Store
from tests.support import TWO_PARAMETERS, eventually, hyperfarm, started, worker

SPACE = {"x": hp.uniform("x", -5, 5), "act": hp.choice("act", ["relu", "tanh"])}
SLOW = "import time\ndef objective(p):\n    time.sleep(0.15)\n    return p['x'] ** 2\n"


def bowl(point: dict[str, Any]) -> float:
    return float(point["x"] ** 2)


def search(url: str, key: str, **options: Any) -> Any:
    common: dict[str, Any] = {"max_evals": 10, "workers": 1, "algo": "rand", "progress": False}
    return minimize(options.pop("objective", bowl), SPACE, mongo=url, exp_key=key, **{**common, **options})


def points_of(store: Store, key: str) -> list[dict[str, Any]]:
    docs = store.find_jobs(key)
    return [{label: vals[0] for label, vals in doc["misc"]["vals"].items() if vals} for doc in docs]


# ---- points --------------------------------------------------------------------------------------------


def test_points_to_evaluate_are_the_first_trials_and_are_not_tried_again(
    mongo_url: str, store: Store
) -> None:
    points = [{"x": 1.0, "act": "tanh"}, {"x": 0.25, "act": 0}]
    for count in (4, 6):
        search(mongo_url, "k", max_evals=count, points_to_evaluate=points, extend=True)
    tried = points_of(store, "k")
    assert tried[:2] == [{"x": 1.0, "act": 1}, {"x": 0.25, "act": 0}]
    assert len(tried) == 6
    assert sum(one in tried[:2] for one in tried) == 2


def test_run_takes_points_from_a_file(mongo_url: str, store: Store, tmp_path: Path) -> None:
    (tmp_path / "task.py").write_text(TWO_PARAMETERS + "def objective(p):\n    return p['x'] ** 2\n")
    file = tmp_path / "points.json"
    file.write_text('[{"x": 2, "n": 3}]')
    run = [
        "run",
        "task.py",
        "--mongo",
        mongo_url,
        "--workers",
        "1",
        "--max-evals",
        "2",
        "--points",
        "points.json",
    ]
    hyperfarm(*run, cwd=tmp_path)
    assert points_of(store, "task")[0] == {"x": 2.0, "n": 3.0}
    file.write_text('[{"x": 2, "nn": 3}]')
    refused = hyperfarm(*run, "--exp-key", "other", cwd=tmp_path, check=False)
    assert refused.returncode == 2
    assert "number 1: the space has no parameter 'nn'; the nearest is 'n'" in refused.stderr
    assert store.experiment("other") is None


def test_points_put_into_a_running_search_are_tried_within_its_budget(
    mongo_url: str, store: Store, tmp_path: Path
) -> None:
    (tmp_path / "task.py").write_text(TWO_PARAMETERS + SLOW)
    run = ["run", "task.py", "--mongo", mongo_url, "--workers", "2", "--max-evals", "24", "--algo", "rand"]
    with started(*run, cwd=tmp_path) as controller:
        eventually(lambda: any(doc["state"] == 2 for doc in store.find_jobs("task")), "a trial ends")
        put = hyperfarm(
            "enqueue", "task", '{"x": 0.5, "n": 2}', '[{"x": -0.5, "n": 3}]', "--mongo", mongo_url, "--json"
        )
        output, _ = controller.communicate(timeout=60)
        assert controller.returncode == 0, output
    told = json.loads(put.stdout)
    assert [one["point"] for one in told] == [{"x": 0.5, "n": 2.0}, {"x": -0.5, "n": 3.0}]
    docs = store.find_jobs("task")
    assert [doc["state"] for doc in docs] == [2] * 24
    assert sorted(doc["slot"] for doc in docs) == list(range(24))
    mine = [doc for doc in docs if doc["tid"] in {one["trial"] for one in told}]
    assert [doc["result"]["loss"] for doc in mine] == [0.25, 0.25]
    assert max(doc["tid"] for doc in docs) > mine[-1]["tid"], "they did not wait for the others"


def test_points_wait_for_workers_when_no_controller_runs(
    mongo_url: str, store: Store, tmp_path: Path
) -> None:
    search(mongo_url, "k", max_evals=3, trial_timeout=50.0)
    with pytest.raises(ExperimentConflict, match=r"budget of k \(3 trials\) has room for 0 more, not for 1"):
        enqueue(store, "k", [{"x": 1.5, "act": "tanh"}])
    assert len(store.find_jobs("k")) == 3
    refused = hyperfarm("enqueue", "k", '{"x": 1, "act": 0}', "--mongo", mongo_url, check=False)
    assert (refused.returncode, "--extend" in refused.stderr) == (2, True)
    put = hyperfarm("enqueue", "k", '{"x": 1.5, "act": "tanh"}', "--extend", "--mongo", mongo_url)
    assert "queued: act=1 ('tanh'), x=1.5" in put.stdout
    (waiting,) = [doc for doc in store.find_jobs("k") if doc["state"] == 0]
    assert waiting["limits"] == {"timeout_s": 50.0}
    with worker(mongo_url, tmp_path / "w"):
        eventually(lambda: store.job("k", waiting["tid"])["state"] == 2, "the worker tries it")
    result = search(mongo_url, "k", max_evals=3)  # The command it was begun with is still right.
    assert result.complete
    assert len(store.find_jobs("k")) == 4


def test_a_search_that_ends_leaves_them_in_the_queue(mongo_url: str, store: Store, tmp_path: Path) -> None:
    (tmp_path / "task.py").write_text(TWO_PARAMETERS + SLOW)
    with started("run", "task.py", "--mongo", mongo_url, "--max-evals", "9", cwd=tmp_path) as controller:
        eventually(lambda: store.find_jobs("task"), "a job is queued")
        enqueue(store, "task", [{"x": 1.0, "n": 2}])
        controller.send_signal(signal.SIGINT)
        controller.communicate(timeout=20)
    (left,) = store.find_jobs("task")
    assert (left["state"], left["enqueued"]) == (0, True)
    hyperfarm("cancel", "task", "--mongo", mongo_url)
    assert store.find_jobs("task")[0]["state"] == 4


def test_slots_of_the_searchs_own_points_stay_theirs(mongo_url: str, store: Store) -> None:
    points = [{"x": float(number), "act": 0} for number in range(4)]
    with pytest.raises(KeyboardInterrupt):
        search(mongo_url, "k", points_to_evaluate=points, early_stop_fn=interrupt)
    enqueue(store, "k", [{"x": 4.5, "act": 1}])
    search(mongo_url, "k", points_to_evaluate=points)
    tried = points_of(store, "k")
    assert len(tried) == 10
    assert all(tried.count(one) == 1 for one in [*points, {"x": 4.5, "act": 1}])


def interrupt(trials: Any) -> Any:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["nobody", '{"x": 1}'], "no experiment is called 'nobody'; there are: k"),
        (["k", '{"xx": 1, "act": 0}'], "point 1: the space has no parameter 'xx'; the nearest is 'x'"),
        (["k", '{"x": 9, "act": 0}'], "point 1: x is 9; it must be a number from -5 to 5"),
        (["k", '{"x": 1, "act": 0}', '{"x": 1}'], "point 2: act is missing"),
        (["k", "{x: 1}"], "is no JSON"),
        (["k", "@none.json"], "cannot read the points in none.json"),
        (["k", "[]"], "no point to queue"),
        (["k", "7"], "point 1 is no dict of parameters"),
    ],
)
def test_a_wrong_point_is_told_in_one_sentence(
    mongo_url: str, store: Store, args: list[str], told: str
) -> None:
    MongoTrials(mongo_url, exp_key="k").fmin(
        bowl, SPACE, rand.suggest, 5, timeout=0.2, return_argmin=False, show_progressbar=False
    )
    refused = hyperfarm("enqueue", *args, "--mongo", mongo_url, check=False)
    assert refused.returncode == 2
    assert told in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert not store.find_jobs("k")


# ---- warm start ----------------------------------------------------------------------------------------


def first_losses(new_ids: Any, domain: Any, trials: Any, seed: int) -> Any:
    """An algorithm that leaves in each point what it was shown: how many trials, and their lowest loss."""
    losses = [doc["result"]["loss"] for doc in trials.trials if doc["state"] == 2]
    (doc,) = rand.suggest(new_ids, domain, trials, seed)
    doc["seen"] = [len(losses), min(losses, default=None)]
    return [doc]


def test_a_search_knows_the_trials_of_another_and_counts_its_own(mongo_url: str, store: Store) -> None:
    search(mongo_url, "old", max_evals=25, seed=1)
    known = min(doc["result"]["loss"] for doc in store.find_jobs("old"))
    options: dict[str, Any] = {"algo": first_losses, "objective": lambda p: 100.0 + p["x"] ** 2}
    result = search(mongo_url, "new", max_evals=3, warm_start="old", **options)
    seen = [doc["seen"] for doc in store.find_jobs("new")]
    assert seen[0] == [25, known]
    assert all(one[1] == known and 25 <= one[0] <= 25 + number for number, one in enumerate(seen))
    assert result.best_loss > 100
    assert len(result.trials.trials) == 3
    enqueue(store, "old", [{"x": 0.0, "act": 0}], extend=True)
    search(mongo_url, "old", max_evals=25, algo="rand")
    # Begun again, also without the name: what it knew, and no more.
    search(mongo_url, "new", max_evals=4, extend=True, **options)
    assert store.find_jobs("new")[-1]["seen"] == [28, known]
    assert len(store.find_jobs("new")) == 4


def test_tpe_skips_its_random_start_with_what_another_search_has_found(mongo_url: str, store: Store) -> None:
    search(mongo_url, "old", max_evals=40, seed=1)
    search(mongo_url, "new", max_evals=9, seed=5, algo="tpe", warm_start=["old"])
    search(mongo_url, "cold", max_evals=9, seed=5, algo="tpe")
    pairs = list(zip(points_of(store, "new"), points_of(store, "cold"), strict=True))
    assert all(warm["x"] != cold["x"] for warm, cold in pairs), "same seeds, but one of them knows something"


def test_what_does_not_fit_is_told_on_the_command_line(mongo_url: str, store: Store, tmp_path: Path) -> None:
    (tmp_path / "old.py").write_text(TWO_PARAMETERS + "def objective(p):\n    return p['x'] ** 2\n")
    (tmp_path / "new.py").write_text((tmp_path / "old.py").read_text().replace("-5, 5", "-2, 5"))
    run = ["--mongo", mongo_url, "--workers", "1", "--algo", "rand", "--seed", "3"]
    hyperfarm("run", "old.py", *run, "--max-evals", "20", cwd=tmp_path)
    outside = sum(point["x"] < -2 for point in points_of(store, "old"))
    assert 0 < outside < 20
    done = hyperfarm("run", "new.py", *run, "--max-evals", "1", "--from", "old", cwd=tmp_path)
    assert (
        f"from old: {20 - outside} of 20 trials used; x has another range; {outside} left out: x is outside"
        in done.stderr
    )
    other = ["--exp-key", "third", "--max-evals", "1", "--from", "odl"]
    refused = hyperfarm("run", "new.py", *run, *other, cwd=tmp_path, check=False)
    assert (refused.returncode, "did you mean old?" in refused.stderr) == (2, True)
    assert store.experiment("third") is None
    itself = hyperfarm("run", "new.py", *run, "--max-evals", "1", "--from", "new", cwd=tmp_path, check=False)
    assert (itself.returncode, "is this experiment itself" in itself.stderr) == (2, True)


# ---- limits --------------------------------------------------------------------------------------------


def test_no_more_trials_run_at_once_than_asked_for(mongo_url: str, store: Store, tmp_path: Path) -> None:
    journal = tmp_path / "journal"

    def noted(point: dict[str, Any]) -> float:
        import time

        with open(journal, "a") as out:
            out.write(f"{time.monotonic()} 1\n")
        deadline = time.monotonic() + 60  # The first waits for the second, which may run beside it.
        while journal.read_text().count(" 1\n") < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
        with open(journal, "a") as out:
            out.write(f"{time.monotonic()} -1\n")
        return float(point["x"])

    search(mongo_url, "k", objective=noted, max_evals=20, workers=5, max_concurrent=2)
    running = most = 0
    for _, sign in sorted((*map(float, line.split()),) for line in journal.read_text().splitlines()):
        running += int(sign)
        most = max(most, running)
    assert most == 2, "two, and not one: the limit is used"
    assert len(store.find_jobs("k")) == 20
    with pytest.raises(UsageError, match="max_concurrent is 0"):
        search(mongo_url, "k", max_concurrent=0)


@pytest.mark.parametrize("workers", [1, 4])
def test_a_search_without_progress_ends(mongo_url: str, store: Store, workers: int) -> None:
    result = search(
        mongo_url,
        "k",
        objective=lambda p: 1.0,
        max_evals=200,
        workers=workers,
        early_stop_fn=no_progress_loss(12),
    )
    assert result.reason == "no progress: early_stop_fn said stop"
    assert 12 <= len(store.find_jobs("k")) <= 12 + 3 * workers


def test_no_progress_is_an_option_and_so_are_the_other_limits(
    mongo_url: str, store: Store, tmp_path: Path
) -> None:
    (tmp_path / "task.py").write_text(TWO_PARAMETERS + "def objective(p):\n    return 1\n")
    run = [
        "run",
        "task.py",
        "--mongo",
        mongo_url,
        "--workers",
        "2",
        "--max-evals",
        "100",
        "--no-progress",
        "6",
    ]
    done = hyperfarm(*run, cwd=tmp_path)
    assert "early_stop_fn said stop" in done.stdout
    assert len(store.find_jobs("task")) < 20
    again = hyperfarm(*run, cwd=tmp_path)
    assert "early_stop_fn said stop" in again.stdout, "it stops where it would have stopped"
    assert "to carry it on, raise --no-progress" in again.stdout
    before = len(store.find_jobs("task"))
    hyperfarm("enqueue", "task", '{"n": 3, "x": 0.5}', "--mongo", mongo_url, cwd=tmp_path)
    by_hand = hyperfarm(*run, cwd=tmp_path)
    assert "early_stop_fn said stop" in by_hand.stdout
    assert [doc["state"] for doc in store.find_jobs("task") if "enqueued" in doc] == [2], (
        "it is wanted all the same"
    )
    assert len(store.find_jobs("task")) == before + 1, "and nothing else"
    low = hyperfarm(*run[:-2], "--loss-threshold", "1", cwd=tmp_path)
    assert "the loss threshold is reached" in low.stdout
    assert len(store.find_jobs("task")) < 25
