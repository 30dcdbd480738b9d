"""Search algorithms by name (`grid:N`, `optuna:NAME`, `module:function` too), or as functions like hyperopt's.

suggest(new_ids, domain, trials, seed) -> list of trial documents
"""

from __future__ import annotations

import difflib
import functools
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hyperfarm.controller.checking import Checked
from hyperfarm.errors import UsageError
from hyperfarm.jobs import JobDoc

Suggest = Callable[..., list[JobDoc]]

DEFAULT = "tpe"


def _tpe() -> Suggest:
    from hyperfarm.controller.tpe import suggest

    return suggest


def _rand() -> Suggest:
    from hyperopt import rand

    return rand.suggest  # type: ignore[no-any-return]


def _anneal() -> Suggest:
    from hyperopt import anneal

    return anneal.suggest  # type: ignore[no-any-return]


def _grid() -> Suggest:
    from hyperfarm.controller.grid import GridSearch

    return GridSearch()


def _atpe() -> Suggest:
    from hyperfarm.controller.atpe import check_installed, suggest

    check_installed()
    return suggest


def _hyperopt_tpe() -> Suggest:
    from hyperfarm.controller.hyperopt_tpe import suggest

    return suggest


NAMES: dict[str, Callable[[], Suggest]] = {
    "tpe": _tpe,
    "rand": _rand,
    "anneal": _anneal,
    "hyperopt-tpe": _hyperopt_tpe,
    "grid": _grid,
    "atpe": _atpe,
}
OTHERS = ("grid:N", "optuna:NAME", "module:function")


def checked(algo: str | Suggest | None) -> Checked:
    """The algorithm that `resolve` finds, with everything it returns looked at."""
    return Checked(*resolve(algo))


def with_grid_points(algo: str | Suggest | None, points: int | None) -> str | Suggest | None:
    """The algorithm with N values for each continuous parameter. Raises UsageError if it is not the grid."""
    if points is None:
        return algo
    if algo != "grid":
        raise UsageError(f"--grid-points (grid_points) is for the algorithm grid, not for {algo!r}")
    return f"grid:{points}"


def resolve(algo: str | Suggest | None) -> tuple[str, Suggest]:
    """Return (a name to show, the function); a function is used as it is, hyperopt's own too.

    Raises UsageError for what is not an algorithm.
    """
    if algo is None:
        algo = DEFAULT
    if isinstance(algo, str):
        if algo in NAMES:
            return algo, NAMES[algo]()
        kind, colon, rest = algo.partition(":")
        if colon and kind in _WITH_ARGUMENT:
            return algo, _WITH_ARGUMENT[kind](rest)
        if colon:
            return algo, _imported(algo)
        near = difflib.get_close_matches(algo, NAMES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join([*NAMES, *OTHERS])}"
        raise UsageError(f"no search algorithm is called {algo!r}; {hint}")
    if not callable(algo):
        raise UsageError(f"algo must be a name or a function like hyperopt's tpe.suggest, not {algo!r}")
    return _name_of(algo), algo


def _grid_with(points: str) -> Suggest:
    from hyperfarm.controller.grid import GridSearch

    if not points.isdecimal() or int(points) < 1:
        raise UsageError(f"grid:{points} is no algorithm; say grid:N with a number of points, 1 or more")
    return GridSearch(points=int(points))


def _optuna(name: str) -> Suggest:
    from hyperfarm.controller.optuna_algo import OptunaSearch

    return OptunaSearch(name)


_WITH_ARGUMENT: dict[str, Callable[[str], Suggest]] = {"grid": _grid_with, "optuna": _optuna}


def _imported(name: str) -> Suggest:
    module_name, _, attribute = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError, TypeError) as error:  # The last two for ":f" and ".x:f".
        raise UsageError(f"the search algorithm {name!r} cannot be imported: {error}") from error
    if not callable(found):
        raise UsageError(f"{name!r} is not a function, so it cannot be a search algorithm")
    return found  # type: ignore[no-any-return]


def _name_of(algo: Any) -> str:
    if isinstance(algo, functools.partial):
        return _name_of(algo.func)
    if getattr(algo, "__module__", "").startswith("hyperopt."):
        return str(algo.__module__)
    return f"{getattr(algo, '__module__', '?')}:{getattr(algo, '__qualname__', type(algo).__name__)}"
