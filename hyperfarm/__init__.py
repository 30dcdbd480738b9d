"""hyperfarm: a distributed Hyperopt worker farm backed by MongoDB.

The names below are the whole public interface for scripts:

    from hyperfarm import minimize, hp, trial, MongoTrials
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["MongoTrials", "SearchResult", "Study", "hp", "load_result", "minimize", "trial"]

if TYPE_CHECKING:
    from hyperopt import hp

    from hyperfarm import trial
    from hyperfarm.api import SearchResult, minimize
    from hyperfarm.blobs import load_result
    from hyperfarm.controller.study import Study
    from hyperfarm.trials import MongoTrials

_HOMES = {
    "MongoTrials": "hyperfarm.trials",
    "SearchResult": "hyperfarm.api",
    "Study": "hyperfarm.controller.study",
    "hp": "hyperopt",
    "load_result": "hyperfarm.blobs",
    "minimize": "hyperfarm.api",
}


def __getattr__(name: str) -> Any:
    """Import each public name when it is first asked for: hyperopt alone takes most of a second."""
    if name == "trial":
        return importlib.import_module("hyperfarm.trial")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'hyperfarm' has no attribute {name!r}")
