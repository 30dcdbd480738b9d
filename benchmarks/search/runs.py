"""Many runs, each done once: one JSON line per run in FOLDER/ALGORITHM.jsonl."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.search import problems, simulate

RESULTS = Path(__file__).with_name("results")
DIGITS = 4
"""Significant digits of a regret in the files."""


@dataclass(frozen=True, order=True, kw_only=True)
class Key:
    """What makes one run."""

    seed: int
    running: int
    problem: str
    algorithm: str


@dataclass(frozen=True, kw_only=True)
class Done:
    """One line of a file. `regrets` by number of ended trials."""

    key: Key
    regrets: dict[int, float]
    cpu_s: float
    commit: str


def path_of(folder: Path, algorithm: str) -> Path:
    """The file of an algorithm's runs."""
    return folder / f"{algorithm.replace(':', '.')}.jsonl"


def read(folder: Path) -> dict[Key, Done]:
    """All runs of a folder. A last line that was cut off (the process was killed) is left out."""
    found = (
        _parsed(line) for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().splitlines()
    )
    return {done.key: done for done in found if done is not None}


def _parsed(line: str) -> Done | None:
    try:
        stored = json.loads(line)
    except json.JSONDecodeError:
        return None
    return Done(
        key=Key(
            seed=stored["seed"],
            running=stored["running"],
            problem=stored["problem"],
            algorithm=stored["algo"],
        ),
        regrets={int(ended): regret for ended, regret in stored["regret"].items()},
        cpu_s=stored["cpu_s"],
        commit=stored["commit"],
    )


def wanted(
    algorithms: Sequence[str], names: Sequence[str], running: Sequence[int], seeds: Sequence[int]
) -> Iterator[Key]:
    """The runs in the order in which to do them: everything for one seed, then the next seed."""
    for seed in seeds:
        for at_once in running:
            for problem in names:
                for algorithm in algorithms:
                    yield Key(seed=seed, running=at_once, problem=problem, algorithm=algorithm)


def forget(keys: Sequence[Key], folder: Path) -> None:
    """Take these runs out of the folder's files, so that they are done again."""
    unwanted = set(keys)
    for algorithm in {key.algorithm for key in keys}:
        path = path_of(folder, algorithm)
        if path.exists():
            lines = path.read_text().splitlines()
            kept = [
                line for line in lines if (done := _parsed(line)) is not None and done.key not in unwanted
            ]
            path.write_text("".join(f"{line}\n" for line in kept))


def do(keys: Sequence[Key], *, evals: int, processes: int, folder: Path) -> int:
    """Do those runs that the folder lacks; return how many there were."""
    folder.mkdir(parents=True, exist_ok=True)
    done = read(folder)
    last = max((ended for ended in simulate.BUDGETS if ended <= evals), default=0)
    missing = [key for key in keys if key not in done or max(done[key].regrets, default=0) < last]
    commit, started = current_commit(), time.monotonic()
    _say(f"{len(keys) - len(missing)} of {len(keys)} runs are there already")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max(1, min(processes, len(missing))), mp_context=context) as pool:
        jobs = {pool.submit(one, key, evals): key for key in missing}
        for count, job in enumerate(as_completed(jobs), start=1):
            key, result = jobs[job], job.result()
            _append(folder, key, result, commit)
            if count % 20 == 0 or count == len(missing):
                left_s = (time.monotonic() - started) / count * (len(missing) - count)
                _say(f"{count} of {len(missing)}, about {left_s / 60:.0f} minutes left ({key})")
    return len(missing)


def one(key: Key, evals: int) -> simulate.Run:
    """One run, in a process of the pool."""
    problem = problems.all_problems()[key.problem]
    return simulate.run(key.algorithm, problem, running=key.running, seed=key.seed, evals=evals)


def _append(folder: Path, key: Key, result: simulate.Run, commit: str) -> None:
    line: dict[str, Any] = {
        "algo": key.algorithm,
        "problem": key.problem,
        "running": key.running,
        "seed": key.seed,
        "regret": {
            str(ended): float(f"{regret:.{DIGITS}g}")
            for ended, regret in zip(result.budgets, result.regrets, strict=True)
        },
        "cpu_s": round(result.cpu_s, 2),
        "commit": commit,
    }
    path = path_of(folder, key.algorithm)
    before = path.read_bytes()[-1:] if path.exists() else b""
    # A line that a killed process left unfinished must not swallow this one.
    mend = "\n" if before not in (b"", b"\n") else ""
    with path.open("a") as file:
        file.write(mend + json.dumps(line, separators=(",", ":")) + "\n")


def current_commit() -> str:
    """The short hash of the commit, with a plus when files differ from it; `unknown` outside a repository."""
    here = Path(__file__).parent
    try:
        commit = subprocess.check_output(
            ["git", "rev-parse", "--short=9", "HEAD"], cwd=here, text=True
        ).strip()
        status = ["git", "status", "--porcelain", "--untracked-files=no"]
        changed = subprocess.check_output(status, cwd=here, text=True).splitlines()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    # Results and the report change while runs go on; they change no run.
    code = [line for line in changed if not line.endswith((".jsonl", ".md"))]
    return commit + ("+" if code else "")


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)
