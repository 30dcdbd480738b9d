"""`hyperfarm gc` on what real processes leave behind."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from hyperfarm.blobs import Blobs
from hyperfarm.store import Store
from tests.support import TWO_PARAMETERS, eventually, hyperfarm, started, worker

UPLOAD = (
    TWO_PARAMETERS
    + """
def objective(point):
    with open(PATH, "wb") as file:
        file.truncate(600 << 20)
    trial.save("weights", PATH)
    return 1.0
"""
)
SAVING = (
    TWO_PARAMETERS
    + """
import os

def objective(point):
    trial.report(loss=1.0, step=1)
    trial.save("file", os.urandom(200_000))
    if trial.id % 3 == 0 and trial.attempt == 1:
        os._exit(9)
    return {"loss": point["x"], "status": "ok", "raw": os.urandom(2_000_000), "attachments": {"a": b"text"}}
"""
)


def gc(url: str, *options: str) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(hyperfarm("gc", "--mongo", url, "--json", *options).stdout)
    return told


def counts(store: Store) -> dict[str, int]:
    return {name: store.database[name].count_documents({}) for name in store.database.list_collection_names()}


def test_a_worker_killed_in_an_upload_leaves_chunks_no_file_and_gc_removes_them(
    mongo_url: str, store: Store, tmp_path: Path
) -> None:
    script = tmp_path / "upload.py"
    script.write_text(UPLOAD + f"PATH = {str(tmp_path / 'weights')!r}\n")
    chunks, files = store.database["farm.chunks"], store.database["farm.files"]
    with (
        started("run", str(script), "--mongo", mongo_url, "--max-evals", "1"),
        worker(mongo_url, tmp_path / "w") as host,
    ):
        code = eventually(lambda: files.find_one({"metadata.kind": "bundle"}), "the code is there")["_id"]
        query = {"files_id": {"$ne": code}}
        eventually(lambda: chunks.find_one(query, {"_id": 1}), "the first chunks are there")
        host.send_signal(signal.SIGKILL)
        host.wait()
    assert files.count_documents({}) == 1, "no file that a reader could see"
    assert not store.find_jobs("upload")[0].get("artifacts")

    told = gc(mongo_url, "--older-than", "0")
    assert told["items"] == [], "its trial counts as running: the upload may still go on"
    assert [one["what"] for one in told["left_alone"]] == ["upload"]
    hyperfarm("cancel", "upload", "--mongo", mongo_url)
    assert gc(mongo_url)["count"] == 0, "it is younger than an hour"

    before = counts(store)
    told = gc(mongo_url, "--older-than", "0")
    assert [(one["what"], one["count"]) for one in told["items"]] == [("upload", 1)]
    assert told["bytes"] == told["items"][0]["bytes"] >= 20 << 20
    text = hyperfarm("gc", "--mongo", mongo_url, "--older-than", "0").stdout
    assert "broken uploads" in text
    assert f"hyperfarm gc --delete --older-than 0 --mongo {mongo_url.split('?')[0]}" in text.replace("'", "")
    assert counts(store) == before, "looking removes nothing"

    assert gc(mongo_url, "--older-than", "0", "--delete")["removed"] is True
    assert chunks.count_documents(query) == 0
    assert chunks.count_documents({"files_id": code}) == 1
    assert gc(mongo_url, "--older-than", "0")["count"] == 0
    text = hyperfarm("gc", "--mongo", mongo_url, "--older-than", "0").stdout
    assert text == "There is nothing that nothing refers to.\n"


def test_a_search_loses_nothing_to_a_restless_gc(mongo_url: str, store: Store, tmp_path: Path) -> None:
    """Trials save, crash and are tried again, while gc removes whatever it may."""
    script = tmp_path / "saving.py"
    script.write_text(SAVING)
    with (
        worker(mongo_url, tmp_path / "w", "--slots", "2"),
        started("run", str(script), "--mongo", mongo_url, "--max-evals", "9", "--algo", "rand") as search,
    ):
        while search.poll() is None:
            gc(mongo_url, "--delete", "--older-than", "0")
        assert search.returncode == 0, search.stdout.read()
        gc(mongo_url, "--delete", "--older-than", "0")
        told = gc(mongo_url, "--older-than", "0")
        assert (told["count"], told["left_alone"]) == (0, [])
    blobs = Blobs(store.database)
    docs = store.find_jobs("saving")
    assert [doc["state"] for doc in docs] == [2] * 9
    assert {doc["attempt"] for doc in docs} == {1, 2}
    for doc in docs:
        assert len(blobs.read(doc["artifacts"][0])) == 200_000
        assert len(blobs.internalise(doc["result"])["raw"]) == 2_000_000
        assert blobs.read_attachment(doc, "a") == b"text"
        assert len(store.reports(doc)) == 1
    assert store.database["farm.files"].count_documents({"metadata.kind": "artifact"}) == 9


def test_one_experiment_by_its_name_also_after_it_was_removed(mongo_url: str, store: Store) -> None:
    blobs = Blobs(store.database)
    for key in ("digits", "other", None):
        blobs.put(b"x" * 1500, "model", exp_key=key, tid=1, token=f"of {key}", kind="model")
    store.create_experiment({"_id": "known"})
    (item,) = gc(mongo_url, "--older-than", "0", "--exp-key", "digits")["items"]
    assert item == {"what": "model", "exp_key": "digits", "count": 1, "bytes": 1500}
    shown = hyperfarm("gc", "--older-than", "0", "--exp-key", "digits", "--mongo", mongo_url).stdout
    assert shown.startswith("digits  models")
    assert "--exp-key digits" in shown
    (item,) = gc(mongo_url, "--older-than", "0", "--exp-key", "None", "--delete")["items"]
    assert item["exp_key"] is None
    assert gc(mongo_url, "--exp-key", "known")["count"] == 0
    told = gc(mongo_url, "--older-than", "0", "--delete")
    assert [one["exp_key"] for one in told["items"]] == ["digits", "other"]
    assert store.database["farm.files"].count_documents({}) == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--older-than", "-1"], "0 or more"),
        (["--older-than", "x"], "number of seconds"),
        (["--older-than", "nan"], "number of seconds"),
        (["--older-than", "inf"], "number of seconds"),
        (["--older-than", ""], "number of seconds"),
        (["--exp-key", "digitz"], "did you mean digits?"),
        (["--mongo", "nonsense"], "address"),
    ],
)
def test_what_makes_no_sense(options: list[str], says: str, mongo_url: str, store: Store) -> None:
    store.create_experiment({"_id": "digits"})
    done = hyperfarm("gc", "--mongo", mongo_url, *options, check=False)
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("hyperfarm: ")
    assert says in line


def test_help_has_an_example() -> None:
    shown = hyperfarm("gc", "--help").stdout
    assert "hyperfarm gc --delete" in shown
    assert "gc " in hyperfarm("--help").stdout
