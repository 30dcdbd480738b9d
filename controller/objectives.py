"""Finding the objective and its space: `FILE.py`, `FILE.py:function`, `module:function`."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from hyperfarm.errors import UsageError
from hyperfarm.sources import place_of

DEFAULT_NAME = "objective"


@dataclass(frozen=True, kw_only=True)
class Found:
    """An objective, its space, the file it was found in, and a name for its experiment."""

    fn: Callable[..., Any]
    space: Any
    script: Path | None
    exp_key: str


def find(target: str) -> Found:
    """Import the target and return its objective.

    A file (or module) defines `objective` (or the function named after the colon) and `space`. A space
    may also be an attribute of the function. Raises UsageError that says what is missing, and where.
    """
    where, _, name = target.partition(":")
    is_file = where.endswith(".py") or "/" in where
    if not is_file and not name:
        raise UsageError(
            f"{target!r} is neither a file FILE.py nor module:function; there is no objective to run"
        )
    module, script = _import_file(Path(where)) if is_file else _import_module(where)
    name = name or DEFAULT_NAME
    fn = getattr(module, name, None)
    if fn is None:
        raise UsageError(
            f"{where} defines no objective: write a function `{name}(point)`, or name another one: "
            f"{where}:function"
        )
    if not callable(fn):
        raise UsageError(f"{name} in {where} is not a function but {type(fn).__name__}")
    space = getattr(fn, "space", None)
    if space is None:
        space = getattr(module, "space", None)
    if space is None:
        raise UsageError(f"{where} defines no search space: write `space = ...` beside `{name}`")
    stem = Path(where).stem if is_file else where.rpartition(".")[2]
    exp_key = stem if name == DEFAULT_NAME else f"{stem}-{name}"
    return Found(fn=fn, space=space, script=script, exp_key=exp_key)


def _import_file(file: Path) -> tuple[ModuleType, Path]:
    """Import a script under its own name, with its folder first on the path, as `python FILE.py` has it."""
    if not file.is_file():
        raise UsageError(f"there is no file {file}")
    file = file.resolve()
    name = re.sub(r"\W", "_", file.stem)
    if name[0].isdigit():
        name = f"_{name}"
    sys.path.insert(0, str(file.parent))
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise UsageError(_why_not(str(file), error)) from error
    return module, file


def _import_module(name: str) -> tuple[ModuleType, Path | None]:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise UsageError(_why_not(f"module {name}", error)) from error
    return module, None


def _why_not(what: str, error: BaseException) -> str:
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{what} does not import: {type(error).__name__}: {text}{place_of(error)}"
