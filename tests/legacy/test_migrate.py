"""docs/migrate.md: its programs and commands are run as they stand there."""
# ruff: noqa: E501

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pymongo.database import Database

from tests.legacy.conftest import THEIRS
from tests.legacy.original import Original
from tests.legacy.test_together import mongo_worker, mongodb, write
from tests.support import COMMAND, eventually

PAGE = (Path(__file__).parents[2] / "docs" / "migrate.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE, flags=re.DOTALL)


def block(language: str, containing: str) -> str:
    found = [text for kind, text in BLOCKS if kind == language and containing in text]
    assert len(found) == 1, f"{len(found)} {language} blocks hold {containing!r}"
    return found[0]


def run(words: list[str], folder: Path, *, within_s: float = 100) -> str:
    done = subprocess.run(
        words,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        timeout=within_s,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def port(url: str) -> tuple[str, str]:
    """What the page's address stands for: host with port, and database."""
    host, name, _ = url.removeprefix("mongo://").split("/")
    return host, name


def at(text: str, port: tuple[str, str]) -> str:
    """The page's text for the test's database."""
    return text.replace("localhost:27017/jobs", f"{port[0]}/{port[1]}")


def worker_of_the_page(folder: Path, port: tuple[str, str]) -> list[str]:
    words = shlex.split(at(block("sh", "hyperfarm-mongo-worker"), port))
    assert words[0] == "hyperfarm-mongo-worker"
    return [str(Path(COMMAND).with_name(words[0])), *words[1:]]


def test_a_program_with_one_changed_import(
    tmp_path: Path, port: tuple[str, str], database: Database[dict[str, Any]]
) -> None:
    (tmp_path / "program.py").write_text(
        at(block("python", "was: from hyperopt.mongoexp import MongoTrials\n\n\ndef"), port)
    )
    host = tmp_path / "host"
    host.mkdir()
    search = subprocess.Popen([sys.executable, "program.py"], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    try:
        eventually(lambda: database["jobs"].find_one(), "the first job")
        subprocess.run(
            worker_of_the_page(host, port), cwd=host, check=True, timeout=100, stderr=subprocess.PIPE
        )
        out, _ = search.communicate(timeout=60)
    finally:
        search.kill()
        search.wait()
    assert "'x'" in out


def test_a_program_whose_imports_stay(tmp_path: Path, port: tuple[str, str]) -> None:
    (tmp_path / "start.py").write_text(block("python", "import their_program"))
    (tmp_path / "their_program.py").write_text(
        "from hyperopt.mongoexp import MongoTrials\nfrom hyperas import optim\nfrom hyperas.distributions import choice\n"
        f"print(MongoTrials('mongo://{port[0]}/{port[1]}/jobs').__module__, len(MongoTrials('mongo://{port[0]}/{port[1]}/jobs')))\n"
    )
    assert run([sys.executable, "start.py"], tmp_path).split() == ["hyperfarm.mongo_trials", "0"]


def test_a_database_that_hyperopt_has_written(
    legacy: Original, tmp_path: Path, url: str, port: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "program"
    home.mkdir()
    (home / "helping.py").write_text("def square(x):\n    return x ** 2\n")
    script = write(home, THEIRS)
    with mongo_worker(legacy.worker, url, tmp_path / "theirs", path=home):
        run([legacy.python, script, url, "first", "4"], home)
    monkeypatch.setenv("HYPERFARM_MONGO", mongodb(url))
    told = [
        run([COMMAND, *shlex.split(line)[1:]], tmp_path) for line in block("sh", "hyperfarm ls").splitlines()
    ]
    assert "first" in told[0]
    assert told[1].count("done") >= 4
    assert "loss" in told[2]


def test_the_names_of_hyperas(tmp_path: Path) -> None:
    program = (
        block("python", "templates as optim")
        + "print(optim.minimize.__name__, callable(choice), MongoTrials.__name__)\n"
    )
    (tmp_path / "names.py").write_text(program)
    assert run([sys.executable, "names.py"], tmp_path).split() == ["minimize", "True", "MongoTrials"]


def test_what_the_page_says_to_install_is_what_the_tests_use() -> None:
    from tests.legacy.original import PINNED

    command = re.search(r"`pip install ([^`]+)`", PAGE)
    assert command is not None
    assert set(shlex.split(command[1])) <= set(PINNED)
