"""Trials that kill their own process: tried a bounded number of times, then failed, and nobody else suffers."""

from __future__ import annotations

import itertools
import os
import random
import signal
import sys
from pathlib import Path

import pytest

from hyperfarm.blobs import Blobs
from tests.chaos.disk import Disk
from tests.support import TWO_PARAMETERS, eventually, gone, hyperfarm, started, worker

POISON = """
import ctypes, os, signal, sys

def raised_segfault():
    os.kill(os.getpid(), signal.SIGSEGV)

def real_segfault():
    ctypes.string_at(0)

def as_out_of_memory():
    os.kill(os.getpid(), signal.SIGKILL)

def exits():
    os._exit(3)

def overflows_the_stack():
    sys.setrecursionlimit(10**9)
    def deeper(_):
        return list(map(deeper, [0]))
    deeper(0)

def recurses():
    return recurses()

WAYS = [raised_segfault, real_segfault, as_out_of_memory, exits, overflows_the_stack, recurses]

def objective(p):
    if trial.id < len(WAYS):
        print("attempt", trial.attempt, "dies by", WAYS[trial.id].__name__, flush=True)
        WAYS[trial.id]()
    return 1
"""
POISONOUS = ["killed by SIGSEGV", "killed by SIGSEGV", "killed by SIGKILL", "exit code 3"]
if sys.version_info < (3, 12):  # Later ones notice the end of the C stack, and raise.
    POISONOUS.append("killed by SIGSEGV")


def script(folder: Path, name: str, text: str) -> str:
    path = folder / f"{name}.py"
    path.write_text(TWO_PARAMETERS + text)
    return str(path)


def test_poison_fails_after_its_attempts_and_the_others_finish(mongo_url, store, tmp_path):
    path = script(tmp_path, "poison", POISON)
    options = ["--max-evals", "12", "--max-attempts", "2", "--algo", "rand"]
    with worker(mongo_url, tmp_path / "w", "--slots", "4") as host:
        hyperfarm("run", path, "--mongo", mongo_url, *options)
        assert host.poll() is None
    jobs = store.find_jobs("poison")
    assert [job["state"] for job in jobs] == [3] * 6 + [2] * 6
    blobs = Blobs(store.database)
    for job, reason in zip(jobs, POISONOUS, strict=False):
        kind, story = job["error"]
        assert (kind, job["attempt"], job["result"]) == ("AttemptsExhausted", 2, {"status": "fail"})
        assert [(one["attempt"], one["event"]) for one in job["history"]] == [(1, "requeue"), (2, "give up")]
        assert all(reason in one["reason"] for one in job["history"])
        assert story == "; ".join(f"attempt {one['attempt']}: {one['reason']}" for one in job["history"])
        assert b"attempt 2 dies by" in blobs.read(job["log"]), "the output of the last attempt is kept"
    for job in jobs[len(POISONOUS) : 6]:
        assert (job["error"][0], job["attempt"]) == ("RecursionError", 1), "it would fail the same way again"
        assert "history" not in job
    for job, function in zip(jobs, ("raised_segfault", "real_segfault"), strict=False):
        log = blobs.read(job["log"]).decode()
        assert "Segmentation fault" in log
        assert f"in {function}" in log, "the Python stack of the crash"
        assert f"in {function}" in hyperfarm("logs", "poison", str(job["tid"]), "--mongo", mongo_url).stdout
    shown = hyperfarm("show", "poison", "--trial", "2", "--mongo", mongo_url).stdout
    assert shown.count("killed by SIGKILL") >= 2


def test_attempts_keep_a_growing_distance(mongo_url, store, tmp_path):
    path = script(tmp_path, "spaced", "import os\ndef objective(p):\n    os._exit(trial.attempt)\n")
    with (
        worker(mongo_url, tmp_path / "w", "--slots", "2"),
        started("run", path, "--mongo", mongo_url, "--max-evals", "1") as controller,
    ):
        parked = eventually(
            lambda: store.jobs.find_one({"attempt": 2, "state": 0}), "it waits out a back-off"
        )
        (told,) = [one for one in parked["history"] if one["attempt"] == 2]
        assert (parked["not_before"] - told["at"]).total_seconds() == 8
        assert controller.wait(100) == 0
    (job,) = store.find_jobs("spaced")
    first, second, third = (one["at"] for one in job["history"])
    assert (second - first).total_seconds() >= 2
    assert (job["book_time"] - second).total_seconds() >= 8
    assert job["book_time"] < third
    assert "not_before" not in job


SOME_CRASH = """
import os, signal, time
def objective(p):
    with open({journal!r}, "a") as out:
        out.write(f"{{time.time()}}\\n")
    if trial.id not in {fine}:
        os.kill(os.getpid(), signal.SIGKILL)
    return 1
"""


