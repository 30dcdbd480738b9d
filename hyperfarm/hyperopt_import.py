"""Importing hyperopt in half the time, in processes of our own."""

from __future__ import annotations

import contextlib
import importlib
import sys
from types import ModuleType

_SLOW = "scipy.stats"


def import_hyperopt() -> None:
    """Import hyperopt, but not scipy.stats, which takes longer than hyperopt and all else that it imports.

    Only functions of `hyperopt.atpe` and `hyperopt.criteria` use it, and find it when they do. While hyperopt is
    imported an empty module stands in its place: only for a process that has no other thread yet.
    """
    if "hyperopt" in sys.modules or _SLOW in sys.modules:
        return
    sys.modules[_SLOW] = ModuleType(_SLOW)
    try:
        with contextlib.suppress(ImportError):  # A hyperopt that needs more of it is imported whole, later.
            importlib.import_module("hyperopt")
    finally:
        del sys.modules[_SLOW]
