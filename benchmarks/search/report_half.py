"""The half of the problems that is only looked at for the report."""

from __future__ import annotations

import itertools
from math import cos, log, log2, log10
from typing import Any

from hyperopt import hp

from benchmarks.search import functions, real
from benchmarks.search.problems import Point, Problem

_SHIFTS = (2.1, -3.7, 5.2, 0.8, -1.9, 6.3, -6.6, 3.4, -4.8, 1.1, 4.3, -0.7, -5.9, 2.8, -2.6, 7.0)
"""Where the rugged problem has its optimum."""
_RUGGED = [f"rep_rugged_{i}" for i in range(16)]
_VALLEY = [f"rep_valley_{i}" for i in range(5)]
_NOISY = [f"rep_noisy_{i}" for i in range(3)]


def problems() -> list[Problem]:
    """One of each kind."""
    return [
        Problem(
            name="rep-smooth",
            kind="smooth",
            half="report",
            space={"x": hp.uniform("rep_smooth_x", -2.5, 3), "y": hp.uniform("rep_smooth_y", -1.5, 2)},
            value=lambda p: functions.camel(p["x"], p["y"]),
            best=functions.CAMEL_BEST,
        ),
        Problem(
            name="rep-valley",
            kind="valley",
            half="report",
            space={name: hp.uniform(name, -1.5, 2) for name in _VALLEY},
            value=lambda p: functions.rosenbrock([p[name] for name in _VALLEY]),
        ),
        Problem(
            name="rep-rugged",
            kind="rugged",
            half="report",
            space={name: hp.uniform(name, -12, 12) for name in _RUGGED},
            value=lambda p: functions.ackley([p[name] - s for name, s in zip(_RUGGED, _SHIFTS, strict=True)]),
        ),
        Problem(
            name="rep-noisy",
            kind="noisy",
            half="report",
            space={name: hp.uniform(name, 0, 1) for name in _NOISY},
            value=lambda p: functions.hartmann3([p[name] for name in _NOISY]),
            best=functions.HARTMANN3_BEST,
            noise=0.25,
        ),
        _mixed(),
        _finite(),
        Problem(
            name="rep-log",
            kind="log",
            half="report",
            space={
                "cost": hp.loguniform("rep_log_cost", log(1e-4), log(1e6)),
                "width": hp.loguniform("rep_log_width", log(1e-7), log(1e2)),
                "ridge": hp.loguniform("rep_log_ridge", log(1e-10), log(1)),
                "step": hp.loguniform("rep_log_step", log(1e-5), log(10)),
            },
            value=_log,
        ),
        _conditional(),
        _nested(),
        real.problem("report"),
    ]


def _log(p: Point) -> float:
    """Zero at cost 10^3.3, width 10^-4.4, ridge 10^-2.8, step 10^-1.1; cost times width is what matters most."""
    cost, width = log10(p["cost"]) - 3.3, log10(p["width"]) + 4.4
    ridge, step = log10(p["ridge"]) + 2.8, log10(p["step"]) + 1.1
    wave = 0.1 * (1 - cos(2 * step))
    return 0.06 * cost**2 + 0.3 * (cost + width) ** 2 + 0.1 * ridge**2 + 0.3 * abs(step) ** 1.5 + wave


_BOOSTERS = {"plain": 0.1, "dropping": 0.0, "linear": 0.6}
_LOSSES = {"squared": 0.08, "huber": 0.0, "absolute": 0.2, "quantile": 0.4}


def _mixed() -> Problem:
    def shape(depth: float, trees: int, columns: int, booster: str, loss: str) -> float:
        crowded = 0.05 * (log2(trees) - 7.3) ** 2 + 0.03 * (depth - 5 - (columns - 4) / 4) ** 2
        return crowded + 0.02 * abs(columns - 8) + _BOOSTERS[booster] + _LOSSES[loss]

    def value(p: Point) -> float:
        """Rate, penalty and subsample can always be right (terms of zero), whatever the shape."""
        rate = log10(p["rate"]) + log2(p["trees"]) / 4 - 0.6
        penalty = log10(p["penalty"]) - 0.15 * (p["depth"] - 8)
        subsample = p["subsample"] - 0.85 + 0.02 * p["columns"]
        fitted = 0.5 * rate**2 + 0.06 * (penalty - 0.5 * rate) ** 2 + 3 * subsample**2
        return fitted + shape(p["depth"], p["trees"], p["columns"], p["booster"], p["loss"])

    depths, trees = [float(depth) for depth in range(2, 17)], range(10, 301)
    shapes = itertools.product(depths, trees, range(12), ["dropping"], ["huber"])
    return Problem(
        name="rep-mixed",
        kind="mixed",
        half="report",
        space={
            "depth": hp.quniform("rep_mixed_depth", 2, 16, 1),
            "trees": hp.uniformint("rep_mixed_trees", 10, 300),
            "columns": hp.randint("rep_mixed_columns", 12),
            "booster": hp.choice("rep_mixed_booster", list(_BOOSTERS)),
            "loss": hp.choice("rep_mixed_loss", list(_LOSSES)),
            "rate": hp.loguniform("rep_mixed_rate", log(1e-4), log(1)),
            "penalty": hp.loguniform("rep_mixed_penalty", log(1e-5), log(1e3)),
            "subsample": hp.uniform("rep_mixed_subsample", 0.3, 1),
        },
        value=value,
        best=min(shape(*found) for found in shapes),
    )


