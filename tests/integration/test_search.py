"""A search from beginning to end: exact budgets, restarts, limits, fairness."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from hyperopt import fmin, hp, rand, tpe

from hyperfarm import MongoTrials, minimize
from hyperfarm.store import Store
from tests.support import TWO_PARAMETERS, eventually, hyperfarm, started, worker

SPACE = {"x": hp.uniform("x", -5, 5), "n": hp.quniform("n", 1, 9, 1)}


def bowl(point):
    return point["x"] ** 2 + point["n"]


def journalled(point, journal):
    """Every execution leaves a line, whatever becomes of it."""
    from hyperfarm import trial

    with open(journal, "a") as out:
        out.write(f"{trial.id}\n")
    return bowl(point)


def finished(store: Store, key: str) -> list[dict]:
    return [doc for doc in store.find_jobs(key) if doc["state"] in (2, 3)]


def test_exactly_max_evals_trials_run_and_the_best_is_the_lowest(mongo_url, store, tmp_path):
    journal = tmp_path / "journal"
    result = minimize(
        functools.partial(journalled, journal=str(journal)),
        SPACE,
        max_evals=25,
        exp_key="bowl",
        mongo=mongo_url,
        workers=3,
        progress=False,
    )
    docs = store.find_jobs("bowl")
    assert [doc["state"] for doc in docs] == [2] * 25
    assert sorted(doc["slot"] for doc in docs) == list(range(25))
    assert len(journal.read_text().split()) == 25
    assert result.complete
    assert result.best_loss == min(doc["result"]["loss"] for doc in docs)
    assert bowl(result.best) == pytest.approx(result.best_loss)


def test_an_objective_that_fails_now_and_then_uses_up_its_slots(mongo_url, store):
    def fails_for_some(point):
        if point["n"] > 4:
            raise ValueError(f"no {point['n']}")
        return point["x"]

    result = minimize(
        fails_for_some, SPACE, max_evals=20, exp_key="some", mongo=mongo_url, workers=2, algo="rand",
        seed=3, progress=False,
    )  # fmt: skip
    docs = store.find_jobs("some")
    states = Counter(doc["state"] for doc in docs)
    assert states[2] + states[3] == 20
    assert states[3] > 0
    failed = next(doc for doc in docs if doc["state"] == 3)
    assert failed["error"][0] == "ValueError"
    assert "fails_for_some" in failed["traceback"]
    assert result.best_loss == min(doc["result"]["loss"] for doc in docs if doc["state"] == 2)


def test_a_search_repeats_itself_with_its_seed(mongo_url, store):
    """One at a time: else it depends on who was faster what a suggestion knows."""
    points = []
    wishes = {"max_evals": 24, "workers": 1, "max_concurrent": 1, "seed": 7, "progress": False}
    for key in ("one", "two"):
        minimize(bowl, SPACE, exp_key=key, mongo=mongo_url, **wishes)
        points.append([(doc["slot"], doc["misc"]["vals"]) for doc in store.find_jobs(key)])
    assert points[0] == points[1]


def test_a_killed_controller_is_started_again_and_goes_on(mongo_url, store, tmp_path):
    script = tmp_path / "slow_bowl.py"
    script.write_text(
        TWO_PARAMETERS
        + "import time\n"
        + "def objective(p):\n    time.sleep(0.05)\n    return p['x'] ** 2 + p['n']\n"
    )
    with worker(mongo_url, tmp_path / "elsewhere", "--slots", "2"):
        for killed_at in (5, 12):
            with started("run", str(script), "--mongo", mongo_url, "--max-evals", "30") as controller:
                eventually(
                    lambda at=killed_at: len(finished(store, "slow_bowl")) >= at, f"{killed_at} trials"
                )
                controller.send_signal(signal.SIGKILL)
                controller.wait()
        before = {doc["tid"]: doc["result"]["loss"] for doc in finished(store, "slow_bowl")}
        hyperfarm("run", str(script), "--mongo", mongo_url, "--max-evals", "30")
    docs = store.find_jobs("slow_bowl")
    assert [doc["state"] for doc in docs] == [2] * 30
    assert sorted(doc["slot"] for doc in docs) == list(range(30))
    after = {doc["tid"]: doc["result"]["loss"] for doc in docs}
    assert before.items() <= after.items()


def test_two_controllers_share_one_budget(mongo_url, store, tmp_path):
    script = tmp_path / "shared.py"
    script.write_text(TWO_PARAMETERS + "def objective(p):\n    return p['x'] ** 2\n")
    with worker(mongo_url, tmp_path / "elsewhere", "--slots", "3"):
        command = ["run", str(script), "--mongo", mongo_url, "--max-evals", "60", "--algo", "rand"]
        with started(*command) as one, started(*command) as two:
            outputs = [process.communicate(timeout=100)[0] for process in (one, two)]
            assert [one.returncode, two.returncode] == [0, 0], outputs
    docs = store.find_jobs("shared")
    assert [doc["state"] for doc in docs] == [2] * 60
    assert sorted(doc["slot"] for doc in docs) == list(range(60))


def test_the_budget_is_changed_only_when_asked(mongo_url, store, tmp_path):
    script = tmp_path / "grow.py"
    script.write_text(TWO_PARAMETERS + "def objective(p):\n    return p['x'] ** 2\n")
    run = ["run", str(script), "--mongo", mongo_url, "--workers", "1", "--max-evals"]
    hyperfarm(*run, "4")
    refused = hyperfarm(*run, "7", check=False)
    assert refused.returncode == 2
    assert "--extend" in refused.stderr
    assert len(store.find_jobs("grow")) == 4
    hyperfarm(*run, "7", "--extend")
    assert len(finished(store, "grow")) == 7


def test_changed_code_is_refused_unless_asked_for(mongo_url, store, tmp_path):
    script = tmp_path / "changing.py"
    run = ["run", str(script), "--mongo", mongo_url, "--workers", "1"]
    script.write_text(TWO_PARAMETERS + "def objective(p):\n    return 1\n")
    hyperfarm(*run, "--max-evals", "2")
    script.write_text(TWO_PARAMETERS + "def objective(p):\n    return 2\n")
    refused = hyperfarm(*run, "--max-evals", "4", "--extend", check=False)
    assert refused.returncode == 2
    assert "--replace-code" in refused.stderr
    hyperfarm(*run, "--max-evals", "4", "--extend", "--replace-code")
    assert [doc["result"]["loss"] for doc in store.find_jobs("changing")] == [1, 1, 2, 2]


@pytest.mark.parametrize(
    "algo", [tpe.suggest, rand.suggest, functools.partial(tpe.suggest, n_startup_jobs=3)]
)
def test_hyperopts_fmin_takes_our_trials(mongo_url, tmp_path, algo):
    trials = MongoTrials(mongo_url.replace("mongodb://", "mongo://", 1), exp_key="fmin")
    with worker(mongo_url, tmp_path / "elsewhere", "--slots", "2"):
        best = fmin(bowl, SPACE, algo=algo, max_evals=8, trials=trials, show_progressbar=False)
        assert set(best) == {"x", "n"}
        assert len(trials) == 8
        assert sorted(trials.losses())[0] == trials.best_trial["result"]["loss"]
        fmin(bowl, SPACE, algo=algo, max_evals=11, trials=trials, show_progressbar=False)
        assert len(trials) == 11


def test_fmins_timeout_returns_with_a_job_running(mongo_url, store, tmp_path):
    def slow(point):
        import time

        time.sleep(60)
        return 1.0

    trials = MongoTrials(mongo_url, exp_key="slow")
    with worker(mongo_url, tmp_path / "elsewhere"):
        began = time.monotonic()
        fmin(
            slow, SPACE, algo=rand.suggest, max_evals=5, timeout=6, trials=trials, show_progressbar=False,
            return_argmin=False,
        )  # fmt: skip
        assert time.monotonic() - began < 9
        states = [doc["state"] for doc in store.find_jobs("slow")]
        assert states == [1], "one job runs on, the queued ones are withdrawn"


def test_two_experiments_share_a_worker_fairly(mongo_url, store, tmp_path):
    body = "import time\ndef objective(p):\n    time.sleep(0.1)\n    return p['x'] ** 2\n"
    for name in ("first", "second"):
        (tmp_path / f"{name}.py").write_text(TWO_PARAMETERS + body)
    run = ["--mongo", mongo_url, "--max-evals", "200", "--algo", "rand"]
    with (
        started("run", str(tmp_path / "first.py"), *run),
        started("run", str(tmp_path / "second.py"), *run),
    ):
        eventually(lambda: len(store.waiting().exp_keys) == 2, "both have jobs waiting")
        with worker(mongo_url, tmp_path / "elsewhere", "--slots", "2"):
            eventually(
                lambda: len(finished(store, "first")) + len(finished(store, "second")) >= 80, "80 trials"
            )
    counts = sorted(len(finished(store, name)) for name in ("first", "second"))
    assert counts[0] >= counts[1] / 3, counts


def test_ctrl_c_ends_a_search_within_five_seconds_and_loses_nothing(mongo_url, store, tmp_path):
    script = tmp_path / "endless.py"
    script.write_text(
        TWO_PARAMETERS
        + "import time\ndef objective(p):\n    time.sleep(0.3 if trial.id < 4 else 60)\n    return 1\n"
    )
    from tests.support import descendants, gone

    run = ["run", str(script), "--mongo", mongo_url, "--workers", "2", "--max-evals", "50", "--algo", "rand"]
    with started(*run) as controller:
        eventually(lambda: len(finished(store, "endless")) >= 2, "two trials")
        family = descendants(controller.pid)
        assert family
        began = time.monotonic()
        controller.send_signal(signal.SIGINT)
        output, _ = controller.communicate(timeout=20)
        assert time.monotonic() - began < 5, output
    assert controller.returncode == 130
    assert "carry it on with the same command" in output
    assert gone(family)
    states = Counter(doc["state"] for doc in store.find_jobs("endless"))
    assert set(states) <= {2}, states
    assert not store.live_workers()


def test_ctrl_c_ends_a_worker_within_five_seconds_and_gives_its_job_back(mongo_url, store, tmp_path):
    script = tmp_path / "long.py"
    script.write_text(TWO_PARAMETERS + "import time\ndef objective(p):\n    time.sleep(60)\n    return 1\n")
    from tests.support import descendants, gone

    with started("run", str(script), "--mongo", mongo_url, "--max-evals", "3"):
        with worker(mongo_url, tmp_path / "elsewhere") as host:
            eventually(lambda: any(doc["state"] == 1 for doc in store.find_jobs("long")), "a running trial")
            family = descendants(host.pid)
            began = time.monotonic()
            host.send_signal(signal.SIGINT)
            output, _ = host.communicate(timeout=20)
            assert time.monotonic() - began < 5, output
        assert gone(family)
        job = store.find_jobs("long")[0]
        assert (job["state"], job["attempt"], job["owner"]) == (0, 0, None), output
        assert not store.live_workers()


def test_ctrl_c_in_python_raises_keyboard_interrupt_and_keeps_what_is_finished(mongo_url, store, tmp_path):
    script = tmp_path / "mine.py"
    script.write_text(
        TWO_PARAMETERS
        + f"""
