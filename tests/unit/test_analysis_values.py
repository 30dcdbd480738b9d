"""The pure parts of the analysis: texts of spaces, paths, short texts, strict JSON, ticks."""

from __future__ import annotations

import json
import math
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from hyperopt import hp
from hyperopt.pyll import as_apply

from hyperfarm.analysis import telling
from hyperfarm.analysis.files import file_name, write_whole
from hyperfarm.analysis.pictures import log_ticks
from hyperfarm.analysis.reading import (
    MISSING,
    _spellings,
    _without_overlap,
    at_path,
    best_row,
    count,
    outcome,
)
from hyperfarm.analysis.space import read_space
from hyperfarm.blobs import REF
from hyperfarm.errors import UsageError


def row(tid: int, state: int, **result: Any) -> dict[str, Any]:
    return {"tid": tid, "state": state, "result": result}


def test_a_space_tells_choices_and_logarithmic_scales() -> None:
    space = {
        "act": hp.choice("activation", ["relu", "two\nlines", {"rate": hp.loguniform("lr", -5, 0)}]),
        "units": hp.quniform("units", 12, 256, 4),
        "solver": hp.pchoice("solver", [(0.2, "adam"), (0.8, "sgd")]),
        "depth": hp.randint("depth", 5),
    }
    read = read_space(str(as_apply(space)))
    assert set(read.labels) == {"activation", "lr", "units", "solver", "depth"}
    assert read.logarithmic == {"lr"}
    assert read.choices["solver"] == ["adam", "sgd"]
    assert read.choices["activation"][0] == "relu"
    assert set(read.choices) == {"activation", "solver"}


@pytest.mark.parametrize("text", [None, "", "anything at all\n  1 2 3", 7, "0 switch\n1   hyperopt_param"])
def test_an_unknown_text_of_a_space_tells_nothing(text: object) -> None:
    assert read_space(text).labels == []


def test_paths_reach_keys_with_dots() -> None:
    result = {"metrics": {"val.acc": 0.9, "val": {"loss": 1}}, "a.b": 2, "plain": 3}
    assert at_path(result, "metrics.val.acc") == 0.9
    assert at_path(result, "metrics.val.loss") == 1
    assert at_path(result, "a.b") == 2
    assert at_path(result, "plain.more") is MISSING
    assert at_path(result, "") is result


def test_projections_name_every_spelling_and_never_overlap() -> None:
    assert set(_spellings("a.b.c")) == {"a.b.c", "a%2Eb.c", "a.b%2Ec", "a%2Eb%2Ec"}
    assert _spellings("a..b") == []
    assert _spellings("$a") == ["%24a"]
    assert _without_overlap(["a.b.c", "a.b", "a.bc", "x", "x"]) == ["x", "a.b", "a.bc"]


def test_outcomes_and_the_best() -> None:
    rows = [
        row(0, 2, status="ok", loss=math.nan),
        row(1, 2, status="ok", loss=0.5),
        row(2, 2, status="ok", loss=0.5),
        row(3, 2, status="fail", loss=0.1),
        row(4, 2, status="fail", loss=0.1, pruned=True),
        row(5, 3),
        row(6, 1, status="ok", loss=0.01),
        row(7, 0, status="new"),
        row(8, 2, status="ok", loss=math.inf),
    ]
    words = ["done", "done", "done", "failed", "pruned", "failed", "running", "waiting", "done"]
    assert [outcome(one) for one in rows] == words
    assert count(rows) == {"done": 4, "failed": 2, "pruned": 1, "running": 1, "waiting": 1}
    best = best_row(rows)
    assert best is not None
    assert best["tid"] == 1
    assert best_row(rows[:1]) is None


def test_json_is_strict() -> None:
    moment = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
    told = telling.as_json(
        {"nan": math.nan, "inf": [-math.inf], "at": moment, "raw": b"12345", "n": 1, "ü": True}
    )

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    assert json.loads(told, parse_constant=refuse) == {
        "nan": None,
        "inf": [None],
        "at": "2026-01-02T03:04:05+00:00",
        "raw": {"bytes": 5},
        "n": 1,
        "ü": True,
    }


def test_big_values_are_shortened() -> None:
    assert telling.brief(b"x" * 2_500_000) == "<2.5 MB of bytes>"
    assert (
        telling.brief({REF: 1, "size": 3_000_000_000, "sha256": "", "holds": "bytes"}) == "<3 GB in GridFS>"
    )
    assert len(telling.brief(list(range(100_000)))) < 90
    assert "100000 items" in telling.brief(list(range(100_000)))
    assert len(telling.brief({str(i): "word " * 100 for i in range(1000)})) <= 70
    assert telling.brief("a\n b") == "a b"


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, ""), (0.1234, "0.123 s"), (75.0, "75 s"), (125.4, "2 min 5 s"), (12000.0, "3 h 20 min")],
)
def test_durations_for_people(value: float | None, text: str) -> None:
    assert telling.seconds(value) == text


@pytest.mark.parametrize(
    ("low", "high"), [(-5.2, 0.1), (-1.4, 0.3), (0.0, 0.01), (-300.0, 300.0), (2.0, 2.2)]
)
def test_logarithmic_ticks_are_few_and_inside(low: float, high: float) -> None:
    ticks = log_ticks(low, high)
    assert 2 <= len(ticks) <= 7
    assert all(low - 1e-9 <= place <= high + 1e-9 for place in ticks)
    assert len(set(ticks.values())) == len(ticks)


def test_files_appear_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    write_whole(path, b"first")
    with path.open("rb") as reader:
        write_whole(path, b"second")
        assert reader.read() == b"first"  # Who reads the old file goes on reading it.
    assert path.read_bytes() == b"second"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(UsageError, match="no folder"):
        write_whole(tmp_path / "nowhere" / "x.png", b"")
    with pytest.raises(UsageError, match="is a folder"):
        write_whole(tmp_path, b"")
    with pytest.raises(UsageError, match="cannot write"):
        write_whole(tmp_path / ("x" * 300), b"")


@pytest.mark.parametrize(("key", "name"), [("digits", "digits"), ("../a/b c", "a_b_c"), ("..", "experiment")])
def test_names_of_files(key: str, name: str) -> None:
    assert file_name(key) == name