def _finite() -> Problem:
    table = functions.Factorial(sizes=(7, 9, 5, 6, 7, 4), ordered=(1, 3, 4), seed=23)
    space: dict[str, Any] = {
        "a": hp.choice("rep_finite_a", [0, 1, 2, 3, 4, 5, 6]),
        "b": hp.quniform("rep_finite_b", 0, 4, 0.5),
        "c": hp.choice("rep_finite_c", [0, 1, 2, 3, 4]),
        "d": hp.randint("rep_finite_d", 6),
        "e": hp.uniformint("rep_finite_e", 0, 6),
        "f": hp.choice("rep_finite_f", [0, 1, 2, 3]),
    }
    return Problem(
        name="rep-finite",
        kind="finite",
        half="report",
        space=space,
        value=lambda p: table((p["a"], round(p["b"] / 0.5), p["c"], p["d"], p["e"], p["f"])),
        best=table.best,
    )


def _conditional() -> Problem:
    def value(p: Point) -> float:
        """Zero in the largest branch, five dimensions, at (0.15, 0.62, 0.4, 10^-1.5, 3)."""
        p = p["branch"]
        if p["is"] == "line":
            return 0.12 + 0.6 * (p["x"] - 0.7) ** 2
        if p["is"] == "hills":
            return 0.05 + (functions.camel(p["x"], p["y"]) - functions.CAMEL_BEST) / 4
        a, b, c = p["a"] - 0.15, p["b"] - 0.62, p["c"] - 0.4
        rate, count = log10(p["rate"]) + 1.5, p["count"] - 3
        return (a + b) ** 2 + 0.5 * b**2 + 2 * (c - 0.2 * rate) ** 2 + 0.1 * rate**2 + 0.02 * count**2

    return Problem(
        name="rep-conditional",
        kind="conditional",
        half="report",
        space={
            "branch": hp.choice(
                "rep_cond_branch",
                [
                    {"is": "line", "x": hp.uniform("rep_cond_line", 0, 1)},
                    {
                        "is": "hills",
                        "x": hp.uniform("rep_cond_x", -2.5, 3),
                        "y": hp.uniform("rep_cond_y", -1.5, 2),
                    },
                    {
                        "is": "large",
                        **{name: hp.uniform(f"rep_cond_{name}", 0, 1) for name in "abc"},
                        "rate": hp.loguniform("rep_cond_rate", log(1e-6), 0),
                        "count": hp.uniformint("rep_cond_count", 1, 10),
                    },
                ],
            )
        },
        value=value,
    )


def _nested() -> Problem:
    def value(p: Point) -> float:
        """Zero at a forward path of rank 6 with a smooth filter of width 10^-0.8, share 0.28, gain 10^1.5."""
        path, shared = p["path"], 0.15 * (log10(p["gain"]) - 1.5) ** 2
        if path["is"] == "direct":
            return shared + 0.25 + 0.3 * (path["mix"] - 0.5) ** 2
        if path["is"] == "backward":
            stop = path["stop"]
            if stop["is"] == "count":
                return shared + 0.06 + 0.01 * (stop["count"] - 12) ** 2
            tolerance = log10(stop["tolerance"]) + 4
            return shared + 0.04 + 0.05 * tolerance**2 + (stop["patience"] - 0.3) ** 2
        rank, sieve = 0.02 * (path["rank"] - 6) ** 2, path["sieve"]
        if sieve["is"] == "none":
            return shared + rank + 0.2
        if sieve["is"] == "hard":
            edge = sieve["edge"] - 0.5 if sieve["side"] == "left" else sieve["edge"] - 0.2
            return shared + rank + 0.07 + 2 * edge**2
        width = log10(sieve["width"]) + 0.8
        share = sieve["share"] - 0.28 - 0.1 * width
        return shared + rank + 0.15 * width**2 + 3 * share**2

    sieve = hp.choice(
        "rep_nest_sieve",
        [
            {"is": "none"},
            {
                "is": "hard",
                "edge": hp.uniform("rep_nest_edge", 0, 1),
                "side": hp.choice("rep_nest_side", ["left", "right"]),
            },
            {
                "is": "smooth",
                "width": hp.loguniform("rep_nest_width", log(1e-4), log(1e2)),
                "share": hp.uniform("rep_nest_share", 0, 1),
            },
        ],
    )
    stop = hp.choice(
        "rep_nest_stop",
        [
            {"is": "count", "count": hp.quniform("rep_nest_count", 2, 40, 2)},
            {
                "is": "tolerance",
                "tolerance": hp.loguniform("rep_nest_tolerance", log(1e-8), 0),
                "patience": hp.uniform("rep_nest_patience", 0, 1),
            },
        ],
    )
    path = hp.choice(
        "rep_nest_path",
        [
            {"is": "direct", "mix": hp.uniform("rep_nest_mix", 0, 1)},
            {"is": "backward", "stop": stop},
            {"is": "forward", "rank": hp.randint("rep_nest_rank", 1, 17), "sieve": sieve},
        ],
    )
    return Problem(
        name="rep-nested",
        kind="nested",
        half="report",
        space={"path": path, "gain": hp.loguniform("rep_nest_gain", log(1e-3), log(1e4))},
        value=value,
    )
