"""What is left behind is found: processes, scratch folders, what a collector does not collect, and the dead."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hyperfarm.blobs import Blobs
from hyperfarm.store import Store
from tests.chaos import leftovers
from tests.chaos.farm import MARK, Program
from tests.chaos.leftovers import check_processes, check_scratch
from tests.chaos.outcome import died

COLLECTORS = {
    "one that does not work": ("import sys; sys.exit('no such command')", ["gc"]),
    "one that fails": ('import sys; print(\'{"count": 0, "left_alone": []}\'); sys.exit(1)', ["gc", "gc"]),
    "one that finds something after its own work": ('print(\'{"count": 1, "left_alone": []}\')', ["gc"]),
    "one that has nothing to do": ('print(\'{"count": 0, "left_alone": []}\')', []),
}


@pytest.mark.parametrize("collector", COLLECTORS)
def test_the_collector_is_judged(
    store: Store, monkeypatch: pytest.MonkeyPatch, mongo_url: str, collector: str
) -> None:
    script, expected = COLLECTORS[collector]
    monkeypatch.setattr(leftovers, "COMMAND", [sys.executable, "-c", script])
    found = leftovers.check_collected(store, mongo_url, dict(os.environ))
    assert [finding.kind for finding in found] == expected


@pytest.mark.parametrize(("left_alone", "expected"), [([], ["orphan"]), (["bundle"], [])])
def test_what_the_collector_leaves_is_found(
    store: Store, monkeypatch: pytest.MonkeyPatch, mongo_url: str, left_alone: list[str], expected: list[str]
) -> None:
    told = json.dumps({"count": 0, "left_alone": [{"what": what} for what in left_alone]})
    monkeypatch.setattr(leftovers, "COMMAND", [sys.executable, "-c", f"print({told!r})"])
    Blobs(store.database).put(b"x", "x", kind="bundle")
    found = leftovers.check_collected(store, mongo_url, dict(os.environ))
    assert [finding.kind for finding in found] == expected


def test_hyperfarm_collects(store: Store, mongo_url: str) -> None:
    Blobs(store.database).put(b"x", "x", kind="log", token="gone", tid=1, exp_key="chaos")
    store.reports_.insert_one({"exp_key": "chaos", "tid": 1, "token": "gone"})
    assert leftovers.check_collected(store, mongo_url, dict(os.environ)) == []
    assert store.database["farm.files"].count_documents({}) == 0


def program(folder: Path, script: str) -> Program:
    return Program(
        name="worker0",
        command=[sys.executable, "-c", script],
        folder=folder,
        env=dict(os.environ),
        log=folder / "log",
        sign_of_life="connected",
    )


@pytest.mark.parametrize(("says", "touched", "expected"), [
    ("connected", False, ["died"]),
    ("no server", False, []),
    ("connected", True, []),
])  # fmt: skip
def test_who_ends_by_himself_after_he_was_connected_is_found(
    tmp_path: Path, says: str, touched: bool, expected: list[str]
) -> None:
    one = program(tmp_path, f"import sys; print('{says}'); sys.exit(2)")
    one.start()
    one.process.wait()
    one.touched = touched
    one.may_start_at = float("inf")
    one.look()
    assert [finding.kind for finding in died([one])] == expected


def test_a_process_that_is_left_is_found(tmp_path: Path) -> None:
    mark = tmp_path.name
    waits = [sys.executable, "-c", "print(flush=True); input()"]
    with subprocess.Popen(
        waits, env={**os.environ, MARK: mark}, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as left:
        left.stdout.readline()
        assert [finding.kind for finding in check_processes(mark)] == ["process"]
        assert check_processes(mark, but={left.pid}) == []
        left.communicate(b"\n")
    assert check_processes(mark) == []


def test_a_scratch_folder_that_is_left_is_found(tmp_path: Path) -> None:
    assert check_scratch([tmp_path]) == []
    (tmp_path / "hyperfarm-abc").mkdir()
    assert [finding.kind for finding in check_scratch([tmp_path])] == ["scratch"]
