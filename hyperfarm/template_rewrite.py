"""Rewrites code with templates into the same code without them, on the same lines. Pure."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hyperfarm.syntax import parse
from hyperfarm.template_find import CHOICES, Template, options_argument

POINT_NAME = "space"
CHOSEN_NAME = "chosen"


def rewrite(
    node: Any, names: Mapping[Template, str], *, point: str = POINT_NAME, chosen: str = CHOSEN_NAME
) -> Any:
    """Return a copy of a syntax tree that reads parameters where the templates stood.

    A template becomes `space['name']`. A choice whose options are more than constants becomes
    `chosen(space['name'], lambda: ..., lambda: ...)`: an option is evaluated when and where it is needed.
    """
    return _Rewriter(names, point, chosen).copy(node)


def as_hyperopt(template: Template, names: Mapping[Template, str]) -> ast.expr:
    """Return `hp.uniform('name', ...)` for a template, as hyperopt would have it written."""
    made: ast.expr = _Speller(names).copy(template.node)
    return made


def is_constant(node: ast.expr) -> bool:
    """True for an expression that is the same wherever it is evaluated: literals, and what is made of them."""
    if isinstance(node, ast.Tuple | ast.List):
        return all(map(is_constant, node.elts))
    if isinstance(node, ast.Dict):
        return all(key is not None and is_constant(key) for key in node.keys) and all(
            map(is_constant, node.values)
        )
    if isinstance(node, ast.BinOp):
        return is_constant(node.left) and is_constant(node.right)
    if isinstance(node, ast.UnaryOp):
        return is_constant(node.operand)
    return isinstance(node, ast.Constant)


def own_nodes(definition: ast.AST) -> Iterable[ast.AST]:
    """All nodes of a function, without those of the functions and classes inside it."""
    for child in ast.iter_child_nodes(definition):
        yield child
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            yield from own_nodes(child)


def free_name(wanted: str, node: ast.AST) -> str:
    """`wanted`, with as many underscores behind it as it takes to be no name that the code uses."""
    used = {one.id for one in ast.walk(node) if isinstance(one, ast.Name)}
    used |= {one.arg for one in ast.walk(node) if isinstance(one, ast.arg)}
    while wanted in used:
        wanted += "_"
    return wanted


def thunk(body: ast.expr, arguments: Sequence[str] = ()) -> ast.Lambda:
    """`lambda arguments: body`, in the place of `body`."""
    taken = [ast.arg(arg=name) for name in arguments]
    made = ast.Lambda(
        args=ast.arguments(posonlyargs=[], args=taken, kwonlyargs=[], kw_defaults=[], defaults=[]), body=body
    )
    return ast.fix_missing_locations(ast.copy_location(made, body))


def _second_ones(pairs: ast.expr) -> ast.expr:
    """`[pair[1] for pair in pairs]`: the options of a pchoice."""
    statement = parse("[pair[1] for pair in None]").body[0]
    assert isinstance(statement, ast.Expr)
    made = statement.value
    assert isinstance(made, ast.ListComp)
    made.generators[0].iter = pairs
    for node in ast.walk(made):  # It stands in the place of `pairs`, not on line 1.
        ast.copy_location(node, pairs)
    return made


class _Rewriter:
    """Copies a tree, so that the one with the templates stays for the search space."""

    def __init__(
        self, names: Mapping[Template, str], point: str = POINT_NAME, chosen: str = CHOSEN_NAME
    ) -> None:
        self._names = {id(template.node): (template, name) for template, name in names.items()}
        self._point, self._chosen = point, chosen

    def copy(self, node: Any) -> Any:
        if isinstance(node, list):
            return [self.copy(one) for one in node]
        if not isinstance(node, ast.AST):
            return node
        if id(node) in self._names:
            made = ast.copy_location(self._instead(*self._names[id(node)]), node)
            return ast.fix_missing_locations(made)
        fields = {name: self.copy(value) for name, value in ast.iter_fields(node)}
        return ast.copy_location(type(node)(**fields), node)

    def _instead(self, template: Template, name: str) -> ast.expr:
        value = ast.Subscript(
            value=ast.Name(id=self._point, ctx=ast.Load()), slice=ast.Constant(value=name), ctx=ast.Load()
        )
        if template.distribution not in CHOICES:
            return value
        if template.options is None:
            whole = options_argument(template.call)
            assert whole is not None
            if is_constant(whole):
                return value
            many = _second_ones(self.copy(whole)) if template.distribution == "pchoice" else self.copy(whole)
            return self._choosing(value, [], [ast.keyword(arg="many", value=thunk(many))])
        if all(is_constant(option.node) for option in template.options):
            return value
        options = [
            ast.Constant(value=None) if is_constant(option.node) else thunk(self.copy(option.node))
            for option in template.options
        ]
        return self._choosing(value, options, [])

    def _choosing(
        self, value: ast.expr, options: Sequence[ast.expr], keywords: list[ast.keyword]
    ) -> ast.expr:
        name = ast.Name(id=self._chosen, ctx=ast.Load())
        return ast.Call(func=name, args=[value, *options], keywords=keywords)


class _Speller(_Rewriter):
    """Copies a tree with calls of hyperopt in the place of templates."""

    def _instead(self, template: Template, name: str) -> ast.expr:
        home = ast.Name(id="hp", ctx=ast.Load())
        function = ast.Attribute(value=home, attr=template.distribution, ctx=ast.Load())
        call = template.call
        return ast.Call(
            func=function,
            args=[ast.Constant(value=name), *self.copy(call.args)],
            keywords=self.copy(call.keywords),
        )
