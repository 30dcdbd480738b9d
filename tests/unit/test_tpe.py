"""Search algorithms are found by name and by function."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from hyperopt import rand, tpe

from hyperfarm.controller import hyperopt_tpe
from hyperfarm.controller.algorithms import NAMES, resolve
from hyperfarm.controller.tpe import suggest
from hyperfarm.errors import UsageError


def test_algorithms_are_found_by_name_and_by_function(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve(None) == ("tpe", suggest)
    assert resolve("rand") == ("rand", rand.suggest)
    assert resolve("hyperopt-tpe") == ("hyperopt-tpe", hyperopt_tpe.suggest)
    assert resolve(rand.suggest) == ("hyperopt.rand", rand.suggest)
    assert resolve(tpe.suggest) == ("hyperopt.tpe", tpe.suggest), "a function is used as it is"
    bound = functools.partial(tpe.suggest, gamma=0.5)
    assert resolve(bound) == ("hyperopt.tpe", bound)
    (tmp_path / "my_algorithm.py").write_text("def search(new_ids, domain, trials, seed): return []\nX = 1\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    name, found = resolve("my_algorithm:search")
    assert (name, found([], None, None, 0)) == ("my_algorithm:search", [])
    for wrong, told in [
        ("tpee", "did you mean tpe"),
        ("zzz", f"there are {', '.join(NAMES)}"),
        ("my_algorithm:missing", "cannot be imported"),
        ("no_such_module:f", "cannot be imported"),
        ("my_algorithm:X", "is not a function"),
        (42, "not 42"),
    ]:
        with pytest.raises(UsageError, match=told):
            resolve(wrong)
