"""What a trial leaves behind: results of any size, files, models, reports, attachments, output."""

from __future__ import annotations

import hashlib
import os
import signal

import numpy as np
import pytest
from hyperopt import hp

from hyperfarm import MongoTrials, load_result, minimize, trial
from hyperfarm.blobs import Blobs
from tests.support import TWO_PARAMETERS, eventually, hyperfarm, started

SPACE = {"x": hp.uniform("x", -5, 5)}
MODEL_BYTES = 40 << 20


def search(fn, mongo_url, **options):
    given = {"max_evals": 1, "exp_key": "k", "workers": 1, "progress": False, "algo": "rand", **options}
    return minimize(fn, SPACE, mongo=mongo_url, **given)


def test_forty_megabytes_in_a_result_come_back_byte_for_byte(mongo_url, store):
    def recipe(point):
        data = np.random.default_rng(1).bytes(40 << 20)
        return {"loss": 0.5, "status": "ok", "model_serial": data, "ho_params": point}

    search(recipe, mongo_url)
    # The query as people write it, on a plain collection.
    jobs = store.database["jobs"]
    best = jobs.find_one({"exp_key": "k", "result.status": "ok"}, sort=[("result.loss", 1)])
    assert best["result"]["loss"] == 0.5
    expected = hashlib.sha256(np.random.default_rng(1).bytes(MODEL_BYTES)).hexdigest()
    result = load_result(best, mongo_url)
    assert hashlib.sha256(result["model_serial"]).hexdigest() == expected
    assert result["ho_params"] == {"x": best["misc"]["vals"]["x"][0]}


def test_text_too_big_for_a_document_goes_to_gridfs_by_itself(mongo_url, store):
    def wordy(point):
        return {"loss": 1.0, "status": "ok", "text": "ä" * (17 << 20), "note": "short"}

    result = search(wordy, mongo_url)
    stored = store.best_job("k")["result"]
    assert (stored["loss"], stored["note"]) == (1.0, "short")
    assert "text" not in stored
    assert load_result(result.best_trial, mongo_url)["text"] == "ä" * (17 << 20)


def test_numpy_values_and_odd_keys_come_back(mongo_url):
    def numpyish(point):
        return {
            "loss": np.float32(2.0),
            "status": "ok",
            "curve": np.arange(3) / 2,
            "a.b": {"$set": np.int64(7), "%2E": True},
            "thing": object(),
        }

    result = search(numpyish, mongo_url).best_trial["result"]
    assert result["loss"] == 2.0
    assert result["curve"] == [0.0, 0.5, 1.0]
    assert result["a.b"] == {"$set": 7, "%2E": True}
    assert result["thing"].startswith("<object")


def test_saved_files_and_models_are_visible_with_the_result_only(mongo_url, store, tmp_path):
    def saver(point):
        import io
        import pathlib
        import tempfile

        class Model:
            def save(self, path):
                pathlib.Path(path).write_bytes(b"weights")

        path = pathlib.Path(tempfile.mkdtemp()) / "file.txt"
        path.write_text("from a path")
        trial.save("path", path)
        trial.save("bytes", b"first")
        trial.save("bytes", b"second")
        trial.save("stream", io.BytesIO(b"streamed"))
        trial.save_model(Model())
        return 1.0

    search(saver, mongo_url)
    blobs = Blobs(store.database)
    artifacts = {entry["name"]: entry for entry in store.best_job("k")["artifacts"]}
    content = {name: blobs.read(entry) for name, entry in artifacts.items()}
    assert content == {
        "path": b"from a path", "bytes": b"second", "stream": b"streamed", "model.keras": b"weights"
    }  # fmt: skip
    assert artifacts["model.keras"]["kind"] == "model"
    kinds = sorted(file["metadata"]["kind"] for file in store.database["farm.files"].find())
    assert kinds == ["artifact", "artifact", "artifact", "bundle", "model"], "the replaced file is gone"


def test_reports_are_stored_in_order_and_belong_to_the_trial(mongo_url, store):
    def reporter(point):
        for step in range(50):
            trial.report(loss=1.0 / (step + 1), step=step, extra=step * 2)
        return trial.id

    search(reporter, mongo_url, max_evals=2)
    for job in store.find_jobs("k"):
        reports = store.reports(job)
        assert [report["step"] for report in reports] == list(range(50))
        assert reports[3]["extra"] == 6
        assert job["result"]["loss"] == job["tid"]


