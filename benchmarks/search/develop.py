"""The half of the problems to develop on."""

from __future__ import annotations

import itertools
from math import cos, log, log2, log10
from typing import Any

from hyperopt import hp

from benchmarks.search import functions, real
from benchmarks.search.problems import Point, Problem

_SHIFTS = (1.7, -2.3, 0.9, 3.1, -1.2, -3.4, 2.6, -0.6, 1.3, -2.9)
"""Where the rugged problem has its optimum."""
_RUGGED = [f"dev_rugged_{i}" for i in range(10)]
_HARTMANN = [f"dev_valley_{i}" for i in range(6)]
_NOISY = [f"dev_noisy_{i}" for i in range(4)]


def problems() -> list[Problem]:
    """One of each kind."""
    return [
        Problem(
            name="dev-smooth",
            kind="smooth",
            half="dev",
            space={"x": hp.uniform("dev_smooth_x", -5, 10), "y": hp.uniform("dev_smooth_y", 0, 15)},
            value=lambda p: functions.branin(p["x"], p["y"]),
            best=functions.BRANIN_BEST,
        ),
        Problem(
            name="dev-valley",
            kind="valley",
            half="dev",
            space={name: hp.uniform(name, 0, 1) for name in _HARTMANN},
            value=lambda p: functions.hartmann6([p[name] for name in _HARTMANN]),
            best=functions.HARTMANN6_BEST,
        ),
        Problem(
            name="dev-rugged",
            kind="rugged",
            half="dev",
            space={name: hp.uniform(name, -5.12, 5.12) for name in _RUGGED},
            value=lambda p: functions.rastrigin(
                [p[name] - s for name, s in zip(_RUGGED, _SHIFTS, strict=True)]
            ),
        ),
        Problem(
            name="dev-noisy",
            kind="noisy",
            half="dev",
            space={name: hp.uniform(name, -5, 5) for name in _NOISY},
            value=lambda p: functions.styblinski([p[name] for name in _NOISY]),
            best=4 * functions.STYBLINSKI_BEST,
            noise=10.0,
        ),
        _mixed(),
        _finite(),
        Problem(
            name="dev-log",
            kind="log",
            half="dev",
            space={
                "rate": hp.loguniform("dev_log_rate", log(1e-6), log(1)),
                "decay": hp.loguniform("dev_log_decay", log(1e-9), log(1e-1)),
                "scale": hp.loguniform("dev_log_scale", log(1e-3), log(1e4)),
            },
            value=_log,
        ),
        _conditional(),
        _nested(),
        real.problem("dev"),
    ]


def _log(p: Point) -> float:
    """Zero at rate 10^-3.5, decay 10^-5.7, scale 10^1.2; rate and decay make up for each other."""
    rate, decay, scale = log10(p["rate"]) + 3.5, log10(p["decay"]) + 5.7, log10(p["scale"]) - 1.2
    return (
        0.1 * rate**2 + 0.4 * (decay + 0.6 * rate) ** 2 + 0.5 * abs(scale) ** 1.5 + 0.1 * (1 - cos(3 * rate))
    )


_ACTIVATIONS = {"relu": 0.0, "tanh": 0.2, "elu": 0.05}
_BATCHES = {16: 0.15, 32: 0.05, 64: 0.0, 128: 0.03, 256: 0.25}


def _mixed() -> Problem:
    def shape(layers: int, units: float, activation: str, batch: int) -> float:
        size = log2(layers * units)
        return (
            0.15 * (size - 9.3) ** 2
            + _ACTIVATIONS[activation] * (1 + 0.3 * layers)
            + _BATCHES[batch]
            + 0.05 * abs(layers - 4)
        )

    def value(p: Point) -> float:
        """Rate and dropout can always be right (a term of zero), whatever the shape."""
        layers, units, batch = p["layers"], p["units"], p["batch"]
        rate = log10(p["rate"]) + 2.2 + 0.25 * (layers - 3) - 0.3 * log2(batch / 64)
        dropout = p["dropout"] - 0.05 * min(max(log2(layers * units) - 5, 0), 6) - 0.07
        return 0.5 * rate**2 + 4 * dropout**2 + shape(layers, units, p["activation"], batch)

    layers, units = range(1, 7), [16.0 * i for i in range(1, 17)]
    shapes = itertools.product(layers, units, _ACTIVATIONS, _BATCHES)
    return Problem(
        name="dev-mixed",
        kind="mixed",
        half="dev",
        space={
            "layers": hp.randint("dev_mixed_layers", 1, 7),
            "units": hp.quniform("dev_mixed_units", 16, 256, 16),
            "activation": hp.choice("dev_mixed_activation", list(_ACTIVATIONS)),
            "batch": hp.choice("dev_mixed_batch", list(_BATCHES)),
            "rate": hp.loguniform("dev_mixed_rate", log(1e-5), log(1)),
            "dropout": hp.uniform("dev_mixed_dropout", 0, 0.8),
        },
        value=value,
        best=min(shape(*found) for found in shapes),
    )