import time
from hyperfarm import minimize
def objective(p):
    time.sleep(0.2)
    return p["x"] ** 2
if __name__ == "__main__":
    minimize(objective, space, max_evals=500, mongo={mongo_url!r}, workers=2)
"""
    )
    process = subprocess.Popen(
        [sys.executable, str(script)], stderr=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    try:
        eventually(lambda: len(finished(store, "objective")) >= 3, "three trials")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=10)
    finally:
        process.kill()
    assert "KeyboardInterrupt" in errors
    assert len(finished(store, "objective")) >= 3
    assert all(doc["state"] == 2 for doc in store.find_jobs("objective"))


def test_the_worker_finishes_what_it_runs_when_its_controller_is_killed(mongo_url, store, tmp_path):
    script = tmp_path / "orphan.py"
    script.write_text(TWO_PARAMETERS + "import time\ndef objective(p):\n    time.sleep(1.5)\n    return 1\n")
    from tests.support import descendants, gone

    run = ["run", str(script), "--mongo", mongo_url, "--workers", "1", "--max-evals", "9"]
    with started(*run) as controller:
        eventually(lambda: any(doc["state"] == 1 for doc in store.find_jobs("orphan")), "a running trial")
        family = descendants(controller.pid)
        controller.send_signal(signal.SIGKILL)
        controller.wait()
        eventually(lambda: gone(family), "the worker drains and ends", 15)
    assert len(finished(store, "orphan")) == 1
    assert not any(doc["state"] == 1 for doc in store.find_jobs("orphan"))


def test_cancel_ends_a_search_and_rm_leaves_nothing(mongo_url, store, tmp_path):
    script = tmp_path / "gone.py"
    script.write_text(
        TWO_PARAMETERS
        + "import time\ndef objective(p):\n    time.sleep(0.1)\n    print('hello')\n"
        + "    trial.save('a', b'x' * 3_000_000)\n    trial.report(loss=1, step=1)\n"
        + "    return {'loss': 1, 'status': 'ok', 'big': b'y' * 2_000_000, 'attachments': {'z': b'z'}}\n"
    )
    with started(
        "run", str(script), "--mongo", mongo_url, "--workers", "2", "--max-evals", "300"
    ) as controller:
        eventually(lambda: len(finished(store, "gone")) >= 3, "three trials")
        hyperfarm("cancel", "gone", "--mongo", mongo_url)
        output, _ = controller.communicate(timeout=20)
        assert "cancelled" in output
    assert store.find_jobs("gone")
    hyperfarm("rm", "gone", "--yes", "--mongo", mongo_url)
    left = {
        name: store.database[name].count_documents({})
        for name in store.database.list_collection_names()
        if name not in ("job_ids", "news")
    }
    assert not any(left.values()), left


def test_the_main_script_is_never_run_again_by_a_worker(mongo_url, store, tmp_path):
    script = tmp_path / "noisy.py"
    marks = tmp_path / "marks"
    script.write_text(
        f"open({str(marks)!r}, 'a').write('run\\n')\n"
        + TWO_PARAMETERS
        + f"""