def test_attachments_come_back_by_hyperopts_interface(mongo_url):
    def attaching(point):
        return {"loss": 1.0, "status": "ok", "attachments": {"a.b": b"data"}}

    result = search(attaching, mongo_url)
    trials = MongoTrials(mongo_url, exp_key="k")
    assert trials.trial_attachments(trials.trials[0])["a.b"] == b"data"
    assert "attachments" not in result.best_trial["result"]


def test_output_is_captured_bounded_and_shown(mongo_url, store):
    def chatty(point):
        import os
        import subprocess
        import sys

        print("first line")
        print("to stderr", file=sys.stderr)
        os.write(1, b"from the file descriptor\n")
        subprocess.run(["echo", "from a grandchild"], check=True)
        for _ in range(200_000):
            print("x" * 60)
        print("last line")
        return 1.0

    search(chatty, mongo_url)
    job = store.best_job("k")
    assert job["log"]["size"] < 300_000
    shown = hyperfarm("logs", "k", str(job["tid"]), "--mongo", mongo_url).stdout
    for text in (
        "first line",
        "to stderr",
        "from the file descriptor",
        "from a grandchild",
        "last line",
        "left out",
    ):
        assert text in shown


def test_a_child_is_warm_by_default_and_new_with_fresh(mongo_url, store):
    def which(point):
        import os

        return {"loss": 1.0, "status": "ok", "pid": os.getpid()}

    search(which, mongo_url, max_evals=6, workers=2)
    assert len({doc["result"]["pid"] for doc in store.find_jobs("k")}) <= 2


def test_fresh_starts_a_new_process_for_every_trial(mongo_url, store, tmp_path):
    script = tmp_path / "fresh.py"
    script.write_text(
        TWO_PARAMETERS
        + "import os\ndef objective(p):\n    return {'loss': 1, 'status': 'ok', 'pid': os.getpid()}\n"
    )
    from tests.support import worker

    with worker(mongo_url, tmp_path / "w", "--fresh"):
        hyperfarm("run", str(script), "--mongo", mongo_url, "--max-evals", "3")
    assert len({doc["result"]["pid"] for doc in store.find_jobs("fresh")}) == 3


def test_the_objective_does_not_see_the_farms_credentials(mongo_url, store):
    def nosy(point):
        import os

        seen = [
            f"{name}={value}" for name, value in os.environ.items() if "MONGO" in name or "SECRET" in name
        ]
        return {"loss": 1.0, "status": "ok", "seen": seen}

    search(nosy, mongo_url)
    assert store.best_job("k")["result"]["seen"] == []


def test_a_child_does_not_outlive_its_killed_supervisor(mongo_url, store, tmp_path):
    script = tmp_path / "spin.py"
    script.write_text(
        TWO_PARAMETERS
        + "import subprocess\ndef objective(p):\n    subprocess.Popen(['sleep', '600'])\n    while True: pass\n"
    )
    from tests.support import descendants, gone, worker

    with (
        started("run", str(script), "--mongo", mongo_url, "--max-evals", "1"),
        worker(mongo_url, tmp_path / "w") as host,
    ):
        eventually(lambda: len(descendants(host.pid)) >= 2, "the objective and its own child run")
        family = descendants(host.pid)
        host.send_signal(signal.SIGKILL)
        host.wait()
        eventually(lambda: gone(family), "they are gone with their supervisor", 10)


def test_outside_a_farm_the_calls_are_harmless(tmp_path):
    assert trial.id is None
    trial.report(loss=1.0, step=1)
    trial.save("x", b"data")
    trial.save_model(object())
    with pytest.raises(FileNotFoundError):
        trial.save("x", tmp_path / "not there")
    with pytest.raises(TypeError):
        trial.save("x", 3)


def test_hyperopts_ctrl_reaches_the_objective(mongo_url, store):
    from hyperopt import fmin_pass_expr_memo_ctrl, pyll

    @fmin_pass_expr_memo_ctrl
    def low_level(expr, memo, ctrl):
        point = pyll.rec_eval(expr, memo=memo, print_node_on_error=False)
        ctrl.attachments["note"] = b"kept"
        ctrl.checkpoint({"status": "running", "loss": 9.0})
        assert ctrl.attachments["note"] == b"kept"
        return {"loss": point["x"], "status": "ok", "tid": ctrl.current_trial["tid"]}

    search(low_level, mongo_url)
    job = store.best_job("k")
    assert job["result"]["tid"] == job["tid"]
    assert dict(job["_attachments"]).keys() == {"note"}


def test_the_environment_of_this_test_is_its_own():
    assert "HYPERFARM_MONGO" not in os.environ
