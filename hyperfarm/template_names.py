"""How parameters are named: after what a template is given to, numbered when a name comes again."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hyperfarm.template_find import Template

NAMELESS = "conditional"
"""The name of a template that has nothing to be named after, with none before it whose name it could share."""


def assign_names(functions: Iterable[Sequence[Template]]) -> dict[Template, str]:
    """Return the parameter's name for each template of the functions (the model first, in the text's order).

    The second `Dropout` is `Dropout_1`. A template in a condition is named after the one before it in the same
    function, options of choices apart. No two have the same name.
    """
    names: dict[Template, str] = {}
    taken: set[str] = set()
    for templates in functions:
        before = NAMELESS
        for template in templates:
            named = template.raw_name or before
            before = before if template.is_inner else named
            wanted = template.label or named
            name, number = wanted, 0
            while name in taken:
                number += 1
                name = f"{wanted}_{number}"
            taken.add(name)
            names[template] = name
    return names


def named_after(way: Sequence[ast.AST]) -> str | None:
    """What the last node of `way` (from the top of a function down to it) is given to.

    That is the nearest of: keyword of a call, function that is called, variable that is assigned, key of a
    dict, argument whose default it is, function that returns it. None if the statement has none of them.
    """
    for place in range(len(way) - 2, -1, -1):
        name = _name_from(way, place)
        if name is not None:
            return name
        if isinstance(way[place], ast.Return):
            functions = [one.name for one in way[:place] if isinstance(one, ast.FunctionDef)]
            return functions[-1] if len(functions) else None
        if isinstance(way[place], ast.stmt):
            return None
    return None


def _name_from(way: Sequence[ast.AST], place: int) -> str | None:
    """The name that the node at `place` gives to the one below it."""
    node, child = way[place], way[place + 1]
    if isinstance(node, ast.keyword):
        return node.arg
    if isinstance(node, ast.Call):
        return _last(node.func) if child in node.args else None
    if isinstance(node, ast.Assign):
        return _assigned(node, way, place)
    if isinstance(node, ast.AnnAssign | ast.AugAssign | ast.NamedExpr):
        return _target(node.target) if child is node.value else None
    if isinstance(node, ast.Dict):
        for key, value in zip(node.keys, node.values, strict=True):
            if value is child:
                return _key(key)
    if isinstance(node, ast.arguments):
        return _defaulted(node, child)
    return None


def _assigned(node: ast.Assign, way: Sequence[ast.AST], place: int) -> str | None:
    target, value = node.targets[-1], node.value
    if way[place + 1] is not value:
        return None
    if isinstance(target, ast.Tuple | ast.List):
        pairs = value.elts if isinstance(value, ast.Tuple | ast.List) else []
        if len(pairs) == len(target.elts) and place + 2 < len(way):
            for one, given in zip(target.elts, pairs, strict=True):
                if given is way[place + 2]:
                    return _target(one)
        return None
    return _target(target)


def _defaulted(node: ast.arguments, child: ast.AST) -> str | None:
    positional = [*node.posonlyargs, *node.args]
    behind = positional[len(positional) - len(node.defaults) :]
    pairs = [*zip(behind, node.defaults, strict=True), *zip(node.kwonlyargs, node.kw_defaults, strict=True)]
    return next((argument.arg for argument, default in pairs if default is child), None)


def _target(node: ast.expr) -> str | None:
    if isinstance(node, ast.Subscript):
        return _key(node.slice) or _target(node.value)
    return _last(node)


def _last(node: ast.expr) -> str | None:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else None


def _key(node: ast.expr | None) -> str | None:
    is_name = isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier()
    return str(node.value) if is_name and isinstance(node, ast.Constant) else None
