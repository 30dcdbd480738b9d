"""Compiles rewritten code as if it stood where the original stands: same file, lines, globals and closure."""

from __future__ import annotations

import ast
import contextlib
import types
from collections.abc import Collection
from typing import Any

from hyperfarm.syntax import parse
from hyperfarm.template_find import Definition
from hyperfarm.template_source import Source

_FRAME = """
def outer():
    def maker():
        pass
    return maker
"""


def compiled(source: Source, node: Definition | ast.expr, wires: Collection[str]) -> types.FunctionType:
    """Return a function without arguments that defines `node` anew and returns it (or evaluates it).

    The names in `wires` become variables of its closure, which are still empty; all others mean what they mean in
    `source`. Python's own rules of scope decide which uses of a name in `node` are meant.
    """
    tree = parse(_FRAME)
    outer = tree.body[0]
    assert isinstance(outer, ast.FunctionDef)
    maker = outer.body[0]
    assert isinstance(maker, ast.FunctionDef)
    for one in ast.walk(tree):
        ast.copy_location(one, node)
    enclosing = [*wires, *(name for name in source.cells if name not in wires)]
    outer.args.args = [ast.copy_location(ast.arg(arg=name), node) for name in enclosing]
    if isinstance(node, ast.expr):
        maker.body = [ast.copy_location(ast.Return(value=node), node)]
    else:
        made = ast.copy_location(ast.Name(id=node.name, ctx=ast.Load()), node)
        maker.body = [node, ast.copy_location(ast.Return(value=made), node)]
    code = compile(tree, source.path, "exec", flags=source.flags, dont_inherit=True)
    code = _nested(_nested(code, "outer"), "maker")
    closure = tuple(types.CellType() if name in wires else source.cells[name] for name in code.co_freevars)
    return types.FunctionType(code, source.namespace, source.name, None, closure)


def evaluate(source: Source, node: ast.expr) -> Any:
    """Return the value of an expression where the definition stands, but outside of it.

    What the file imports anywhere is known too, also inside functions. Raises what evaluating it raises.
    """
    code = compile(ast.Expression(body=node), source.path, "eval", flags=source.flags, dont_inherit=True)
    known = dict(source.namespace)
    for name, cell in source.cells.items():
        with contextlib.suppress(ValueError):  # Still empty.
            known[name] = cell.cell_contents
    while True:
        try:
            return eval(code, known)
        except NameError as error:
            if error.name is None or error.name in known or not _import(source, error.name, known):
                raise


def _import(source: Source, name: str, known: dict[str, Any]) -> bool:
    """Carry out the import, inside some function of the file, that gives `name` a meaning; False without one."""
    for node in ast.walk(parse(source.text)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                bound = alias.asname or (
                    alias.name.partition(".")[0] if isinstance(node, ast.Import) else alias.name
                )
                if bound == name:
                    node.names = [alias]
                    exec(compile(ast.Module(body=[node], type_ignores=[]), source.path, "exec"), known)
                    return True
    return False


def _nested(code: types.CodeType, name: str) -> types.CodeType:
    return next(one for one in code.co_consts if isinstance(one, types.CodeType) and one.co_name == name)
