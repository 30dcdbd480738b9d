"""The benchmarks run and print their rows; no speed is asserted, and hyperopt 0.2.7 is left out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.table import Row, as_markdown

ROOT = Path(__file__).parents[2]


def test_quick_run_prints_and_writes_every_row(tmp_path: Path) -> None:
    out = tmp_path / "results" / "quick"
    command = [sys.executable, "-m", "benchmarks", "--quick", "--no-peer", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr
    written = json.loads(out.with_suffix(".json").read_text())["rows"]
    names = [row["name"] for row in written]
    for part in ("random search", "TPE trial", "trials of 0.2 s", "memory", "refresh", "--help"):
        assert any(part in name for name in names), part
    markdown = out.with_suffix(".md").read_text()
    assert all(name in done.stdout and name in markdown for name in names)
    assert all(row["median"] > 0 and not row["theirs"] for row in written)


def test_a_row_compares_and_judges() -> None:
    faster = Row(
        name="speed",
        unit="/s",
        ours=[400, 500, 300],
        theirs=[100, 100, 50],
        more_is_better=True,
        least_ratio=4,
    )
    assert faster.ratio == 4
    assert faster.pair_ratios == [4, 5, 6]
    assert faster.verdict == "ok"
    slower = Row(name="time", unit="ms", ours=[60, 40, 70], theirs=[30, 30, 30], most=50)
    assert slower.ratio == 0.5
    assert slower.verdict == "MISSED"
    assert "| 60 [40 to 70] n=3 | 30 [30 to 30] n=3 |" in as_markdown([slower])


def test_without_the_other_side_there_is_no_verdict_on_a_ratio() -> None:
    alone = Row(name="speed", unit="/s", ours=[400], more_is_better=True, least_ratio=4)
    assert alone.verdict == ""
    assert alone.ratio is None
