"""`hyperfarm db start | status | stop` as a person types them, each in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from pymongo import MongoClient

from hyperfarm import embedded
from hyperfarm.errors import EmbeddedError
from hyperfarm.mongod_fetch import find_mongod

# The same contract as the command line's main: one sentence on standard error, exit code 2.
MAIN = """
import sys
from hyperfarm.db_commands import db
from hyperfarm.errors import HyperfarmError
try:
    db(prog_name="hyperfarm db")
except HyperfarmError as error:
    sys.exit(print(f"hyperfarm: {error}", file=sys.stderr) or 2)
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    try:
        find_mongod(print)
    except EmbeddedError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))
    monkeypatch.setenv("HYPERFARM_DATA", str(tmp_path))
    yield tmp_path / "db"
    embedded.stop(force=True)


def db(*words: str, code: int = 0) -> tuple[str, str]:
    command = [sys.executable, "-W", "error", "-c", MAIN, *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


def status() -> dict[str, object]:
    told: dict[str, object] = json.loads(db("status", "--json")[0])
    return told


def test_start_status_stop(home: Path) -> None:
    assert status() == {"running": False, "data_dir": str(home)}
    assert "not running" in db("status")[0]

    url, said = db("start")
    assert f"data in {home}" in said
    with MongoClient(url.strip()) as client:
        client.get_default_database().kept.insert_one({})
    told = status()
    assert (told["running"], told["persistent"], told["url"]) == (True, True, url.strip())
    assert url in db("status")[0]

    again, said = db("start")
    assert again == url
    assert "is running already" in said

    assert db("stop")[0] == "The private MongoDB is stopped.\n"
    with contextlib.suppress(psutil.NoSuchProcess):  # nobody may have reaped it yet
        assert psutil.Process(int(str(told["pid"]))).status() == psutil.STATUS_ZOMBIE
    assert db("stop")[0] == "The private MongoDB is not running.\n"
    assert status()["running"] is False

    url, _ = db("start")
    with MongoClient(url.strip()) as client:
        assert client.get_default_database().kept.count_documents({}) == 1


def test_start_makes_a_running_server_stay() -> None:
    with embedded.running() as url:
        assert status()["persistent"] is False
        out, said = db("start")
        assert out.strip() == url
        assert "now stays" in said
    assert status()["running"] is True


def test_stop_refuses_while_it_is_in_use_unless_forced() -> None:
    with embedded.running():
        out, said = db("stop", code=2)
        assert out == ""
        assert "in use" in said
        assert "hyperfarm db stop --force" in said
        assert status()["running"] is True
        assert "stopped" in db("stop", "--force")[0]
        assert status()["running"] is False


@pytest.mark.parametrize("words", [(), ("start",), ("stop",), ("status",)])
def test_help_has_an_example(words: tuple[str, ...]) -> None:
    out, _ = db(*words, "--help")
    assert "Example:" in out
    assert f"hyperfarm db {' '.join(words)}".strip() in out