def test_a_slot_that_keeps_crashing_rests_and_a_success_ends_that(mongo_url, store, tmp_path):
    journal = tmp_path / "journal"
    path = script(tmp_path, "resting", SOME_CRASH.format(journal=str(journal), fine=[4]))
    options = ["--max-evals", "7", "--max-attempts", "1", "--algo", "rand"]
    seen: list[dict] = []
    with (
        worker(mongo_url, tmp_path / "w"),
        started("run", path, "--mongo", mongo_url, *options) as controller,
    ):

        def look() -> bool:
            for pause in (one for doc in store.live_workers() for one in doc.get("paused", ())):
                if pause not in seen:
                    seen.append(pause)
            return controller.poll() is not None

        eventually(look, "the search ends", 100)
        assert controller.returncode == 0
        eventually(lambda: not any(doc["paused"] for doc in store.live_workers()), "it rests no more")
    jobs = store.find_jobs("resting")
    assert [job["state"] for job in jobs] == [3, 3, 3, 3, 2, 3, 3]
    assert {job["attempt"] for job in jobs} == {1}, "--max-attempts 1"
    assert jobs[0]["error"] == ["AttemptsExhausted", "attempt 1: its process was killed by SIGKILL"]
    told = [(one["crashes"], one["seconds"]) for one in seen]
    assert [pair for pair in told if pair != (2, 1.0)] == [(3, 2.0), (4, 4.0)], "4 crashes, then a success"
    assert told[0] == (2, 1.0), "the first crash costs nothing"
    for one in seen:
        assert set(one) == {"slot", "crashes", "reason", "exp_key", "seconds", "until"}
        assert (one["slot"], one["exp_key"]) == (0, "resting")
        assert "SIGKILL" in one["reason"]
        assert one["until"] is not None
    starts = [float(line) for line in journal.read_text().split()]
    gaps = [after - before for before, after in itertools.pairwise(starts)]
    assert len(starts) == 7
    assert all(gap >= rest for gap, rest in zip(gaps[1:4], (1, 2, 4), strict=True)), gaps


def test_a_drain_is_not_held_up_by_a_rest_and_a_resting_slot_does_not_spin(mongo_url, store, tmp_path):
    journal = tmp_path / "journal"
    path = script(tmp_path, "spins", SOME_CRASH.format(journal=str(journal), fine=[]))
    options = ["--max-evals", "1000", "--max-attempts", "1", "--algo", "rand"]
    with (
        worker(mongo_url, tmp_path / "w") as host,
        started("run", path, "--mongo", mongo_url, *options),
    ):

        def long_rest() -> dict | None:
            pauses = [one for doc in store.live_workers() for one in doc.get("paused", ())]
            return next((one for one in pauses if one["crashes"] >= 5), None)

        pause = eventually(long_rest, "a rest of eight seconds")
        assert pause["seconds"] == 8.0
        assert len(journal.read_text().split()) == pause["crashes"], "one start for one crash"
        host.send_signal(signal.SIGTERM)
        assert host.wait(30) == 0
        assert store.now() < pause["until"]
        assert len(journal.read_text().split()) == pause["crashes"]
        assert not store.live_workers()


LEAVES_SOMETHING = """
import os, signal, subprocess, sys, time
def objective(p):
    sleep = [sys.executable, "-c", "import time; time.sleep(170)"]
    started = [subprocess.Popen(sleep), subprocess.Popen(sleep, start_new_session=True)]
    with open({journal!r}, "a") as out:
        out.write(" ".join(str(one.pid) for one in started) + "\\n")
    if {itself}:
        os.kill(os.getpid(), signal.SIGSEGV)
    time.sleep(600)
"""


@pytest.mark.parametrize("who", ["the process", "its supervisor"])
def test_what_a_dead_process_had_started_is_killed_too(who, mongo_url, store, tmp_path):
    journal = tmp_path / "journal"
    text = LEAVES_SOMETHING.format(journal=str(journal), itself=who == "the process")
    run = ["run", script(tmp_path, "leaves", text), "--mongo", mongo_url, "--max-evals", "1"]
    with worker(mongo_url, tmp_path / "w") as host, started(*run, "--max-attempts", "1") as controller:
        eventually(lambda: journal.exists() and journal.read_text().endswith("\n"), "a trial runs")
        pids = [int(pid) for pid in journal.read_text().split()]
        assert len(pids) == 2
        if who == "the process":
            assert controller.wait(60) == 0
            assert host.poll() is None
        else:
            host.send_signal(signal.SIGKILL)
        eventually(lambda: gone(pids), "nothing is left of what it had started", 20)


def test_a_full_disk_is_told_as_such_before_a_process_has_begun(mongo_url, store, tmp_path):
    path = script(tmp_path, "crowded", "def objective(p):\n    return 1\n")
    with Disk(tmp_path / "small") as disk:
        if not disk.is_mounted:
            assert not os.environ.get("CI")
            pytest.skip("needs the right to mount a file system")
        with worker(mongo_url, tmp_path / "w", "--fresh", TMPDIR=str(disk.path)):
            hyperfarm("run", path, "--mongo", mongo_url, "--max-evals", "1")
            disk.fill(random.Random(1), [])
            with started("run", path, "--mongo", mongo_url, "--max-evals", "2", "--extend") as controller:
                history = eventually(lambda: store.find_jobs("crowded")[-1].get("history"), "an attempt ends")
                disk.free([])
                assert controller.wait(60) == 0
    assert history[0]["reason"].startswith("no room on this host's disk: ")
    assert [job["state"] for job in store.find_jobs("crowded")] == [2, 2]
