"""A controller on an experiment with thousands of finished trials: memory, and the time of a refresh.

    python -m benchmarks.big ours|hyperopt --url URL --jobs 10000 --repeats 20

Runs in either venv; the database was filled by `fill`. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from datetime import datetime, timezone
from typing import Any

import numpy as np
from hyperopt import base, hp, tpe

EXP_KEY = "big"
CHANGED = 10


def space() -> dict[str, Any]:
    """Ten parameters: five uniform, two loguniform, one quniform, two choices."""
    return {
        **{f"u{i}": hp.uniform(f"u{i}", -5, 5) for i in range(5)},
        **{f"l{i}": hp.loguniform(f"l{i}", np.log(1e-5), 0) for i in range(2)},
        "q0": hp.quniform("q0", 0, 100, 1),
        **{f"c{i}": hp.choice(f"c{i}", list("abcd")) for i in range(2)},
    }


def job(tid: int, state: int) -> dict[str, Any]:
    """A job document with all that a farm leaves in it; hyperopt reads it too."""
    rng = np.random.default_rng(tid)
    point: dict[str, Any] = {f"u{i}": float(rng.uniform(-5, 5)) for i in range(5)}
    point |= {f"l{i}": float(np.exp(rng.uniform(-11, 0))) for i in range(2)}
    point |= {"q0": float(rng.integers(0, 101)), "c0": int(rng.integers(4)), "c1": int(rng.integers(4))}
    now = datetime.now(timezone.utc)
    misc = {
        "tid": tid,
        "cmd": ["domain_attachment", "FMinIter_Domain"],
        "workdir": None,
        "idxs": {label: [tid] for label in point},
        "vals": {label: [value] for label, value in point.items()},
    }
    return {
        "tid": tid,
        "exp_key": EXP_KEY,
        "state": state,
        "spec": None,
        "result": outcome(tid) if state == base.JOB_STATE_DONE else {"status": "new"},
        "misc": misc,
        "owner": "host:1234",
        "version": 2 if state == base.JOB_STATE_DONE else 1,
        "book_time": now,
        "refresh_time": now,
        "slot": tid,
        "attempt": 1,
        "max_attempts": 3,
        "bundle": "0" * 64,
        "duration": 0.1,
        "accepted": {"token": f"{tid:032x}", "worker": "host:1234:01234567"},
    }


def outcome(tid: int) -> dict[str, Any]:
    """The result of one trial."""
    return {"status": "ok", "loss": float(np.random.default_rng(tid).normal())}


def fill(url: str, count: int) -> None:
    """Make the farm's indexes and insert `count` finished jobs."""
    from hyperfarm.store import Store

    store = Store.open(url)
    store.jobs.insert_many([job(tid, base.JOB_STATE_DONE) for tid in range(count)])
    store.close()


def open_trials(side: str, url: str) -> tuple[Any, Any]:
    """Return (the side's MongoTrials, the collection of jobs)."""
    if side == "ours":
        from hyperfarm import MongoTrials

        trials = MongoTrials(url, exp_key=EXP_KEY)
        return trials, trials.store.jobs
    from hyperopt.mongoexp import MongoTrials as Theirs

    address = url.removeprefix("mongodb://").partition("?")[0]
    trials = Theirs(f"mongo://{address}/jobs", exp_key=EXP_KEY)
    return trials, trials.handle.jobs


def measure(side: str, url: str, count: int, repeats: int) -> dict[str, Any]:
    """Open the experiment, then time refreshes with nothing and with ten jobs changed."""
    trials, jobs = open_trials(side, url)
    domain = base.Domain(lambda point: 0.0, space())
    assert len(trials.trials) >= count
    unchanged = [_timed(trials.refresh) for _ in range(repeats)]
    changed = []
    for number in range(repeats):
        first = count + number * CHANGED
        tids = list(range(first, first + CHANGED))
        jobs.insert_many([job(tid, base.JOB_STATE_RUNNING) for tid in tids])
        trials.refresh()
        for tid in tids:
            fields = {"state": base.JOB_STATE_DONE, "result": outcome(tid)}
            jobs.update_one({"exp_key": EXP_KEY, "tid": tid}, {"$set": fields, "$inc": {"version": 1}})
        changed.append(_timed(trials.refresh))
        states = {doc["state"] for doc in trials.trials[-CHANGED:]}
        assert states == {base.JOB_STATE_DONE}, states
    compare = (
        [_timed(lambda: trials.local.refresh(full=True)) for _ in range(repeats)] if side == "ours" else []
    )
    rss = _rss_mb()
    suggestion = _timed(lambda: tpe.suggest([10**6], domain, trials, 1))
    return {
        "rss_mb": rss,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "unchanged_ms": unchanged,
        "changed_ms": changed,
        "compare_ms": compare,
        "suggest_ms": suggestion,
    }


def _timed(action: Any) -> float:
    started = time.perf_counter()
    action()
    return (time.perf_counter() - started) * 1000


def _rss_mb() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / (1 << 20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("side", choices=["ours", "hyperopt"])
    parser.add_argument("--url", required=True)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    print(json.dumps(measure(options.side, options.url, options.jobs, options.repeats)))


if __name__ == "__main__":
    main()
