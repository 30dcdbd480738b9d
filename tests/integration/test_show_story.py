"""`hyperfarm show K T`: the story of a trial, attempt by attempt."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import timedelta

import pytest
from click.testing import CliRunner, Result

from hyperfarm.blobs import Blobs
from hyperfarm.cli import cli
from hyperfarm.errors import UsageError
from hyperfarm.jobs import KEPT_HISTORY, Claim, JobState
from hyperfarm.store import Store
from tests.making import OK, claim, job, queue
from tests.support import hyperfarm

KEY = "exp"
Run = Callable[..., Result]


@pytest.fixture
def run(mongo_url: str) -> Run:
    def call(*words: object) -> Result:
        command = ["show", "--mongo", mongo_url, *map(str, words)]
        return CliRunner().invoke(cli, command, catch_exceptions=False, standalone_mode=False)

    return call


def unpark(store: Store) -> None:
    """Let the back-offs be over."""
    store.jobs.update_many({"not_before": {"$exists": True}}, {"$set": {"not_before": store.now()}})


def take(store: Store, host: str) -> Claim:
    unpark(store)
    return claim(store, KEY, worker=f"{host}:55:abcdef01")


def section(output: str, title: str) -> list[str]:
    """The lines of a section, without their indentation."""
    lines = output.split(f"\n{title}\n")[1].split("\n\n")[0].splitlines()
    return [line.strip() for line in lines]


TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC"


def matches(lines: list[str], *patterns: str) -> None:
    assert len(lines) == len(patterns), lines
    for line, pattern in zip(lines, patterns, strict=True):
        assert re.fullmatch(pattern.replace("TIME", TIME), line), line


def test_every_attempt_is_told(run: Run, store: Store) -> None:
    queue(store)
    store.release(take(store, "host1"), "its worker was stopped")
    store.end_attempt(take(store, "host2"), "its process was killed by SIGSEGV")
    store.finish(take(store, "host3"), JobState.DONE, OK)
    lines = section(run(KEY, 0).output, "attempts")
    matches(
        lines,
        r"attempt 1  TIME  given back, not counted: its worker was stopped \(worker host1:55\)",
        r"attempt 1  TIME  cut off, to be tried again: its process was killed by SIGSEGV \(worker host2:55\)",
        r"attempt 2  TIME  done, loss 1 \(worker host3:55\)",
    )
    told = json.loads(run(KEY, 0, "--json").output)
    assert [one["event"] for one in told["history"]] == ["release", "requeue"]
    assert told["accepted"]["worker"] == "host3:55:abcdef01"
    assert told["waits_until"] is None


def test_a_trial_that_was_given_up(run: Run, store: Store) -> None:
    queue(store)
    for host in ("a", "b", "c"):
        store.end_attempt(take(store, host), f"reason {host}")
    output = run(KEY, 0).output
    matches(
        section(output, "attempts"),
        r"attempt 1  TIME  cut off, to be tried again: reason a \(worker a:55\)",
        r"attempt 2  TIME  cut off, to be tried again: reason b \(worker b:55\)",
        r"attempt 3  TIME  cut off, the last one: reason c \(worker c:55\)",
    )
    assert "AttemptsExhausted: attempt 1: reason a; " in output


def test_an_objective_that_raised(run: Run, store: Store) -> None:
    queue(store)
    fields = {"error": ["ValueError", "bad\nshape " + "x" * 1000], "result": {"status": "fail"}}
    store.finish(take(store, "host1"), JobState.ERROR, fields)
    (line,) = section(run(KEY, 0).output, "attempts")
    assert re.match(rf"attempt 1  {TIME}  failed: ValueError: bad shape xxx", line)
    assert line.endswith("... (worker host1:55)")


def test_a_pruned_trial(run: Run, store: Store) -> None:
    queue(store)
    store.finish(take(store, "h"), JobState.DONE, {"result": {"status": "fail", "pruned": True, "loss": 4.0}})
    matches(section(run(KEY, 0).output, "attempts"), r"attempt 1  TIME  pruned, loss 4 \(worker h:55\)")


def test_a_running_trial(run: Run, store: Store) -> None:
    queue(store)
    store.end_attempt(take(store, "host1"), "it died")
    take(store, "host2")
    matches(
        section(run(KEY, 0).output, "attempts"),
        r"attempt 1  TIME  cut off, .*",
        r"attempt 2  TIME  runs \(worker host2:55\)",
    )


def test_a_trial_that_waits_out_its_back_off(run: Run, store: Store) -> None:
    queue(store)
    store.end_attempt(take(store, "host1"), "it died")
    held = take(store, "host2")
    store.end_attempt(held, "it died again")
    until = store.now() + timedelta(minutes=5)
    store.jobs.update_one({"_id": held.job_id}, {"$set": {"not_before": until}})
    output = run(KEY, 0).output
    assert "state    waiting\n" in output
    assert f"next     waits until {until:%Y-%m-%d %H:%M:%S} UTC before attempt 3\n" in output
    assert "parked" not in output
    assert len(section(output, "attempts")) == 2
    told = json.loads(run(KEY, 0, "--json").output)
    assert told["owner"] is None
    assert told["waits_until"].startswith(f"{until:%Y-%m-%dT%H:%M:%S}")
    unpark(store)
    assert "next     waits for a worker for attempt 3\n" in run(KEY, 0).output
    assert json.loads(run(KEY, "--json").output)["trials"][0]["owner"] is None


def test_a_trial_that_was_never_begun(run: Run, store: Store) -> None:
    queue(store)
    output = run(KEY, 0).output
    assert "next   waits for a worker for attempt 1\n" in output
    assert "attempts" not in output


def test_a_cancelled_trial(run: Run, store: Store) -> None:
    queue(store)
    store.end_attempt(take(store, "h"), "it died")
    store.cancel(KEY)
    matches(section(run(KEY, 0).output, "attempts"), r"attempt 1  TIME  cut off, .*", r"cancelled  TIME")


def test_a_long_story_says_that_its_beginning_is_gone(run: Run, store: Store) -> None:
    queue(store)
    for _ in range(KEPT_HISTORY + 3):
        store.release(take(store, "h"), "stopped")
    lines = section(run(KEY, 0).output, "attempts")
    assert lines[0].startswith("...")
    assert f"the last {KEPT_HISTORY}" in lines[0]
    assert len(lines) == KEPT_HISTORY + 1


def test_a_checkpoint_and_limits(run: Run, store: Store) -> None:
    queue(store)
    held = take(store, "host1")
    blob = Blobs(store.database).put_for(held, b"w" * 12_000, "checkpoint", "checkpoint")
    fields = {"checkpoint": {**blob, "attempt": 1, "at": store.now()},
              "limits": {"timeout_s": 600.0, "memory": 2_000_000_000}}  # fmt: skip
    store.jobs.update_one({"_id": held.job_id}, {"$set": fields})
    output = run(KEY, 0).output
    assert "limits      10 min 0 s for an attempt, 2 GB of memory\n" in output
    assert re.search(
        rf"checkpoint  12 kB of attempt 1, {TIME}; the next attempt can resume from it\n", output
    )
    told = json.loads(run(KEY, 0, "--json").output)
    assert told["checkpoint"]["sha256"] == blob["sha256"]
    assert told["limits"]["timeout_s"] == 600


def test_a_job_of_hyperopts_own_workers(run: Run, store: Store) -> None:
    store.jobs.insert_one(job(4, KEY, state=1, owner=["old", 12], book_time=store.now()))
    store.jobs.insert_one(job(5, KEY, state=2, owner=["old", 12], result={"status": "ok", "loss": 3.0}))
    running = run(KEY, 4).output
    assert "worker  old:12\n" in running
    assert re.search(rf"  {TIME}  runs \(worker old:12\)", running)
    assert "loss    3\n" in run(KEY, 5).output


# ---- naming the trial ------------------------------------------------------------------------------------


def test_both_ways_of_naming_a_trial(run: Run, store: Store, mongo_url: str) -> None:
    queue(store, 2)
    first = run(KEY, 1).output
    assert first.startswith("trial  1 of exp\n")
    assert run(KEY, "--trial", 1).output == first
    assert run(KEY, 1, "--trial", 1).output == first
    assert run(KEY, 0).output != first
    with pytest.raises(UsageError, match="trial 0 or trial 1"):
        run(KEY, 0, "--trial", 1)
    done = hyperfarm("show", KEY, "1", "--trial", "0", "--mongo", mongo_url, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "hyperfarm: trial 1 or trial 0? name one of them\n"


@pytest.mark.parametrize(
    ("words", "says"), [(["x"], "not a valid integer"), (["7"], "no trial 7"), (["-1"], "")]
)
def test_a_trial_that_is_none(words: list[str], says: str, store: Store, mongo_url: str) -> None:
    queue(store)
    done = hyperfarm("show", KEY, *words, "--mongo", mongo_url, check=False)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
