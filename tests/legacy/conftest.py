"""The original program beside ours, on one mongod."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.database import Database

from hyperfarm import embedded
from tests.legacy.original import Original, original

OURS, THEIRS = "hyperfarm.mongoexp", "hyperopt.mongoexp"
HEAD = """\
import json, sys, warnings
warnings.simplefilter("ignore")
url = sys.argv[1]
told = {{}}
from {module} import *
from {module} import (MongoTrials, MongoJobs, MongoWorker, MongoCtrl, ReserveTimeout, OperationFailure,
    InvalidMongoTrial, DomainSwapError, Shutdown, WaitQuit, parse_url, as_mongo_str, connection_from_string,
    main_worker, main_worker_helper)
def raised(call, *args, **more):
    try:
        call(*args, **more)
    except BaseException as error:
        return type(error).__name__
    return None
"""
TAIL = """
print("TOLD" + json.dumps(told, default=repr, sort_keys=True))
"""


@pytest.fixture(scope="session")
def legacy() -> Original:
    return original()


@pytest.fixture
def url(mongod: embedded.Server) -> str:
    """hyperopt's kind of address of a new database."""
    return f"mongo://127.0.0.1:{mongod.port}/test_{uuid.uuid4().hex[:12]}/jobs"


@pytest.fixture
def both(
    mongod: embedded.Server, legacy: Original, tmp_path: Path
) -> Callable[[str], tuple[dict[str, Any], dict[str, Any]]]:
    """Run a program under the original and under ours, each with a new database; return what each told."""

    def run(body: str) -> tuple[dict[str, Any], dict[str, Any]]:
        answers = []
        for python, module in ((legacy.python, THEIRS), (sys.executable, OURS)):
            folder = tmp_path / module
            folder.mkdir(exist_ok=True)
            (folder / "probe.py").write_text(HEAD.format(module=module) + body + TAIL)
            address = f"mongo://127.0.0.1:{mongod.port}/test_{uuid.uuid4().hex[:12]}/jobs"
            answers.append(tell(python, folder, "probe.py", address))
        return answers[0], answers[1]

    return run


def tell(python: str, folder: Path, *words: str, within_s: float = 100) -> dict[str, Any]:
    """Run a program that prints TOLD and an object."""
    done = subprocess.run(
        [python, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        timeout=within_s,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("TOLD")]
    assert lines, done.stdout + done.stderr
    answer: dict[str, Any] = json.loads(lines[-1].removeprefix("TOLD"))
    return answer


@pytest.fixture
def database(mongod: embedded.Server, url: str) -> Iterator[Database[dict[str, Any]]]:
    with MongoClient("127.0.0.1", mongod.port, directConnection=True) as client:
        yield client[url.split("/")[3]]
