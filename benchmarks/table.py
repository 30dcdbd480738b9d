"""Rows of the benchmarks' table: values of both sides, a target, a verdict; as text, Markdown and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

HEADS = ("measured", "hyperfarm", "hyperopt 0.2.7", "hyperfarm is", "target", "")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measure. `ours` and `theirs` (may be empty) are the single runs; pairs ran one after the other.

    `least` and `most` bound the median of ours; `least_ratio` bounds how many times better ours is.
    """

    name: str
    unit: str
    ours: Sequence[float]
    theirs: Sequence[float] = ()
    more_is_better: bool = False
    least: float | None = None
    most: float | None = None
    least_ratio: float | None = None

    @property
    def ratio(self) -> float | None:
        """How many times better our median is than theirs."""
        if not self.ours or not self.theirs:
            return None
        ours, theirs = median(self.ours), median(self.theirs)
        return ours / theirs if self.more_is_better else theirs / ours

    @property
    def pair_ratios(self) -> list[float]:
        """The same for each pair of runs."""
        pairs = zip(self.ours, self.theirs, strict=False)
        return [ours / theirs if self.more_is_better else theirs / ours for ours, theirs in pairs]

    @property
    def target(self) -> str:
        """The target in words; empty when there is none."""
        if self.least is not None:
            return f">= {self.least:g} {self.unit}"
        if self.most is not None:
            return f"<= {self.most:g} {self.unit}"
        return f">= {self.least_ratio:g} times" if self.least_ratio is not None else ""

    @property
    def verdict(self) -> str:
        """`ok`, `MISSED`, or empty without a target or without the other side's figure."""
        if self.least is not None:
            met = median(self.ours) >= self.least
        elif self.most is not None:
            met = median(self.ours) <= self.most
        elif self.least_ratio is not None and self.ratio is not None:
            met = self.ratio >= self.least_ratio
        else:
            return ""
        return "ok" if met else "MISSED"

    def cells(self) -> tuple[str, ...]:
        """The row's texts, in the order of HEADS."""
        ratio = ""
        if self.ratio is not None:
            ratio = f"{self.ratio:.2f} times better"
            if len(self.pair_ratios) > 1 and len(self.ours) == len(self.theirs):
                ratio += f" ({min(self.pair_ratios):.2f} to {max(self.pair_ratios):.2f})"
        return (
            f"{self.name}, {self.unit}",
            spread(self.ours),
            spread(self.theirs),
            ratio,
            self.target,
            self.verdict,
        )

    def as_json(self) -> dict[str, Any]:
        """All that is known about the row."""
        return {
            "name": self.name,
            "unit": self.unit,
            "ours": list(self.ours),
            "theirs": list(self.theirs),
            "median": median(self.ours),
            "their_median": median(self.theirs) if self.theirs else None,
            "ratio": self.ratio,
            "pair_ratios": self.pair_ratios,
            "target": self.target,
            "verdict": self.verdict,
        }


def spread(values: Sequence[float]) -> str:
    """Median, smallest to largest, and how many there are."""
    if not values:
        return "-"
    return f"{_short(median(values))} [{_short(min(values))} to {_short(max(values))}] n={len(values)}"


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def as_text(rows: Sequence[Row]) -> str:
    """A table for the terminal."""
    lines = [HEADS, *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADS))]
    shown = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
    return "\n".join(line.rstrip() for line in shown)


def as_markdown(rows: Sequence[Row]) -> str:
    """The same table in Markdown."""
    lines = [HEADS, ("---",) * len(HEADS), *(row.cells() for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
