"""A hyperopt space as a small tree that several samplers can walk, without hyperopt's interpreter.

Known: dicts, constants, hp.uniform, loguniform, quniform, uniformint, randint and choice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hyperopt.pyll import as_apply


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One label. `low` and `high` are hyperopt's arguments (natural logarithms for loguniform; high excluded
    for randint); `quantum` is 0 for what is not quantised; `whole` says that the value becomes an int."""

    label: str
    kind: str
    low: float
    high: float
    quantum: float = 0.0
    whole: bool = False


@dataclass(frozen=True, kw_only=True)
class Choice:
    """hp.choice: the parameter's value is the index of the option taken."""

    parameter: Parameter
    options: tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class Constant:
    value: Any


Tree = dict[str, Any] | Choice | Parameter | Constant
Draw = Callable[[Parameter], Any]


def compiled(space: Any) -> Tree:
    """The tree of a space. Raises ValueError for a node that is not known here."""
    return _tree(as_apply(space), whole=False)


def _tree(node: Any, *, whole: bool) -> Tree:
    if node.name == "literal":
        return Constant(value=node.obj)
    if node.name == "dict":
        return {key: _tree(child, whole=False) for key, child in node.named_args}
    if node.name == "switch":
        index, *options = node.pos_args
        parameter = _parameter(index, whole=True, kind="choice")
        return Choice(parameter=parameter, options=tuple(_tree(option, whole=False) for option in options))
    if node.name in ("int", "float"):
        return _tree(node.pos_args[0], whole=whole or node.name == "int")
    if node.name == "hyperopt_param":
        return _parameter(node, whole=whole)
    raise ValueError(f"{node.name} is not known to the benchmarks' spaces")


def _parameter(node: Any, *, whole: bool, kind: str | None = None) -> Parameter:
    label, distribution = (child for child in node.pos_args)
    if distribution.name not in ("uniform", "loguniform", "quniform", "randint"):
        raise ValueError(f"{distribution.name} is not known to the benchmarks' spaces")
    numbers = [child.obj for child in distribution.pos_args]
    if len(numbers) == 1:
        numbers = [0, *numbers]
    named = {key: child.obj for key, child in distribution.named_args}
    quantum = named.get("q", numbers[2] if len(numbers) > 2 else 0.0)
    return Parameter(
        label=label.obj,
        kind=kind or distribution.name,
        low=numbers[0],
        high=numbers[1],
        quantum=quantum,
        whole=whole,
    )


def point(tree: Tree, draw: Draw) -> Any:
    """The evaluated space; `draw` is asked only for the parameters of the options taken."""
    if isinstance(tree, Constant):
        return tree.value
    if isinstance(tree, dict):
        return {key: point(child, draw) for key, child in tree.items()}
    if isinstance(tree, Choice):
        return point(tree.options[int(draw(tree.parameter))], draw)
    value = draw(tree)
    return int(value) if tree.whole else float(value)


def parameters(tree: Tree) -> list[Parameter]:
    """All parameters, also those of options that exclude each other."""
    if isinstance(tree, dict):
        return [found for child in tree.values() for found in parameters(child)]
    if isinstance(tree, Choice):
        return [tree.parameter, *(found for option in tree.options for found in parameters(option))]
    return [tree] if isinstance(tree, Parameter) else []
