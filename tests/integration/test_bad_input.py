"""Bad input: one clear sentence, exit code 2, no traceback, nothing lost."""

from __future__ import annotations

import socket
import time

import pytest
from hyperopt import hp

from hyperfarm import MongoTrials, minimize
from hyperfarm.errors import HyperfarmError
from tests.support import TWO_PARAMETERS, hyperfarm

SPACE = {"x": hp.uniform("x", -5, 5)}
GOOD = TWO_PARAMETERS + "def objective(p):\n    return p['x'] ** 2\n"


def refused(*args: str, says: str, cwd=None, **env: str) -> str:
    """Run a command that must be refused; return its one sentence."""
    done = hyperfarm(*args, check=False, cwd=cwd, **env)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert says.lower() in done.stderr.lower(), done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("hyperfarm:")]) == 1, done.stderr
    return done.stderr


@pytest.mark.parametrize(
    "url", ["nonsense", "http://host/db", "mongo://host:port/db/jobs", "mongodb://", "mongo://h:1/db/other"]
)
def test_a_malformed_url(url):
    refused("ls", "--mongo", url, says="address")


def test_no_server_there_is_said_within_five_seconds():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # Bound but not listening: nobody answers.
        began = time.monotonic()
        refused(
            "ls", "--mongo", f"mongodb://127.0.0.1:{taken.getsockname()[1]}/db", says="no MongoDB answers"
        )
        assert time.monotonic() - began < 5.5


def test_a_password_is_never_printed():
    said = refused("ls", "--mongo", "mongodb://me:topsecret@127.0.0.1:1/db", says="no MongoDB answers")
    assert "topsecret" not in said


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "no file"),
        ("def objective(p)\n    return 1\n", "SyntaxError"),
        ("import no_such_module_anywhere\n", "no_such_module_anywhere"),
        ("raise SystemExit(3)\n", "does not import"),
        ("x = 1\n", "defines no objective"),
        ("objective = 3\n", "not a function"),
        ("def objective(p):\n    return 1\n", "no search space"),
        (
            "from hyperfarm import hp\nspace = [hp.uniform('x', 0, 1), hp.uniform('x', 0, 2)]\n"
            "def objective(p):\n    return 1\n",
            "same name",
        ),
        ("space = {}\ndef objective(p):\n    return 1\n", "the space has no parameters"),
        ("from hyperfarm import hp\n\nspace = hp.uniform('x', float('nan'), 1)\n", "(line 3 of "),
        (
            TWO_PARAMETERS + "import threading\nlock = threading.Lock()\n"
            "def make():\n    inner = threading.Lock()\n    return lambda p: inner and 1\n"
            "objective = make()\n",
            "inner",
        ),
    ],
)
def test_a_script_that_cannot_be_run(text, says, mongo_url, store, tmp_path):
    script = tmp_path / "script.py"
    if text is not None:
        script.write_text(text)
    refused("run", str(script), "--mongo", mongo_url, says=says)
    assert not store.experiments()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--algo", "tpee"], "did you mean tpe"),
        (["--algo", "no_such:thing"], "cannot be imported"),
        (["--max-evals", "0"], "1 or more"),
        (["--max-evals", "-3"], "1 or more"),
        (["--timeout", "-1"], "timeout"),
        (["--seed", "-1"], "seed"),
        (["--workers", "-1"], "workers"),
    ],
)
def test_options_that_make_no_sense(options, says, mongo_url, store, tmp_path):
    (tmp_path / "script.py").write_text(GOOD)
    refused("run", str(tmp_path / "script.py"), "--mongo", mongo_url, *options, says=says)
    assert not store.experiments()


RETURNS = {
    "raises": ("raise ValueError('my mistake')", "my mistake"),
    "exits": ("raise SystemExit(1)", "SystemExit"),
    "None": ("return None", "None"),
    "a string": ("return 'good'", "str"),
    "NaN": ("return float('nan')", "nan"),
    "-inf": ("return float('-inf')", "-inf"),
    "a dict without loss": ("return {'status': 'ok', 'score': 1}", "without 'loss'"),
    "a wrong status": ("return {'status': 'fine', 'loss': 1}", "fine"),
    "17 MB of text": ("return 'x' * (17 << 20)", "str"),
}


@pytest.mark.parametrize("case", RETURNS)
def test_an_objective_at_fault_fails_its_trial_with_the_reason_stored(case, mongo_url, store, tmp_path):
    body, says = RETURNS[case]
    (tmp_path / "faulty.py").write_text(TWO_PARAMETERS + f"def objective(p):\n    {body}\n")
    done = hyperfarm(
        "run", str(tmp_path / "faulty.py"), "--mongo", mongo_url, "--workers", "1", "--max-evals", "1"
    )
    assert "no trial has succeeded" in done.stdout
    (job,) = store.find_jobs("faulty")
    assert job["state"] == 3
    assert says in ": ".join(job["error"])
    assert "Traceback" in job["traceback"]
    assert says in hyperfarm("show", "faulty", "--trial", str(job["tid"]), "--mongo", mongo_url).stdout


@pytest.mark.parametrize(
    "command", [["show", "digitz"], ["best", "digitz"], ["pull", "digitz", "-o", "f"], ["plot", "digitz"],
                ["logs", "digitz", "1"], ["cancel", "digitz"], ["rm", "digitz", "--yes"]]
)  # fmt: skip
def test_an_unknown_experiment_suggests_near_names(command, mongo_url, tmp_path):
    minimize(
        lambda p: p["x"], SPACE, max_evals=1, exp_key="digits", mongo=mongo_url, workers=1, progress=False
    )
    refused(*command, "--mongo", mongo_url, says="did you mean digits", cwd=tmp_path)


def test_plotting_a_parameter_that_does_not_exist_lists_those_that_do(mongo_url, tmp_path):
    minimize(lambda p: p["x"], SPACE, max_evals=2, exp_key="k", mongo=mongo_url, workers=1, progress=False)
    said = refused("plot", "k", "--x", "nope", "--mongo", mongo_url, says="nope", cwd=tmp_path)
    assert "x" in said.split("nope", 1)[1]


def test_python_callers_get_the_same_sentences(mongo_url):
    with pytest.raises(HyperfarmError, match="must be a function"):
        minimize(3, SPACE, max_evals=1, mongo=mongo_url)
    with pytest.raises(HyperfarmError, match="1 or more"):
        minimize(lambda p: 1, SPACE, max_evals=0, mongo=mongo_url)
    with pytest.raises(HyperfarmError, match="address"):
        MongoTrials("mongo:/nothing")
    with pytest.raises(HyperfarmError, match="exp_key"):
        MongoTrials(mongo_url).fmin(lambda p: 1, SPACE, max_evals=1)


def test_debug_shows_the_traceback(tmp_path):
    done = hyperfarm("run", str(tmp_path / "none.py"), check=False, HYPERFARM_DEBUG="1")
    assert done.returncode != 0
    assert "Traceback" in done.stderr
