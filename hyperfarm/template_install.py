"""Lets unchanged scripts say `from hyperas import optim`: hyperas's module names, with ours behind them."""

from __future__ import annotations

import importlib
import sys
import types
from importlib.machinery import ModuleSpec

HOMES = {
    "hyperas.optim": "hyperfarm.templates",
    "hyperas.distributions": "hyperfarm.distributions",
    "hyperas.utils": "hyperfarm.templates",
    "hyperas.ensemble": "hyperfarm.template_ensemble",
}
PACKAGE = "hyperas"


def install() -> None:
    """Make `hyperas`, `hyperas.optim`, `.distributions`, `.utils` and `.ensemble` ours in this process.

    Whether hyperas itself is installed does not matter. Workers do the same for what they run of this process.
    """
    package = types.ModuleType(PACKAGE, "hyperfarm's stand-in for hyperas.")
    package.__path__ = []
    package.__spec__ = ModuleSpec(PACKAGE, None, is_package=True)
    sys.modules[PACKAGE] = package
    for name, home in HOMES.items():
        module = importlib.import_module(home)
        sys.modules[name] = module
        setattr(package, name.rpartition(".")[2], module)


def is_installed() -> bool:
    """True once `install` was called in this process."""
    return sys.modules.get("hyperas.optim") is sys.modules.get("hyperfarm.templates", install)
