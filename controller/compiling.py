"""From hyperopt's graph of a search space to plain columns (`space.py`)."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

from hyperfarm.controller.space import ALWAYS, Column, Conjunction, Space
from hyperfarm.errors import UsageError

_UNIFORM = {"uniform", "quniform", "loguniform", "qloguniform"}
_LARGEST, _SMALLEST = math.log(sys.float_info.max), math.log(sys.float_info.min)
_Way = frozenset[tuple[str, int]]
_NORMAL = {"normal", "qnormal", "lognormal", "qlognormal"}


def compile_space(space: Any) -> Space:
    """Return the columns of a hyperopt space (what `Domain` takes, or its `expr`).

    Raises UsageError, naming the parameter: no parameters at all; one label for different things; bounds that are
    reversed, equal or not finite; a step that is not above 0 or wider than the range; a distribution whose
    arguments depend on other parameters, or that is not hyperopt's.
    """
    from hyperopt.pyll import as_apply

    check_has_parameters(space)
    found: dict[str, _Found] = {}
    _walk(as_apply(space), (), found)
    order = _parents_first(found)
    options = {
        label: range(len(_column(label, one, ALWAYS).probabilities))
        for label, one in found.items()
        if one.is_choice
    }
    number_of = {label: number for number, label in enumerate(order)}
    columns = []
    for label in order:
        conditions = _simplified(found[label].conditions, options)
        numbered = (tuple(sorted((number_of[name], option) for name, option in one)) for one in conditions)
        columns.append(_column(label, found[label], tuple(sorted(numbered))))
    return Space(columns=tuple(columns))


def check_has_parameters(space: Any) -> None:
    """Raise UsageError for a hyperopt space without any: hyperopt's Domain may fail on it with an IndexError."""
    from hyperopt.pyll import as_apply, dfs

    if not any(node.name == "hyperopt_param" for node in dfs(as_apply(space))):
        raise UsageError("the space has no parameters; put at least one hp.uniform, hp.choice, ... into it")


@dataclass(kw_only=True)
class _Found:
    """A parameter met in the graph: its distribution's node, and the sets of (choice, option) on the ways to it."""

    node: Any
    conditions: set[_Way]
    is_choice: bool = False


def _walk(expr: Any, way: tuple[tuple[str, int], ...], found: dict[str, _Found]) -> None:
    if expr.name == "hyperopt_param":
        label = expr.arg["label"].obj
        entry = found.setdefault(label, _Found(node=expr.arg["obj"], conditions=set()))
        if entry.node is not expr.arg["obj"]:
            raise UsageError(f"two parameters of the space have the same name: {label}")
        entry.conditions.add(frozenset(way))
    elif expr.name == "switch":
        choice, *options = expr.inputs()
        if choice.name != "hyperopt_param" or choice.arg["obj"].name not in ("randint", "categorical"):
            raise UsageError(
                "the space switches on something that is not a choice of its own; use hp.choice or hp.pchoice"
            )
        _walk(choice, way, found)
        label = choice.arg["label"].obj
        found[label].is_choice = True
        for number, option in enumerate(options):
            if dict(way).get(label, number) == number:
                _walk(option, (*way, (label, number)), found)
    else:
        for one in expr.inputs():
            _walk(one, way, found)


def _simplified(ways: set[_Way], options: dict[str, range]) -> set[_Way]:
    """The same condition without choices that do not matter, as each of their options leads to the parameter."""
    merged: set[_Way] | None = ways
    while merged is not None:
        ways, merged = merged, _merged_once(merged, options)
    return {way for way in ways if not any(other < way for other in ways)}


def _merged_once(ways: set[_Way], options: dict[str, range]) -> set[_Way] | None:
    for way in ways:
        for name, option in way:
            rest = way - {(name, option)}
            siblings = {rest | {(name, other)} for other in options[name]}
            if siblings <= ways:
                return (ways - siblings) | {rest}
    return None


def _parents_first(found: dict[str, _Found]) -> list[str]:
    """The labels, in their order, but each behind all choices that decide on it."""
    parents = {label: {name for way in one.conditions for name, _ in way} for label, one in found.items()}
    order: list[str] = []
    waiting = list(parents)
    while waiting:
        ready = next(label for label in waiting if parents[label] <= set(order))
        order.append(ready)
        waiting.remove(ready)
    return order