from hyperfarm import minimize
minimize(lambda p: p["x"] ** 2, space, max_evals=3, mongo={mongo_url!r}, workers=2, exp_key="noisy")
"""
    )
    subprocess.run([sys.executable, str(script)], check=True, capture_output=True, timeout=100)
    assert marks.read_text() == "run\n"
    assert len(finished(store, "noisy")) == 3


def test_a_trial_that_kills_its_process_is_tried_three_times_and_then_failed(mongo_url, store, tmp_path):
    journal = tmp_path / "journal"
    script = tmp_path / "deadly.py"
    script.write_text(
        TWO_PARAMETERS
        + f"import os\ndef objective(p):\n    open({str(journal)!r}, 'a').write(f'{{trial.id}}\\n')\n"
        + "    if p['n'] > 5:\n        print('about to go', flush=True)\n        os._exit(3)\n    return 1\n"
    )
    hyperfarm("run", str(script), "--mongo", mongo_url, "--workers", "2", "--max-evals", "8", "--algo", "rand",
              "--seed", "5")  # fmt: skip
    docs = store.find_jobs("deadly")
    executions = Counter(int(line) for line in Path(journal).read_text().split())
    dead = [doc for doc in docs if doc["state"] == 3]
    assert len(docs) == 8
    assert 0 < len(dead) < 8
    for doc in docs:
        assert executions[doc["tid"]] == (3 if doc in dead else 1)
    assert "exit code 3" in dead[0]["error"][1]
    assert "about to go" in hyperfarm("logs", "deadly", str(dead[0]["tid"]), "--mongo", mongo_url).stdout