def _finite() -> Problem:
    table = functions.Factorial(sizes=(8, 6, 10, 5, 4, 3), ordered=(0, 2, 3), seed=11)
    space: dict[str, Any] = {
        "a": hp.quniform("dev_finite_a", 0, 35, 5),
        "b": hp.choice("dev_finite_b", [0, 1, 2, 3, 4, 5]),
        "c": hp.randint("dev_finite_c", 10),
        "d": hp.uniformint("dev_finite_d", 0, 4),
        "e": hp.choice("dev_finite_e", [0, 1, 2, 3]),
        "f": hp.choice("dev_finite_f", [0, 1, 2]),
    }
    return Problem(
        name="dev-finite",
        kind="finite",
        half="dev",
        space=space,
        value=lambda p: table((round(p["a"] / 5), p["b"], p["c"], p["d"], p["e"], p["f"])),
        best=table.best,
    )


def _conditional() -> Problem:
    def value(p: Point) -> float:
        """Zero in the narrow second branch at rate 10^-2, share 0.3, rule 'b'."""
        p = p["branch"]
        if p["is"] == "plane":
            return (functions.branin(p["x"], p["y"]) - functions.BRANIN_BEST) / 10 + 0.1
        if p["is"] == "rule":
            penalty = {"a": 0.3, "b": 0.0, "c": 0.6}[p["rule"]]
            return 0.5 * (log10(p["rate"]) + 2) ** 2 + 8 * (p["share"] - 0.3) ** 2 + penalty
        u, v, w, z = p["u"], p["v"], p["w"], p["z"]
        return (u - 0.4) ** 2 + (v + u - 0.3) ** 2 + (w - v) ** 2 + (z - 0.6) ** 2 + 0.03

    return Problem(
        name="dev-conditional",
        kind="conditional",
        half="dev",
        space={
            "branch": hp.choice(
                "dev_cond_branch",
                [
                    {
                        "is": "plane",
                        "x": hp.uniform("dev_cond_x", -5, 10),
                        "y": hp.uniform("dev_cond_y", 0, 15),
                    },
                    {
                        "is": "rule",
                        "rate": hp.loguniform("dev_cond_rate", log(1e-4), 0),
                        "share": hp.uniform("dev_cond_share", 0, 1),
                        "rule": hp.choice("dev_cond_rule", ["a", "b", "c"]),
                    },
                    {"is": "sum", **{name: hp.uniform(f"dev_cond_{name}", -1, 1) for name in "uvwz"}},
                ],
            )
        },
        value=value,
    )


def _nested() -> Problem:
    def value(p: Point) -> float:
        """Zero at a net with momentum, rate 10^-1.3, momentum 0.85, warm-up over 0.2, scale 0.62."""
        model, shared = p["model"], 2 * (p["scale"] - 0.62) ** 2
        if model["is"] == "linear":
            return shared + 0.3 + 0.05 * (log10(model["penalty"]) + 1.5) ** 2
        if model["is"] == "trees":
            rule = model["rule"]
            if rule["is"] == "depth":
                return shared + 0.08 + 0.02 * (rule["depth"] - 7) ** 2
            return shared + 0.12 + 0.1 * (log2(rule["leaves"]) - 4 - p["scale"]) ** 2
        solver = model["solver"]
        width = 0.03 * (log2(model["width"]) - 6) ** 2
        rate = log10(solver["rate"])
        if solver["is"] == "adam":
            return shared + width + 0.05 + 0.3 * (rate + 3) ** 2
        momentum = 6 * (solver["momentum"] - 0.85) ** 2
        rate_is_off = 0.4 * (rate + 1.3 + 2 * (solver["momentum"] - 0.85)) ** 2
        plan = solver["plan"]
        late = 0.1 if plan["is"] == "constant" else 3 * (plan["warm_up"] - 0.2) ** 2
        return shared + width + momentum + rate_is_off + late

    plan = hp.choice(
        "dev_nest_plan",
        [{"is": "constant"}, {"is": "warm-up", "warm_up": hp.uniform("dev_nest_warm_up", 0, 1)}],
    )
    solver = hp.choice(
        "dev_nest_solver",
        [
            {"is": "adam", "rate": hp.loguniform("dev_nest_adam_rate", log(1e-5), 0)},
            {
                "is": "momentum",
                "rate": hp.loguniform("dev_nest_sgd_rate", log(1e-5), 0),
                "momentum": hp.uniform("dev_nest_momentum", 0, 1),
                "plan": plan,
            },
        ],
    )
    rule = hp.choice(
        "dev_nest_rule",
        [
            {"is": "depth", "depth": hp.uniformint("dev_nest_depth", 1, 12)},
            {"is": "leaves", "leaves": hp.quniform("dev_nest_leaves", 4, 128, 4)},
        ],
    )
    model = hp.choice(
        "dev_nest_model",
        [
            {"is": "linear", "penalty": hp.loguniform("dev_nest_penalty", log(1e-6), log(1e3))},
            {"is": "trees", "rule": rule},
            {"is": "net", "width": hp.quniform("dev_nest_width", 8, 256, 8), "solver": solver},
        ],
    )
    return Problem(
        name="dev-nested",
        kind="nested",
        half="dev",
        space={"model": model, "scale": hp.uniform("dev_nest_scale", 0, 1)},
        value=value,
    )