def _column(label: str, found: _Found, conditions: tuple[Conjunction, ...]) -> Column:
    node, is_choice = found.node, found.is_choice
    arguments = arguments_of(label, node)
    if node.name == "categorical":
        return _choice(label, np.ravel(arguments["p"]), conditions)
    if node.name == "randint":
        return _randint(label, arguments, is_choice, conditions)
    if node.name not in _UNIFORM | _NORMAL:
        raise UsageError(f"{label}: {node.name!r} is none of hyperopt's distributions")
    numbers = {name: _number(label, name, value) for name, value in arguments.items()}
    q = numbers.get("q")
    if q is not None and not q > 0:
        raise UsageError(f"{label}: the step q is {q:g}; it must be above 0")
    if node.name in _NORMAL:
        if not numbers["sigma"] > 0:
            raise UsageError(f"{label}: sigma is {numbers['sigma']:g}; it must be above 0")
        return Column(
            label=label,
            distribution=node.name,
            mu=numbers["mu"],
            sigma=numbers["sigma"],
            q=q,
            conditions=conditions,
        )
    low, high = numbers["low"], numbers["high"]
    if not low < high:
        raise UsageError(f"{label}: its range goes from {low:g} to {high:g}; the first must be the smaller")
    if "log" in node.name and high > _LARGEST:
        raise UsageError(
            f"{label}: its range goes up to exp({high:g}), more than a number can be; {node.name} takes the "
            "logarithms of the bounds"
        )
    if "log" in node.name and q is None and low < _SMALLEST:
        raise UsageError(
            f"{label}: its range goes down to exp({low:g}), less than a number can be; {node.name} takes the "
            "logarithms of the bounds"
        )
    if not math.isfinite(high - low):
        raise UsageError(f"{label}: its range, from {low:g} to {high:g}, is wider than a number can be")
    width = math.exp(high) - math.exp(low) if "log" in node.name else high - low
    if q is not None and q > width:
        raise UsageError(f"{label}: the step q is {q:g}, wider than the whole range ({width:g})")
    return Column(label=label, distribution=node.name, low=low, high=high, q=q, conditions=conditions)


def arguments_of(label: str, node: Any) -> dict[str, Any]:
    """The evaluated arguments of a distribution, by name.

    Raises UsageError when one of them depends on another parameter.
    """
    from hyperopt.pyll import dfs, rec_eval
    from hyperopt.pyll.base import MissingArgument

    arguments = {}
    for name, value in node.arg.items():
        if name in ("rng", "size") or value is MissingArgument:
            continue
        if any(one.name == "hyperopt_param" for one in dfs(value)):
            raise UsageError(f"{label}: its {name} depends on another parameter; that is not supported")
        arguments[name] = rec_eval(value)
    return arguments


def _number(label: str, name: str, value: Any) -> float:
    wrong = f"{label}: its {name} is {value!r:.80}; it must be a number"
    if isinstance(value, (str, bytes)):
        raise UsageError(wrong)
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise UsageError(wrong) from error
    if not math.isfinite(number):
        raise UsageError(f"{label}: its {name} is {number}; it must be finite")
    return number


def _choice(label: str, probabilities: Any, conditions: tuple[Conjunction, ...]) -> Column:
    p = [_number(label, "probability", one) for one in probabilities]
    if any(one < 0 for one in p) or not math.isclose(sum(p), 1.0, abs_tol=1e-6):
        raise UsageError(f"{label}: its probabilities are {p}; they must be 0 or more and add up to 1")
    total = sum(p)
    return Column(
        label=label,
        distribution="categorical",
        probabilities=tuple(one / total for one in p),
        conditions=conditions,
    )


def _randint(
    label: str, arguments: dict[str, Any], is_choice: bool, conditions: tuple[Conjunction, ...]
) -> Column:
    low, high = arguments["low"], arguments.get("high")
    if high is None:
        low, high = 0, low
    first, end = _number(label, "low", low), _number(label, "high", high)
    if is_choice and first == end:
        raise UsageError(f"{label}: it has no options")
    if not first < end:
        raise UsageError(f"{label}: its range goes from {first:g} to {end:g}; the first must be the smaller")
    if is_choice:
        return _choice(label, [1 / (end - first)] * int(end - first), conditions)
    return Column(
        label=label,
        distribution="randint",
        low=first - 0.5,
        high=end - 0.5,
        q=1.0,
        conditions=conditions,
    )
