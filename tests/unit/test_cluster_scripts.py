"""The array-job scripts for Slurm and PBS: real workers under them; only the scheduler's variables are made up."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hyperopt import hp

from hyperfarm.blobs import Blobs
from hyperfarm.bundle import pack
from hyperfarm.controller.experiment import Request, open_experiment
from hyperfarm.store import Store
from tests.making import job
from tests.support import descendants, eventually, gone

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
SCHEDULERS = {
    "slurm_array.sh": {"SLURM_ARRAY_JOB_ID": "41", "SLURM_ARRAY_TASK_ID": "7"},
    "pbs_array.sh": {"PBS_JOBID": "41[7].head", "PBS_ARRAY_INDEX": "7"},
}
SPACE = hp.uniform("x", -1, 1)
scripts = pytest.mark.parametrize("script", SCHEDULERS)


def enqueue(store: Store, objective: Callable[[Any], Any], count: int = 1) -> None:
    """An experiment `array` with `count` waiting jobs, as a controller makes them."""
    bundle = pack(objective, SPACE)
    request = Request(exp_key="array", bundle=bundle, space=SPACE, algo="rand", max_evals=count)
    open_experiment(store, Blobs(store.database), request)
    docs = [
        job(tid, "array", slot=tid, attempt=0, max_attempts=3, bundle=bundle.revision) for tid in range(count)
    ]
    assert store.insert_jobs(docs) == set(range(count))


@contextlib.contextmanager
def array_task(script: str, folder: Path, url: str, **env: str) -> Iterator[subprocess.Popen]:
    """One task of the array, as the scheduler starts it: in a session of its own, output into a file."""
    where = {"SLURM_SUBMIT_DIR": str(folder), "PBS_O_WORKDIR": str(folder)}
    variables = {"HYPERFARM_MONGO": url, "PYTHONPATH": "", "WORKER_VENV": sys.prefix, **where}
    with open(folder / "output", "w") as output:
        process = subprocess.Popen(
            [str(DEPLOY / script)],
            cwd=folder,
            env={**os.environ, **variables, **SCHEDULERS[script], **env},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        for pid in [process.pid, *descendants(process.pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def running(store: Store) -> bool:
    return [doc["state"] for doc in store.find_jobs("array")] == [1]


def nothing_is_left(store: Store, family: list[int]) -> None:
    assert list(store.workers_.find()) == [], "the worker has unregistered"
    eventually(lambda: gone(family), "all processes of the task are gone", 10)


@scripts
@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_the_shells_understand_it(script: str, shell: str) -> None:
    subprocess.run([shell, "-n", str(DEPLOY / script)], check=True)


@scripts
def test_at_sigterm_a_running_trial_is_finished(
    script: str, mongo_url: str, store: Store, tmp_path: Path
) -> None:
    go = str(tmp_path / "go")

    def waits(x: float) -> float:
        import os
        import time

        while not os.path.exists(go):
            time.sleep(0.05)
        return 4.0

    enqueue(store, waits)
    with array_task(script, tmp_path, mongo_url, CUDA_VISIBLE_DEVICES="2,5") as task:
        eventually(lambda: running(store), "the trial runs")
        family = descendants(task.pid)
        worker = eventually(store.workers_.find_one, "the worker says who it is")
        assert worker["host"] == f"{os.uname().nodename}-{'41_7' if 'slurm' in script else '41[7].head'}"
        assert (worker["slots"], worker["devices"]) == (2, ["2", "5"]), "what the scheduler allows"
        task.send_signal(signal.SIGTERM)
        eventually(lambda: "stopping" in (tmp_path / "output").read_text(), "the worker drains")
        assert running(store)
        assert task.poll() is None, "the script waits for its worker"
        Path(go).touch()
        assert task.wait(timeout=60) == 0
    assert [(doc["state"], doc["result"].get("loss")) for doc in store.find_jobs("array")] == [(2, 4.0)]
    nothing_is_left(store, family)


@scripts
def test_a_trial_that_does_not_end_in_time_goes_back(
    script: str, mongo_url: str, store: Store, tmp_path: Path
) -> None:
    def endless(x: float) -> float:
        import time

        time.sleep(600)
        return x

    enqueue(store, endless)
    with array_task(script, tmp_path, mongo_url, WORKER_SLOTS="1", WORKER_GRACE="1") as task:
        eventually(lambda: running(store), "the trial runs")
        family = descendants(task.pid)
        task.send_signal(signal.SIGTERM)
        assert task.wait(timeout=60) == 0
    assert [(doc["state"], doc["attempt"]) for doc in store.find_jobs("array")] == [(0, 0)]
    nothing_is_left(store, family)


@scripts
def test_a_second_sigterm_leaves_at_once(script: str, mongo_url: str, store: Store, tmp_path: Path) -> None:
    def endless(x: float) -> float:
        import time

        time.sleep(600)
        return x

    enqueue(store, endless)
    with array_task(script, tmp_path, mongo_url, WORKER_SLOTS="1", WORKER_GRACE="500") as task:
        eventually(lambda: running(store), "the trial runs")
        family = descendants(task.pid)
        task.send_signal(signal.SIGTERM)
        eventually(lambda: "stopping" in (tmp_path / "output").read_text(), "the worker drains")
        task.send_signal(signal.SIGTERM)
        assert task.wait(timeout=60) == 0
    assert [(doc["state"], doc["attempt"]) for doc in store.find_jobs("array")] == [(0, 0)]
    nothing_is_left(store, family)


@scripts
def test_options_reach_the_worker_and_its_exit_code_the_scheduler(
    script: str, mongo_url: str, store: Store, tmp_path: Path
) -> None:
    enqueue(store, lambda x: x, 2)
    options = {"WORKER_OPTIONS": "--max-jobs 1 --exp-key array", "WORKER_SLOTS": "1"}
    with array_task(script, tmp_path, mongo_url, **options) as task:
        assert task.wait(timeout=100) == 0
    assert sorted(doc["state"] for doc in store.find_jobs("array")) == [0, 2]
    nothing_is_left(store, [])
    with array_task(script, tmp_path, mongo_url, WORKER_SLOTS="many") as task:
        assert task.wait(timeout=60) == 2
    assert "--slots many" in (tmp_path / "output").read_text()


def test_pbs_drains_before_its_time_is_up(mongo_url: str, store: Store, tmp_path: Path) -> None:
    def endless(x: float) -> float:
        import time

        time.sleep(600)
        return x

    enqueue(store, endless)
    seconds = {"WORKER_SECONDS": "10", "WORKER_GRACE": "1", "WORKER_SLOTS": "1"}
    with array_task("pbs_array.sh", tmp_path, mongo_url, **seconds) as task:
        eventually(lambda: running(store), "the trial runs")
        family = descendants(task.pid)
        assert task.wait(timeout=60) == 0
    assert [(doc["state"], doc["attempt"]) for doc in store.find_jobs("array")] == [(0, 0)]
    nothing_is_left(store, family)
