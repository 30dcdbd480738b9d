"""hyperopt-mongo-worker: the same options given to the original and to ours do the same."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from pymongo.database import Database

from hyperfarm.mongoexp import MongoTrials
from tests.integration.test_mongo_worker import COMMAND, bad, good
from tests.legacy.original import Original

GONE = ["--reserve-timeout=0.5", "--max-consecutive-failures=1"]
CASES: dict[str, tuple[list[str], list[Callable[..., Any]]]] = {
    "max-jobs": (["--max-jobs=2"], [good, good, good]),
    "a single job": (["--max-jobs=1"], [good, good]),
    "a single job that fails": (["--max-jobs=1"], [bad, good]),
    "a single job that does not come": (["--max-jobs=1", "--reserve-timeout=0.5"], []),
    "failures in a row": (["--max-consecutive-failures=2"], [bad, good, bad, bad, good]),
    "nothing to do": (GONE, []),
    "all done": (GONE, [good, good]),
    "last-job-timeout": (["--last-job-timeout=0", *GONE], [good]),
    "max-jobs-in-db": (["--max-jobs-in-db=1", "--max-jobs=5"], [good]),
    "exp-key": (["--exp-key=other", *GONE], [good]),
    "workdir": (["--workdir=here", *GONE], [good]),
    "no-subprocesses": (["--no-subprocesses", "--max-jobs=2"], [good, good, good]),
    "a word too many": (["surplus"], [good]),
}


@pytest.fixture
def outcome(
    url: str, database: Database[dict[str, Any]], tmp_path: Path
) -> Callable[[str, str], tuple[int, list[Any]]]:
    """Run one of the commands on the jobs of a case; return its exit code, and what became of the jobs."""
    trials = MongoTrials(url, exp_key="k")

    def run(command: str, case: str) -> tuple[int, list[Any]]:
        options, functions = CASES[case]
        trials.delete_all()
        for tid, function in zip(trials.new_trial_ids(len(functions) or 1), functions, strict=False):
            cmd = ["cpickled fn", cloudpickle.dumps(function)]
            misc = {"tid": tid, "cmd": cmd, "workdir": None, "idxs": {"x": [tid]}, "vals": {"x": [3.0]}}
            trials.insert_trial_docs(trials.new_trial_docs([tid], [None], [{"status": "new"}], [misc]))
        folder = tmp_path / Path(command).parts[-3]
        folder.mkdir(exist_ok=True)
        address = f"--mongo={url.removeprefix('mongo://').removesuffix('/jobs')}"
        # The original starts itself again by the name that it was called with.
        done = subprocess.run(
            [command, address, "--poll-interval=0.1", *options],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": ""},
            capture_output=True,
            timeout=100,
            check=False,
        )
        told = []
        for job in database["jobs"].find(sort=[("tid", 1)]):
            cwd = job["result"].get("cwd")
            told.append([job["state"], job["result"].get("loss"), cwd and Path(cwd).name == "here"])
        return done.returncode, told

    return run


@pytest.mark.parametrize("case", CASES)
def test_ours_does_what_the_original_does(
    legacy: Original, outcome: Callable[[str, str], tuple[int, list[Any]]], case: str
) -> None:
    (their_code, theirs), (our_code, ours) = outcome(legacy.worker, case), outcome(COMMAND, case)
    assert ours == theirs
    assert (our_code == 0) == (their_code == 0)
