"""`hyperfarm ls | show | best | pull | plot | logs` over a real MongoDB, as a person types them."""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from bson import ObjectId
from click.testing import CliRunner, Result
from hyperopt import hp
from hyperopt.pyll import as_apply

from hyperfarm.blobs import Blobs
from hyperfarm.cli import cli
from hyperfarm.errors import DatabaseError, ExperimentNotFound, UsageError
from hyperfarm.jobs import Claim, JobState
from hyperfarm.store import Store, new_token
from hyperfarm.values import encode_keys

ROOT = Path(__file__).resolve().parents[2]
MODEL = b"PK keras model " + bytes(range(256)) * 9000
Run = Callable[..., Result]


@pytest.fixture
def run(mongo_url: str) -> Run:
    """Call a command; errors of ours come out as they are, as cli.main sees them."""

    def call(*words: object) -> Result:
        command = [str(words[0]), "--mongo", mongo_url, *map(str, words[1:])]
        return CliRunner().invoke(cli, command, catch_exceptions=False, standalone_mode=False)

    return call


def new_job(tid: int, key: str | None, point: dict[str, Any], **more: Any) -> dict[str, Any]:
    misc = {
        "tid": tid,
        "cmd": ["domain_attachment", "FMinIter_Domain"],
        "workdir": None,
        "idxs": {label: [] if value is None else [tid] for label, value in point.items()},
        "vals": {label: [] if value is None else [value] for label, value in point.items()},
    }
    empty = dict.fromkeys(("spec", "owner", "book_time", "refresh_time"))
    return {"tid": tid, "exp_key": key, "state": 0, "result": {"status": "new"}, "misc": misc, "version": 0,
            **empty, **more}  # fmt: skip


class Farm:
    """Makes an experiment by the very calls of controller and worker."""

    def __init__(self, store: Store, key: str = "digits") -> None:
        self.store, self.blobs, self.key = store, Blobs(store.database), key
        space = {
            "units": hp.quniform("units", 12, 256, 4),
            "dropout": hp.uniform("dropout", 0, 0.7),
            "act": hp.choice("act", ["relu", "tanh"]),
        }
        doc = {"_id": key, "exp_key": key, "state": "open", "space": str(as_apply(space)), "algo": "tpe",
               "max_evals": 20, "seed": 7, "bundles": [{"name": "task:objective", "revision": "r"}]}  # fmt: skip
        assert store.create_experiment(doc)

    def queue(self, **point: Any) -> int:
        tid = self.store.new_tids(1)[0]
        point = {"units": 16.0, "dropout": 0.1, "act": 0, **point}
        self.store.insert_jobs([new_job(tid, self.key, point, attempt=0, max_attempts=3, slot=tid)])
        return tid

    def begin(self, **point: Any) -> Claim:
        self.queue(**point)
        claim = self.store.claim(self.key, worker="w", owner="host:1", token=new_token(), lease_s=90)
        assert claim is not None
        return claim

    def finish(self, claim: Claim, result: dict[str, Any], **fields: Any) -> int:
        stored = encode_keys(self.blobs.externalise({"status": "ok", **result}, claim))
        self.store.finish(claim, JobState.DONE, {"result": stored, "duration": 1.5, **fields})
        return claim.tid

    def done(self, loss: float, result: dict[str, Any] | None = None, **point: Any) -> int:
        return self.finish(self.begin(**point), {"loss": loss, **(result or {})})

    def fail(self) -> int:
        claim = self.begin()
        fields = {"error": ["ValueError", "bad [shape]"], "traceback": "Traceback ...\nValueError: bad [shape]",
                  "result": {"status": "fail"}, "duration": 0.2}  # fmt: skip
        self.store.finish(claim, JobState.ERROR, fields)
        return claim.tid


@pytest.fixture
def farm(store: Store) -> Farm:
    return Farm(store)


