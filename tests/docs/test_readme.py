"""README's commands and programs are run, not just shown."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from hyperfarm import embedded
from tests.support import COMMAND, started

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.DOTALL)


def block(language: str, containing: str) -> str:
    found = [text for kind, text in BLOCKS if kind == language and containing in text]
    assert len(found) == 1, f"{len(found)} {language} blocks hold {containing!r}"
    return found[0]


@pytest.fixture
def task(tmp_path: Path) -> Path:
    (tmp_path / "optimise_task.py").write_text(block("python", "space = {"))
    return tmp_path


def run_line(line: str, cwd: Path, **env: str) -> str:
    words = shlex.split(line)
    assert words[0] == "hyperfarm", line
    done = subprocess.run(
        [COMMAND, *words[1:]],
        cwd=cwd,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=120,
        input="y\n",
    )
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    return done.stdout


def test_the_commands_of_your_own_objective(task):
    outputs = {line: run_line(line, task) for line in block("sh", "hyperfarm ls").splitlines()}
    assert any("20 ok, 0 failed" in text for text in outputs.values())
    assert (task / "notes.txt").read_bytes() == b"any file, bytes or path"
    assert list(task.glob("*.png"))
    mentioned = re.findall(r"`(hyperfarm (?:logs|rm) [^`]+)`", README)
    assert len(mentioned) == 2
    for line in mentioned:
        run_line(line, task)


def test_the_commands_for_when_things_go_wrong(task):
    run_line(block("sh", "hyperfarm ls").splitlines()[0], task)
    assert "40 ok, 0 failed" in run_line(block("sh", "--trial-timeout").strip(), task)
    assert "attempt" in run_line("hyperfarm show optimise_task 3", task)
    doctor, top, gc = block("sh", "hyperfarm doctor").splitlines()
    assert "ok" in run_line(doctor, task)
    assert "optimise_task" in run_line(top, task)
    run_line(gc, task)


def test_the_training_that_resumes_runs_alone(tmp_path):
    code = (
        "import json\nfrom hyperfarm import trial\n" + block("python", "trial.resume()") + "print(train({}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "'loss': 0.1" in done.stdout


def test_the_objective_runs_alone(task):
    code = "import optimise_task; print(optimise_task.objective({'lr': 0.01, 'layers': 1})['loss'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=task, capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(0.001)


def test_the_program_with_minimize(tmp_path):
    (tmp_path / "program.py").write_text(block("python", "result = minimize("))
    done = subprocess.run(
        [sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True
    )
    assert "'x'" in done.stdout


def test_the_program_with_fmin(mongod, mongo_url, tmp_path):
    short = mongo_url.split("?")[0].replace("mongodb://", "mongo://")
    program = block("python", "fmin(objective").replace("mongo://localhost:27017/jobs", short)
    assert short in program
    (tmp_path / "program.py").write_text(program)
    with started("worker", "--mongo", short):
        done = subprocess.run(
            [sys.executable, "program.py"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
    assert "'x'" in done.stdout


def test_the_farm_chapter(mongo_url, task):
    """A worker and a controller that know the database from the environment alone."""
    worker_line = block("sh", "hyperfarm worker --slots")
    run = block("sh", "--max-evals 500").splitlines()[0].replace("500", "12")
    with started(*shlex.split(worker_line)[1:], HYPERFARM_MONGO=mongo_url):
        assert "12 ok" in run_line(run, task, HYPERFARM_MONGO=mongo_url)
    assert embedded.status() is None


def test_every_make_target_that_is_named_exists():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"\bmake (\w+)", README):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_links_lead_somewhere():
    for document in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


@pytest.mark.parametrize(
    "name", ["run", "worker", "ls", "show", "best", "pull", "plot", "logs", "cancel", "rm", "db"]
)
def test_every_command_explains_itself_with_an_example(name):
    done = subprocess.run([COMMAND, name, "--help"], capture_output=True, text=True, check=True)
    assert f"hyperfarm {name}" in done.stdout
    assert "Example" in done.stdout


def test_the_commands_and_the_program_of_a_hand_in_the_search(task, mongo_url):
    env = {"HYPERFARM_MONGO": mongo_url}
    run_line("hyperfarm run optimise_task.py --max-evals 3 --workers 1", task, **env)
    first, second = block("sh", "hyperfarm enqueue").splitlines()
    run_line(first, task, **env)
    assert "trial" in run_line(second, task, **env)
    program = task / "lab.py"
    program.write_text(block("python", "hyperfarm.Study("))
    done = subprocess.run(
        [sys.executable, program.name], cwd=task, env={**os.environ, **env}, capture_output=True, text=True,
        timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "temperature" in done.stdout
