"""`hyperfarm top`, printed once and live in a real pseudo-terminal; paused slots in `hyperfarm show`."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from hyperfarm import embedded
from hyperfarm.analysis import top as view
from hyperfarm.analysis.overview import Snapshot, take_snapshot
from hyperfarm.cli import cli
from hyperfarm.errors import DatabaseUnavailable, ExperimentNotFound
from hyperfarm.jobs import JobState
from hyperfarm.store import Store
from tests.making import OK, claim, queue
from tests.support import COMMAND, eventually, hyperfarm, worker

PAUSE = {
    "slot": 2,
    "crashes": 5,
    "reason": "its process was killed by SIGSEGV",
    "exp_key": "digits",
    "seconds": 16.0,
}
Run = Callable[..., Result]


@pytest.fixture
def run(mongo_url: str) -> Run:
    def call(*words: object) -> Result:
        command = [str(words[0]), "--mongo", mongo_url, *map(str, words[1:])]
        return CliRunner().invoke(cli, command, catch_exceptions=False, standalone_mode=False)

    return call


def beat(store: Store, host: str, pid: int = 7, **fields: Any) -> None:
    store.heartbeat(f"{host}:{pid}", {"host": host, "pid": pid, "slots": 4, "exp_keys": None, **fields})


@pytest.fixture
def farm(store: Store) -> Store:
    """Experiment `digits` with two trials done (best 1.0), one failed, one running, two waiting; and `idle`."""
    for key in ("idle", "digits"):
        assert store.create_experiment({"_id": key, "exp_key": key, "max_evals": 20})
    queue(store, 6, "digits")
    store.finish(claim(store, "digits"), JobState.DONE, {"result": {"status": "ok", "loss": 2.0}})
    store.finish(claim(store, "digits"), JobState.DONE, OK)
    store.finish(claim(store, "digits"), JobState.ERROR, {"error": ["E", "x"], "result": {"status": "fail"}})
    claim(store, "digits", worker="host7:7")
    return store


def row(output: str, name: str) -> list[str]:
    (line,) = [line for line in output.splitlines() if line.startswith(f"{name} ")]
    return line.split()


def test_once(run: Run, farm: Store) -> None:
    beat(farm, "host8", 9, exp_keys=["idle"], draining=True)
    refused = [{"exp_key": "idle", "revision": "r", "reason": "Python 3.9"}]
    beat(farm, "host7", paused=[PAUSE], refused=refused, done=12, failed=1, uptime_s=30.0)
    output = run("top", "--once").output
    assert "workers: 2 alive on 2 hosts, 1 of 8 slots busy" in output
    assert "trials: 1 running, 2 waiting" in output
    assert row(output, "digits")[1:6] == ["3/20", "1", "2", "1", "1"]
    assert row(output, "idle")[1] == "0/20"
    assert output.index("digits") < output.index("idle ")  # What runs comes first.
    busy, key, tid, left, unit, *rest = row(output, "host7")[1:]
    assert (busy, key, tid, unit) == ("1/4", "digits", "3", "s")
    assert 0 < int(left) <= 90
    assert rest == ["12", "1", "26", "1", "paused,", "1", "refused"]
    assert row(output, "host8")[1:] == ["0/4", "draining,", "only", "idle"]
    assert (
        "paused  host7: slot 2 after 5 crashes in a row (its process was killed by SIGSEGV), for 16 s, last "
        "with digits\n"
    ) in output
    assert "refused  host7 (process 7) refuses idle: Python 3.9\n" in output


def test_the_busiest_come_first(run: Run, farm: Store) -> None:
    assert farm.create_experiment({"_id": "waits", "exp_key": "waits", "max_evals": 5})
    queue(farm, 1, "waits")
    farm.jobs.update_one({"exp_key": "waits"}, {"$set": {"refresh_time": farm.now() + timedelta(hours=1)}})
    told = json.loads(run("top", "--json").output)
    assert [entry["exp_key"] for entry in told["experiments"]] == ["digits", "waits", "idle"]


def test_without_a_terminal_it_prints_once(farm: Store, mongo_url: str) -> None:
    done = hyperfarm("top", "--mongo", mongo_url)
    assert row(done.stdout, "digits")[1] == "3/20"
    assert "\x1b" not in done.stdout


def test_one_experiment_and_the_workers_that_serve_it(run: Run, farm: Store) -> None:
    beat(farm, "host8", exp_keys=["idle"])
    beat(farm, "host7")
    output = run("top", "digits").output
    assert "host8" not in output
    assert "idle" not in output
    assert row(output, "host7")
    told = json.loads(run("top", "digits", "--json").output)
    assert [entry["exp_key"] for entry in told["experiments"]] == ["digits"]
    assert [one["host"] for one in told["workers"]] == ["host7"]


def test_json(run: Run, farm: Store) -> None:
    beat(farm, "host7", paused=[{**PAUSE, "until": farm.now()}], draining=True)
    told = json.loads(run("top", "--json").output)
    digits = told["experiments"][0]
    counts = [digits[name] for name in ("done", "failed", "running", "waiting", "max_evals", "best_loss")]
    assert counts == [2, 1, 1, 2, 20, 1.0]
    (one,) = told["workers"]
    assert (one["host"], one["pid"], one["slots"], one["busy"], one["draining"]) == ("host7", 7, 4, 1, True)
    assert 0 <= one["heartbeat_age_s"] < 60
    (held,) = one["runs"]
    assert (held["exp_key"], held["tid"], held["attempt"]) == ("digits", 3, 1)
    assert one["paused"][0]["crashes"] == 5
    assert isinstance(one["paused"][0]["until"], str)


def test_an_empty_farm(run: Run, store: Store) -> None:
    assert "no experiments yet" in run("top").output
    assert json.loads(run("top", "--json").output)["experiments"] == []


def test_a_dead_worker_is_not_shown(run: Run, farm: Store) -> None:
    beat(farm, "host7")
    farm.workers_.update_one({}, {"$set": {"heartbeat": farm.now() - timedelta(minutes=3)}})
    output = run("top").output
    assert "host7" not in output
    assert "workers: none alive" in output


def test_an_unknown_experiment(run: Run, farm: Store, mongo_url: str) -> None:
    with pytest.raises(ExperimentNotFound, match="did you mean digits"):
        run("top", "digitz")
    done = hyperfarm("top", "digitz", "--mongo", mongo_url, check=False)
    assert (done.returncode, done.stdout) == (2, "")


def test_a_real_worker(run: Run, store: Store, mongo_url: str, tmp_path: Path) -> None:
    with worker(mongo_url, tmp_path / "w", "--slots", "3") as process:
        eventually(store.live_workers, "a worker")
        told = json.loads(run("top", "--json").output)
    (one,) = told["workers"]
    assert (one["pid"], one["slots"], one["busy"], one["paused"]) == (process.pid, 3, 0, [])


def test_a_worker_counts_what_it_has_done(run: Run, store: Store, mongo_url: str, tmp_path: Path) -> None:
    script = tmp_path / "counted.py"
    script.write_text(
        "from hyperfarm import hp, trial\nspace = hp.uniform('x', 0, 1)\n"
        "def objective(x):\n    assert trial.id != 1, 'on purpose'\n    return x\n"
    )
    with worker(mongo_url, tmp_path / "w", "--lease", "3", "--name", "the-big-one"):
        hyperfarm("run", str(script), "--mongo", mongo_url, "--max-evals", "4")

        def counted() -> bool:
            (one,) = json.loads(run("top", "--json").output)["workers"]
            assert one["host"] == "the-big-one"
            return (one["done"], one["failed"], one["cut_off"]) == (3, 1, 0) and one["per_min"] > 0

        eventually(counted, "its next heartbeat")


def test_show_names_the_host_of_a_paused_slot(run: Run, farm: Store) -> None:
    beat(farm, "host7", paused=[PAUSE])
    beat(farm, "host8", exp_keys=["idle"], paused=[PAUSE])
    output = run("show", "digits").output
    text = "host7: slot 2 after 5 crashes in a row (its process was killed by SIGSEGV), for 16 s"
    assert f"paused      {text}\n" in output
    assert "host8" not in output
    (one,) = json.loads(run("show", "digits", "--json").output)["workers"]
    assert one["paused"] == [PAUSE]


# ---- live ------------------------------------------------------------------------------------------------


class Terminal:
    """A command in a pseudo-terminal of 30 lines and 120 columns; collects what it shows."""

    def __init__(self, *words: str) -> None:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 120, 0, 0))
        env = {**os.environ, "TERM": "xterm-256color"}
        self.process = subprocess.Popen(
            [COMMAND, *words], stdin=theirs, stdout=theirs, stderr=theirs, env=env, start_new_session=True
        )
        os.close(theirs)
        self._ours, self._seen = ours, b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # The other side has gone.
            while data := os.read(self._ours, 65536):
                self._seen += data

    @property
    def text(self) -> str:
        return self._seen.decode()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        os.close(self._ours)


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def start(*words: str) -> Terminal:
        opened.append(Terminal(*words))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


def test_live(terminal: Callable[..., Terminal], farm: Store, mongo_url: str) -> None:
    shown = terminal("top", "--mongo", mongo_url)
    eventually(lambda: "3/20" in shown.text, "the first view")
    farm.finish(claim(farm, "digits"), JobState.DONE, OK)
    beat(farm, "host7", paused=[PAUSE])
    eventually(lambda: "4/20" in shown.text and "paused  host7: slot 2" in shown.text, "the next view")
    shown.process.send_signal(signal.SIGINT)
    assert shown.process.wait(10) == 0
    assert "Traceback" not in shown.text
    assert shown.text.rstrip().endswith("\x1b[?25h")  # The cursor is back.


def test_live_while_the_database_goes_away(terminal: Callable[..., Terminal], tmp_path: Path) -> None:
    folder = tmp_path / "db"
    with embedded.throwaway(folder, replica_set=False) as server:
        shown = terminal("top", "--mongo", server.url)
        eventually(lambda: "none alive" in shown.text, "the first view")
        os.kill(server.pid, signal.SIGKILL)
        eventually(lambda: "trying again" in shown.text, "the outage")
    assert shown.process.poll() is None
    with embedded.throwaway(folder, replica_set=False, port=server.port):
        views = shown.text.count("workers:")
        eventually(lambda: shown.text.count("workers:") > views + 1, "more views")
        eventually(
            lambda: "trying again" not in shown.text.rpartition("workers:")[2], "a view without trouble"
        )
        shown.process.terminate()
        assert shown.process.wait(10) == 128 + signal.SIGTERM


def test_the_first_look_must_work(terminal: Callable[..., Terminal]) -> None:
    shown = terminal("top", "--mongo", "mongodb://127.0.0.1:1/db")
    assert shown.process.wait(20) == 2
    eventually(lambda: "no MongoDB answers" in shown.text, "the sentence")


def entry(key: str, **fields: Any) -> dict[str, Any]:
    counts = dict.fromkeys(("trials", "done", "failed", "running", "waiting", "cancelled"), 0)
    return {"exp_key": key, "max_evals": None, "best_loss": None, "last_change": None, **counts, **fields}


def rendered(shot: Snapshot, height: int, width: int = 110, trouble: str = "") -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width, height=height).print(view.render(shot, height, trouble))
    return out.getvalue().splitlines()


def big(store: Store, experiments: int, workers: int) -> Snapshot:
    for number in range(workers):
        beat(store, f"w{number:03}", paused=[PAUSE])
    shot = take_snapshot(store)
    return Snapshot(
        at=shot.at, experiments=[entry(f"e{n:03}") for n in range(experiments)], workers=shot.workers
    )


@pytest.mark.parametrize(
    ("experiments", "workers", "told"),
    [(3, 2, []), (40, 0, ["experiments"]), (2, 40, ["workers"]), (50, 50, ["experiments", "workers"])],
)
@pytest.mark.parametrize("height", [24, 40])
def test_it_fits_the_height(
    store: Store, height: int, experiments: int, workers: int, told: list[str]
) -> None:
    lines = rendered(big(store, experiments, workers), height, trouble="away")
    assert len(lines) <= height
    assert lines[-1] == "away"
    more = [line.split()[-1] for line in lines if line.startswith("... and") and not line.endswith("lines")]
    assert more == told
    for letter, count, what in (("e", experiments, "experiments"), ("w", workers, "workers")):
        shown = sum(re.match(rf"{letter}\d\d\d ", line) is not None for line in lines)
        hidden = [
            int(line.split()[2]) for line in lines if re.fullmatch(rf"\.\.\. and \d+ more {what}", line)
        ]
        assert shown + sum(hidden) == count
        assert shown >= min(count, 3)


def test_names_are_no_markup(store: Store) -> None:
    beat(store, "h", refused=[{"exp_key": "[red]a[/red]", "reason": "[b]"}])
    shot = take_snapshot(store)
    lines = rendered(Snapshot(at=shot.at, experiments=[entry("[bold]x")], workers=shot.workers), 30)
    assert any(line.startswith("[bold]x") for line in lines)
    assert "refused  h (process 7) refuses [red]a[/red]: [b]" in lines


def test_watching_goes_on_through_an_outage(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(view, "EVERY_S", 0.0)
    shots = iter(
        [take_snapshot(store), DatabaseUnavailable("MongoDB cannot be reached"), take_snapshot(store)]
    )

    def look() -> Snapshot:
        shot = next(shots, None)
        if shot is None:
            raise KeyboardInterrupt
        if isinstance(shot, Exception):
            raise shot
        return shot

    out = io.StringIO()
    with pytest.raises(KeyboardInterrupt):
        view.watch(look, Console(file=out, force_terminal=True, width=100, height=30))
    assert out.getvalue().count("MongoDB cannot be reached; trying again") == 1
    assert out.getvalue().count("none alive") == 3 + 1  # Live prints the last view once more at its end.


def test_help_has_an_example() -> None:
    assert "Example:\n    hyperfarm top" in CliRunner().invoke(cli, ["top", "--help"]).output


def test_two_hundred_hosts_in_eighty_columns(store: Store) -> None:
    for number in range(200):
        name = f"me@gpu{number:03}.example.org"
        beat(store, name, done=12345, failed=678, uptime_s=3600.0)
        queue(store, 1, "digits", number)
        claim(store, "digits", worker=f"{name}:7")
    beat(store, "me@gpu150.example.org", paused=[PAUSE], done=3)
    shot = take_snapshot(store)
    lines = rendered(Snapshot(at=shot.at, experiments=[entry("digits")], workers=shot.workers), 24, 80)
    assert len(lines) <= 24
    hosts = [line for line in lines if line.startswith("me@gpu")]
    assert "gpu150" in hosts[0], "who is in trouble comes first"
    assert "1 paused" in hosts[0]
    assert re.fullmatch(r"me@gpu000\.example\.org +1/4 +digits 0 +\d+ s +12345 +678 +217 +ok *", hosts[1])
    assert any(re.fullmatch(r"\.\.\. and \d+ more workers", line) for line in lines)