@pytest.fixture
def searched(farm: Farm) -> Farm:
    """Six trials: 0 to 3 done (2 is best), 4 failed, 5 waits."""
    for tid, loss in enumerate((0.4, 0.3, 0.1, 0.2)):
        farm.done(loss, {"metrics": {"rmse": loss / 2, "val.acc": 1 - loss}, "text": "x"},
                  units=12.0 + 40 * tid, dropout=0.2 * tid, act=tid % 2)  # fmt: skip
    farm.fail()
    farm.queue()
    return farm


def is_png(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG\r\n") and path.stat().st_size > 30_000


# ---- ls, show, best --------------------------------------------------------------------------------------


def test_ls(run: Run, searched: Farm, store: Store) -> None:
    Farm(store, "empty")
    (line,) = [line for line in run("ls").output.splitlines() if line.startswith("digits")]
    assert line.split()[:6] == ["digits", "20", "4", "1", "1", "0.1"]
    told = {entry["exp_key"]: entry for entry in json.loads(run("ls", "--json").output)}
    assert told["digits"]["best_loss"] == 0.1
    assert told["digits"]["trials"] == 6
    assert told["empty"]["trials"] == 0
    datetime.fromisoformat(told["digits"]["created"])


def test_ls_without_experiments(run: Run, store: Store) -> None:
    assert "no experiments" in run("ls").stderr
    assert json.loads(run("ls", "--json").output) == []


def test_nan_does_not_hide_the_best(run: Run, farm: Farm) -> None:
    farm.done(math.nan)
    farm.done(0.25)
    assert json.loads(run("ls", "--json").output)[0]["best_loss"] == 0.25
    assert json.loads(run("best", "digits", "--json").output)["loss"] == 0.25
    assert "best        loss 0.25 (trial 1)" in run("show", "digits").output
    shown = run("show", "digits", "--json").output
    assert "NaN" not in shown
    assert json.loads(shown)["trials"][0]["loss"] is None


def test_show_lists_trials_by_tid(run: Run, searched: Farm, store: Store) -> None:
    beat = {"host": "h", "pid": 1, "slots": 4, "busy": 1}
    store.heartbeat("mine", {**beat, "exp_keys": ["digits"]})
    store.heartbeat("anyone's", {**beat, "exp_keys": None})
    store.heartbeat("another's", {**beat, "exp_keys": ["other"]})
    output = run("show", "digits").output
    assert "trials      4 done, 1 failed, 1 waiting" in output
    assert "budget      20 trials" in output
    assert "best        loss 0.1 (trial 2)" in output
    assert "workers     2 alive on 1 host, 2 of 8 slots busy" in output
    rows = output.splitlines()[-6:]
    assert [int(row.split()[0]) for row in rows] == [0, 1, 2, 3, 4, 5]
    assert rows[1].split() == ["1", "done", "0.3", "1.5", "s", "tanh", "0.2", "52"]
    assert rows[4].split()[:2] == ["4", "failed"]


@pytest.mark.parametrize("width", [100, 60, 48])
def test_tables_fit_the_terminal(
    run: Run, searched: Farm, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    from hyperfarm.analysis import listing

    monkeypatch.setattr(listing, "terminal_width", lambda: width)
    searched.done(0.5, act=1, dropout=0.123456789)
    lines = run("show", "digits").output.splitlines()
    assert max(map(len, lines)) <= max(width, 45)  # The header's lines are not wrapped.
    table = "\n".join(lines[lines.index("") :])
    assert ("parameters" in table) == (width < 60)
    assert "0.123457" in table.replace("\n", "").replace(" ", "")


def test_show_as_json(run: Run, searched: Farm) -> None:
    told = json.loads(run("show", "digits", "--json").output)
    assert told["counts"] == {"done": 4, "failed": 1, "waiting": 1}
    assert told["best"] == 2
    assert told["max_evals"] == 20
    trial = told["trials"][3]
    assert (trial["trial"], trial["loss"], trial["duration_s"]) == (3, 0.2, 1.5)
    assert trial["parameters"] == {"units": 132.0, "dropout": pytest.approx(0.6), "act": 1}
    assert trial["choices"] == {"act": "tanh"}
    assert "result" not in trial


def test_show_one_trial(run: Run, farm: Farm, store: Store) -> None:
    first = farm.begin(units=64.0)
    store.end_attempt(first, "the process was killed by signal 9")
    store.jobs.update_one({"_id": first.job_id}, {"$set": {"not_before": store.now()}})
    claim = store.claim("digits", worker="w2", owner="host:2", token=new_token(), lease_s=90)
    assert claim is not None
    store.add_reports(claim, [{"step": 0, "loss": 0.9}, {"step": 1, "loss": 0.8, "lr": 1e-4}])
    model = farm.blobs.put_for(claim, MODEL, "model.keras", "model")
    result = {"loss": 0.5, "weights": b"w" * 2_000_000, "curve": list(range(5000)), "a.b": 1}
    farm.finish(claim, result, artifacts=[model], notes=["result['x'] is odd"])
    output = run("show", "digits", "--trial", 0).output
    assert "attempt   2 of 3" in output
    assert "units    64" in output
    assert "act      relu" in output
    assert "weights  <2 MB in GridFS>" in output
    assert "5000 items" in output
    assert "model.keras  2.3 MB (model)" in output
    assert "killed by signal 9" in output
    assert "result['x'] is odd" in output
    assert [line.split() for line in output.split("reports\n")[1].splitlines()[:3]] == [
        ["step", "loss", "lr"],
        ["0", "0.9"],
        ["1", "0.8", "0.0001"],
    ]
    told = json.loads(run("show", "digits", "--trial", 0, "--json").output)
    assert told["reports"] == [{"step": 0, "loss": 0.9}, {"step": 1, "loss": 0.8, "lr": 1e-4}]
    assert told["files"][0]["sha256"] == hashlib.sha256(MODEL).hexdigest()
    assert told["result"]["a.b"] == 1
    assert told["history"][0]["event"] == "requeue"


def test_show_a_failed_trial(run: Run, searched: Farm) -> None:
    output = run("show", "digits", "--trial", 4).output
    assert "ValueError: bad [shape]" in output
    assert output.rstrip().endswith("Traceback ...\nValueError: bad [shape]")


def test_best(run: Run, searched: Farm) -> None:
    output = run("best", "digits").output
    assert "trial     2 of digits" in output
    assert "units    92" in output
    told = json.loads(run("best", "digits", "--json").output)
    assert (told["trial"], told["loss"], told["result"]["metrics"]["val.acc"]) == (2, 0.1, 0.9)


def test_a_result_that_lies_in_gridfs_as_a_whole(run: Run, farm: Farm, tmp_path: Path) -> None:
    farm.done(0.5, {"blob": {f"k{i}": b"y" * 1_000_000 for i in range(9)}, "recipe.txt": "mix " * 1000})
    assert "(the rest)  <9 MB in GridFS>" in run("show", "digits", "--trial", 0).output
    path = tmp_path / "recipe"
    run("pull", "digits", "--name", "recipe.txt", "-o", path)
    assert path.read_text() == "mix " * 1000


# ---- what cannot be found --------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["show"], ["best"], ["plot"], ["pull", "-o", "x"], ["logs", "3"]])
def test_an_unknown_experiment_is_told_with_near_names(run: Run, farm: Farm, words: list[str]) -> None:
    with pytest.raises(ExperimentNotFound, match="did you mean digits"):
        run(words[0], "digit", *(words[1:]))


@pytest.mark.parametrize("words", [["show", "--trial"], ["pull", "-o", "x", "--trial"], ["logs"]])
def test_an_unknown_trial_is_told_with_the_range(run: Run, searched: Farm, words: list[str]) -> None:
    with pytest.raises(UsageError, match=r"digits has no trial 77; there are trials 0 to 5"):
        run(words[0], "digits", *words[1:], 77)
    with pytest.raises(UsageError, match="has no trial"):
        run(words[0], "digits", *words[1:], 10**30)


def test_trials_of_other_experiments_are_not_shown(run: Run, searched: Farm, store: Store) -> None:
    tid = Farm(store, "other").done(0.01)
    with pytest.raises(UsageError, match="has no trial"):
        run("show", "digits", "--trial", tid)
    assert json.loads(run("best", "digits", "--json").output)["trial"] == 2


@pytest.mark.parametrize("words", [["best"], ["pull", "-o", "x"], ["plot", "-o", "x.png"]])
def test_nothing_has_finished_yet(run: Run, farm: Farm, words: list[str]) -> None:
    farm.fail()
    farm.queue()
    with pytest.raises(
        UsageError, match=r"no trial of digits has finished with a loss yet \(1 failed, 1 waiting\)"
    ):
        run(words[0], "digits", *words[1:])


def test_hyperopts_own_jobs_are_read(run: Run, store: Store, tmp_path: Path) -> None:
    """Without an experiment's document, attempt or duration, and without an exp_key, as hyperopt's default is."""
    begun = datetime(2026, 1, 1, tzinfo=timezone.utc)
    for tid in range(3):
        owner = {"owner": ["host", 1], "book_time": begun, "refresh_time": begun + timedelta(seconds=90)}
        store.database["jobs"].insert_one(
            new_job(tid, None, {"x": float(tid)}) | {"_id": ObjectId(), "state": 2, **owner,
                    "result": {"status": "ok", "loss": float(tid)}})  # fmt: skip
    Farm(store, "other").done(-5.0)
    told = json.loads(run("show", "None", "--json").output)
    assert told["exp_key"] is None
    assert [trial["duration_s"] for trial in told["trials"]] == [90.0] * 3
    assert json.loads(run("best", "None", "--json").output)["loss"] == 0
    assert "host:1" in run("show", "None", "--trial", 1).output
    assert any(line.startswith("None") for line in run("ls").output.splitlines())
    assert is_png(Path(run("plot", "None", "-o", tmp_path / "x.png").stdout.strip()))


# ---- pull, logs ------------------------------------------------------------------------------------------


def test_pull_fetches_the_best_trials_model(run: Run, farm: Farm, tmp_path: Path) -> None:
    for loss, data in ((0.5, b"worse"), (0.1, MODEL), (0.3, b"also worse")):
        claim = farm.begin()
        saved = [farm.blobs.put_for(claim, b"a,b", "history.csv", "artifact"),
                 farm.blobs.put_for(claim, data, "model.keras", "model")]  # fmt: skip
        farm.finish(claim, {"loss": loss}, artifacts=saved)
    path = tmp_path / "best.keras"
    path.write_bytes(b"an older one")
    result = run("pull", "digits", "-o", path)
    assert run("best", "digits").stderr == "\nFetch it: hyperfarm pull digits -o model.keras\n"
    assert result.stdout == f"{path}\n"
    assert "model.keras of trial 1 of digits, loss 0.1" in result.stderr
    assert path.read_bytes() == MODEL
    run("pull", "digits", "--trial", 0, "-o", path)
    assert path.read_bytes() == b"worse"
    run("pull", "digits", "--name", "history.csv", "-o", path)
    assert path.read_bytes() == b"a,b"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(UsageError, match=r"no file called 'weights'; it has history.csv, model.keras"):
        run("pull", "digits", "--name", "weights", "-o", path)


def test_pull_takes_the_only_file_and_refuses_to_guess(run: Run, farm: Farm, tmp_path: Path) -> None:
    one, two = farm.begin(), farm.begin()
    farm.finish(one, {"loss": 1}, artifacts=[farm.blobs.put_for(one, b"1", "a.pt", "artifact")])
    saved = [farm.blobs.put_for(two, b"2", name, "artifact") for name in ("b.pt", "c.pt")]
    farm.finish(two, {"loss": 2}, artifacts=saved)
    run("pull", "digits", "-o", tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == b"1"
    with pytest.raises(UsageError, match=r"choose one by --name: b.pt, c.pt"):
        run("pull", "digits", "--trial", two.tid, "-o", tmp_path / "x")


@pytest.mark.parametrize("length", [1000, 3_000_000], ids=["in the document", "in GridFS"])
def test_pull_from_the_result(run: Run, farm: Farm, tmp_path: Path, length: int) -> None:
    """The recipe's way: weights in the result, small ones in the document, big ones in GridFS."""
    weights = os.urandom(length)
    farm.done(0.5, {"model_serial": weights, "rmse": 1.0})
    path = tmp_path / "weights"
    run("pull", "digits", "--name", "model_serial", "-o", path)
    assert path.read_bytes() == weights
    with pytest.raises(UsageError, match="can be pulled by --name: model_serial"):
        run("pull", "digits", "-o", path)
    with pytest.raises(UsageError, match="holds a float, no file, under 'rmse'"):
        run("pull", "digits", "--name", "rmse", "-o", path)


def test_pull_an_attachment_of_hyperopts(run: Run, farm: Farm, tmp_path: Path) -> None:
    claim = farm.begin()
    farm.finish(claim, {"loss": 1}, _attachments=[farm.blobs.put_attachment(claim, "notes", b"kept")])
    run("pull", "digits", "--name", "notes", "-o", tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == b"kept"


def test_pull_says_what_to_do_when_nothing_was_saved(run: Run, searched: Farm, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"trial 2 of digits saved no model.*trial.save_model\(model\)"):
        run("pull", "digits", "-o", tmp_path / "x")
    with pytest.raises(UsageError, match="trial 5 of digits is waiting"):
        run("pull", "digits", "--trial", 5, "-o", tmp_path / "x")
    with pytest.raises(UsageError, match="there is no folder"):
        run("pull", "digits", "-o", tmp_path / "none" / "x")
    assert not list(tmp_path.iterdir())


def test_a_damaged_model_is_not_handed_out(run: Run, farm: Farm, store: Store, tmp_path: Path) -> None:
    claim = farm.begin()
    model = farm.blobs.put_for(claim, MODEL, "model.keras", "model")
    farm.finish(claim, {"loss": 1}, artifacts=[model])
    chunk = store.database["farm.chunks"].find_one({"files_id": model["blob"], "n": 0})
    assert chunk is not None
    store.database["farm.chunks"].update_one(
        {"_id": chunk["_id"]}, {"$set": {"data": b"!" + chunk["data"][1:]}}
    )
    with pytest.raises(DatabaseError, match="damaged"):
        run("pull", "digits", "-o", tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_logs(run: Run, searched: Farm) -> None:
    claim = searched.begin()  # The trial that waited, number 5.
    log = searched.blobs.put_for(claim, b"epoch 1\n\xff\xfe raw\n", "log", "log")
    searched.finish(claim, {"loss": 3}, log=log)
    assert run("logs", "digits", claim.tid).stdout_bytes == b"epoch 1\n\xff\xfe raw\n"
    quiet = run("logs", "digits", 0)
    assert (quiet.stdout, "printed nothing" in quiet.stderr) == ("", True)
    with pytest.raises(UsageError, match="is waiting; its output is stored when it ends"):
        run("logs", "digits", 6)


# ---- plot ------------------------------------------------------------------------------------------------


def test_plot_in_three_dimensions(
    run: Run, searched: Farm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("plot", "digits").stdout == f"{tmp_path / 'digits-3d.png'}\n"
    assert is_png(tmp_path / "digits-3d.png")
    words = ["--x", "units", "--y", "dropout", "--z", "loss", "--color", "loss", "--title", "A $5 title"]
    run("plot", "digits", "--kind", "3d", *words, "--log", "z", "-o", "b.png")
    assert is_png(tmp_path / "b.png")
    assert (tmp_path / "b.png").read_bytes() != (tmp_path / "digits-3d.png").read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    "words",
    [
        ["--x", "act", "--y", "tid", "--color", "result.metrics.val.acc"],
        ["--z", "metrics.rmse", "--y", "duration", "--color", "act"],
        ["--z", "result.metrics.rmse", "--color", "metrics", "--color", "tid"],
        ["--kind", "scatter", "--x", "act"],
        [
            "--kind",
            "scatter",
            "--x",
            "units",
            "--y",
            "loss",
            "--log",
            "y",
            "--log",
            "x",
            "--color",
            "dropout",
        ],
        ["--kind", "history"],
        ["--kind", "history", "--y", "result.metrics.rmse", "--linear", "y"],
    ],
)
def test_axes_and_kinds(run: Run, searched: Farm, tmp_path: Path, words: list[str]) -> None:
    path = tmp_path / "x.png"
    assert run("plot", "digits", *words, "-o", path).stdout == f"{path}\n"
    assert is_png(path)


@pytest.mark.parametrize("count", [1, 2])
def test_few_and_equal_trials_are_drawn(run: Run, farm: Farm, tmp_path: Path, count: int) -> None:
    for _ in range(count):
        farm.done(0.5)
    for kind in ("3d", "scatter", "history"):
        run("plot", "digits", "--kind", kind, "-o", tmp_path / "x.svg")
        assert b"</svg>" in (tmp_path / "x.svg").read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--x", "unit"], r"called 'unit'; did you mean units\? Parameters: .*units.*result.metrics.val.acc"),
        (["--x", "text"], "text is text in digits: an axis needs numbers"),
        (["--z", "metrics"], "metrics is a dict in digits: an axis needs numbers"),
        (["--x", "a..b"], "has no parameter or result called 'a..b'"),
        (["--kind", "scatter", "--z", "loss"], "scatter has no z"),
        (["--kind", "history", "--log", "color"], "history has no color"),
        (["--log", "y", "--y", "act"], "act cannot have a logarithmic axis: its lowest value is 0"),
        (["-o", "x.docx"], "cannot draw a .docx file; the endings are .*png"),
    ],
)
def test_what_cannot_be_drawn(
    run: Run, searched: Farm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=message):
        run("plot", "digits", *words)
    assert not list(tmp_path.iterdir())


def test_a_scene_counts_what_it_does_not_draw(farm: Farm, store: Store) -> None:
    from hyperfarm.analysis.axes import Axes
    from hyperfarm.analysis.reading import find_experiment
    from hyperfarm.analysis.scene import Wishes, make_scene

    farm.done(0.7)
    farm.done(0.05, dropout=None)
    farm.done(math.inf)
    farm.done(0.3, units=200.0)
    farm.fail()
    pruned = farm.begin()
    farm.finish(pruned, {"status": "fail", "pruned": True, "loss": -1.0})
    farm.begin()
    farm.queue()

    def scene(**wishes: Any) -> Any:
        return make_scene(Axes(store, find_experiment(store, "digits"), []), Wishes(**wishes))

    drawn = scene(x="units", y="dropout")
    assert drawn.subtitle == (
        "2 trials · 1 failed (not drawn) · 1 pruned (not drawn)"
        " · 2 without a value on every axis (not drawn) · 1 running · 1 waiting"
    )
    assert drawn.tids == [0, 3]
    assert drawn.numbers("x") == [16.0, 200.0]
    assert drawn.best is None  # The best has no dropout.
    other = scene(x="units", y="act")
    assert other.tids == [0, 1, 3]
    assert (other.best, other.best_label) == (1, "best: loss 0.05 (trial 1)")
    assert other.axes["y"].ticks == {0: "relu", 1: "tanh"}
    assert other.axes["color"].label == "duration (s)"
    assert scene(x="units", y="act", log=("z",)).axes["z"].log  # Though the pruned trial's loss is negative.
    default = scene()
    assert {which: axis.name for which, axis in default.axes.items()} == {
        "x": "dropout", "y": "units", "z": "loss", "color": "duration"
    }  # fmt: skip
    assert scene(kind="history").failed_at == [4]


def test_pyplot_and_the_users_settings_stay_untouched(searched: Farm, mongo_url: str, tmp_path: Path) -> None:
    code = f"""
import matplotlib, sys
matplotlib.rcParams["text.usetex"] = True
def settings():  # Asking for the backend would choose one, and import pyplot.
    return {{key: matplotlib.rcParams[key] for key in matplotlib.rcParams if key != "backend"}}
before = settings()
from click.testing import CliRunner
from hyperfarm.cli import cli
CliRunner().invoke(cli, ["plot", "digits", "--mongo", {mongo_url!r}, "-o", {str(tmp_path / "x.png")!r}],
                   catch_exceptions=False)
assert "matplotlib.pyplot" not in sys.modules
assert settings() == before
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=90)
    assert is_png(tmp_path / "x.png")


def test_without_matplotlib(searched: Farm, mongo_url: str, tmp_path: Path) -> None:
    code = "import sys; sys.modules['matplotlib'] = None; from hyperfarm.cli import main; main()"
    command = [
        sys.executable,
        "-c",
        code,
        "plot",
        "digits",
        "--mongo",
        mongo_url,
        "-o",
        str(tmp_path / "x.png"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 2
    assert done.stderr == "hyperfarm: plots need matplotlib: pip install 'hyperfarm[plot]'\n"


def test_the_scripts(farm: Farm, mongo_url: str, tmp_path: Path) -> None:
    claim = farm.begin()
    farm.finish(claim, {"loss": 1}, artifacts=[farm.blobs.put_for(claim, MODEL, "model.keras", "model")])
    for script, name in (("plot_3d.py", "x.png"), ("best_model.py", "best.keras")):
        command = [sys.executable, "-W", "error", str(ROOT / "analysis" / script), "digits", "-o", name]
        env = {**os.environ, "HYPERFARM_MONGO": mongo_url}
        done = subprocess.run(
            command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=90, check=False
        )
        assert (done.returncode, done.stdout) == (0, f"{tmp_path / name}\n"), done.stderr
    assert is_png(tmp_path / "x.png")
    assert (tmp_path / "best.keras").read_bytes() == MODEL


@pytest.mark.parametrize("command", ["ls", "show", "best", "pull", "plot", "logs"])
def test_help_has_an_example(command: str) -> None:
    output = CliRunner().invoke(cli, [command, "--help"]).output
    assert f"Example:\n    hyperfarm {command}" in output


def test_ten_thousand_trials_without_their_results(
    run: Run, farm: Farm, store: Store, tmp_path: Path
) -> None:
    """No list or plot may fetch whole results: here they would be 200 MB."""
    raw = b"x" * 20_000
    docs = [
        new_job(1000 + n, "big", {"a": n / 10_000, "b": float(n % 97)}, attempt=1, duration=1.0)
        for n in range(10_000)
    ]
    for doc in docs:
        doc |= {"state": 2, "result": {"status": "ok", "loss": doc["misc"]["vals"]["a"][0], "raw": raw}}
    store.insert_jobs(docs)
    before = store.database.command("serverStatus")["network"]["bytesOut"]
    assert len(run("show", "big").output.splitlines()) > 10_000
    assert is_png(Path(run("plot", "big", "-o", tmp_path / "x.png").stdout.strip()))
    run("ls")
    assert store.database.command("serverStatus")["network"]["bytesOut"] - before < 20_000_000
