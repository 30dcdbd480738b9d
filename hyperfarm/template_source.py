"""Finds the source of functions and classes: in their file, in a notebook's cells, in its history."""

from __future__ import annotations
import __future__

import ast
import contextlib
import functools
import inspect
import json
import linecache
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyperfarm.errors import UsageError
from hyperfarm.sources import is_own
from hyperfarm.syntax import parse
from hyperfarm.template_find import Definition
from hyperfarm.template_rewrite import own_nodes

_FUTURES = sum(getattr(__future__, name).compiler_flag for name in __future__.all_feature_names)
_NEVER = frozenset({"hyperfarm", "hyperopt", "hyperas", "cloudpickle"})


@dataclass(frozen=True, kw_only=True)
class Source:
    """A definition and where it stands.

    `path` is the file name that its code has, `text` the whole file (or cell) and `node` the definition in it,
    with true line numbers. `flags` are those of the `__future__` imports in effect. `namespace` holds the
    module's globals, `cells` the variables of functions around it.
    """

    name: str
    path: str
    text: str
    node: Definition
    flags: int
    namespace: dict[str, Any]
    cells: dict[str, types.CellType]

    @property
    def place(self) -> str:
        """`file, line N`, for people."""
        return f"{self.path}, line {self.node.lineno}"

    @property
    def variables(self) -> frozenset[str]:
        """The names of the definition's own variables, arguments included."""
        stored = {
            one.id
            for one in own_nodes(self.node)
            if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)
        }
        return frozenset(stored | {one.arg for one in own_nodes(self.node) if isinstance(one, ast.arg)})

    def value_of(self, name: str) -> Any:
        """What a name that is not local means in the definition. Raises KeyError if it means nothing."""
        cell = self.cells.get(name)
        if cell is not None:
            with contextlib.suppress(ValueError):
                return cell.cell_contents
        return self.namespace[name]


def find_source(thing: Any, notebook: str | None = None) -> Source:
    """Return the source of a function or class.

    It is looked for in the file, or notebook cell, that the code comes from, then in the history of IPython,
    then in the file of the notebook that is named. Raises UsageError that says what was looked for.
    """
    code, function = _code_of(thing)
    name = thing.__name__ if isinstance(thing, type) else code.co_name
    if name == "<lambda>":
        raise UsageError(
            f"{code.co_filename}, line {code.co_firstlineno}: a lambda cannot be rewritten; write a function "
            "with def"
        )
    linecache.checkcache(code.co_filename)
    text = "".join(linecache.getlines(code.co_filename, function.__globals__))
    node = _definition(text, code, thing)
    if node is None:
        for text in _elsewhere(notebook):
            node = _definition(text, code, thing, exact=False)
            if node is not None:
                break
        else:
            raise UsageError(
                f"the source of {name} cannot be found ({code.co_filename}, line {code.co_firstlineno}): save it in "
                "a file or run it in a notebook's cell, and start again if the file was changed meanwhile"
            )
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    return Source(
        name=name,
        path=code.co_filename,
        text=text,
        node=node,
        flags=code.co_flags & _FUTURES,
        namespace=function.__globals__,
        cells={} if isinstance(thing, type) else cells,
    )


def is_users(thing: Any) -> bool:
    """True for a function or class that the user wrote, and no library."""
    if not isinstance(thing, types.FunctionType | type):
        return False
    if (getattr(thing, "__module__", None) or "").partition(".")[0] in _NEVER:
        return False
    try:
        code, _ = _code_of(thing)
    except UsageError:
        return False
    return is_own(code.co_filename)


def _code_of(thing: Any) -> tuple[types.CodeType, types.FunctionType]:
    """The code to look for, and the function that holds it; for a class, those of one of its methods."""
    if isinstance(thing, type):
        for held in vars(thing).values():
            method = inspect.unwrap(getattr(held, "__func__", held))
            if isinstance(method, types.FunctionType) and _is_method(method, thing):
                return method.__code__, method
        raise UsageError(f"class {thing.__qualname__} has no method whose source could be found")
    bare = inspect.unwrap(thing) if callable(thing) else thing
    if not isinstance(bare, types.FunctionType):
        raise UsageError(
            f"{thing!r} is not a function that is written with def, so its source cannot be found"
        )
    return bare.__code__, bare


def _is_method(method: types.FunctionType, cls: type) -> bool:
    return method.__qualname__.startswith(f"{cls.__qualname__}.") and method.__module__ == cls.__module__


def _definition(text: str, code: types.CodeType, thing: Any, *, exact: bool = True) -> Definition | None:
    """The definition in a text; with `exact`, at the very line that the code says."""
    try:
        tree = _parsed(text)
    except (SyntaxError, ValueError):
        return None
    found: Definition | None = None
    for node in ast.walk(tree):
        if isinstance(thing, type):
            if isinstance(node, ast.ClassDef) and node.name == thing.__name__:
                end = node.end_lineno or node.lineno
                if not exact or node.lineno <= code.co_firstlineno <= end:
                    found = node
        elif isinstance(node, ast.FunctionDef) and node.name == code.co_name:
            first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
            if first == code.co_firstlineno if exact else _arguments(node) == _declared(code):
                found = node
    return found


@functools.lru_cache(maxsize=16)
def _parsed(text: str) -> ast.Module:
    """The tree of a text, made once for all functions of a file. Nobody may change it."""
    return parse(text)


def _arguments(node: ast.FunctionDef) -> tuple[str, ...]:
    return tuple(one.arg for one in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs])


def _declared(code: types.CodeType) -> tuple[str, ...]:
    return code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]


def _elsewhere(notebook: str | None) -> Iterator[str]:
    """The texts of cells, the latest first: this session's history, then the notebook's file."""
    shell = _shell()
    if shell is not None:
        for cell in reversed(list(shell.history_manager.input_hist_raw)):
            yield from _plain(cell, shell)
    if notebook:
        for cell in reversed(_cells(notebook)):
            yield from _plain(cell, shell)


def _shell() -> Any:
    """IPython's shell, if this is one of its sessions."""
    module = sys.modules.get("IPython")
    return None if module is None else module.get_ipython()


def _plain(cell: str, shell: Any) -> Iterator[str]:
    """A cell without what only IPython understands; of a cell under a magic like %%time, what it runs."""
    lines = cell.splitlines(keepends=True)
    if lines and lines[0].startswith("%%"):
        lines = lines[1:]
    body = "".join(lines)
    if shell is not None:
        with contextlib.suppress(Exception):  # A cell may be anything: it is looked at, never run.
            body = shell.transform_cell(body)
            yield body
            return
    yield "".join("\n" if line.lstrip()[:1] in {"%", "!"} else line for line in lines)


def _cells(notebook: str) -> list[str]:
    """The code cells of a notebook, by its name as hyperas takes it (without .ipynb) or its path."""
    for path in (Path(f"{notebook}.ipynb"), Path(notebook)):
        if path.is_file():
            try:
                cells = json.loads(path.read_text("utf-8"))["cells"]
                return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise UsageError(f"{path} cannot be read as a notebook: {error}") from error
    raise UsageError(f"there is no notebook {notebook}.ipynb in {Path.cwd()}")
