"""A search with templates that hyperopt 0.2.7's own worker helps with: it has neither hyperfarm nor hyperas."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.legacy.original import Original
from tests.legacy.test_together import mongo_worker

SCRIPT = """
import sys
from hyperopt import STATUS_OK, rand
from hyperfarm.distributions import choice, uniform
from hyperfarm.mongoexp import MongoTrials
from hyperfarm.templates import minimize
from helping import Layer

def data():
    word, hidden = 'word', 'hidden'
    return word

def block():
    return {{uniform(0, 1)}}

def create_model(word):
    layer = {{choice([Layer(1), Layer({{uniform(5, 6)}})])}}
    return {'loss': block(), 'status': STATUS_OK, 'said': [word, hidden, layer.size, sys.argv[0]]}

if __name__ == "__main__":
    trials = MongoTrials(sys.argv[1], exp_key="templates")
    print(minimize(create_model, data, rand.suggest, 4, trials, verbose=False))
    print([one["said"] for one in trials.results])
"""


def test_the_original_worker_runs_trials_with_templates(legacy: Original, url: str, tmp_path: Path) -> None:
    folder = tmp_path / "program"
    folder.mkdir()
    (folder / "task.py").write_text(SCRIPT)
    (folder / "helping.py").write_text(
        "class Layer:\n    def __init__(self, size):\n        self.size = size\n"
    )
    with mongo_worker(legacy.worker, url, tmp_path / "theirs"):
        done = subprocess.run(
            [sys.executable, "task.py", url],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
    assert done.returncode == 0, done.stderr + (tmp_path / "theirs" / "log").read_text()
    assert done.stdout.count("'word', 'hidden'") == 4
    assert done.stdout.count("hyperopt-mongo-worker") == 4
