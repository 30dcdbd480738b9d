"""What an objective may return, and what it means."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperfarm.errors import InvalidResult
from hyperfarm.results import STATUSES, interpret


class Tensor:
    """Like a scalar of TensorFlow or PyTorch."""

    def __float__(self) -> float:
        return 0.25


class Matrix:
    def __float__(self) -> float:
        raise TypeError("only length-1 arrays can be converted")


def test_the_statuses_are_hyperopts() -> None:
    from hyperopt import STATUS_STRINGS

    assert set(STATUSES) == set(STATUS_STRINGS)


@pytest.mark.parametrize("hyperopt_losses", [True, False])
@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        (0.5, {"status": "ok", "loss": 0.5}),
        (3, {"status": "ok", "loss": 3.0}),
        (True, {"status": "ok", "loss": 1.0}),
        (math.inf, {"status": "ok", "loss": math.inf}),
        (np.float32(0.5), {"status": "ok", "loss": 0.5}),
        (np.array(0.5), {"status": "ok", "loss": 0.5}),
        (Tensor(), {"status": "ok", "loss": 0.25}),
        ({"loss": 1}, {"loss": 1.0, "status": "ok"}),
        ({"loss": Tensor(), "status": "ok", "a.b": 1}, {"loss": 0.25, "status": "ok", "a.b": 1}),
        ({"status": "fail"}, {"status": "fail"}),
        ({"status": "fail", "loss": None, "why": "x"}, {"status": "fail", "loss": None, "why": "x"}),
        ({"status": "fail", "loss": math.nan}, {"status": "fail", "loss": math.nan}),
    ],
)
def test_a_loss_or_a_dict_is_a_result(returned: Any, expected: dict[str, Any], hyperopt_losses: bool) -> None:
    got = interpret(returned, hyperopt_losses=hyperopt_losses)
    assert repr(got) == repr(expected)
    if "loss" in got and got["status"] == "ok":
        assert type(got["loss"]) is float


@pytest.mark.parametrize(
    ("returned", "told"),
    [
        (None, "the objective returned None; it must return a number, or a dict"),
        ("0.5", "the objective returned a str"),
        (b"1", "the objective returned a bytes"),
        ([1.0], "the objective returned a list"),
        ((1.0,), "the objective returned a tuple"),
        (np.array([1.0, 2.0]), "the objective returned a ndarray"),
        (Matrix(), "the objective returned a Matrix"),
        (1j, "the objective returned a complex"),
        (10**400, "the objective returned a int"),
        ({}, "a dict without 'loss' .it has 'status'."),
        ({"accuracy": 0.9}, "a dict without 'loss' .it has 'accuracy', 'status'."),
        ({"loss": None}, "a dict whose 'loss' is None"),
        ({"loss": "0.5"}, "a dict whose 'loss' is a str"),
        ({"loss": {"x": 1}}, "a dict whose 'loss' is a dict"),
        ({"loss": 1.0, "status": "good"}, "status 'good'; it must be 'ok' or 'fail'"),
        ({"loss": 1.0, "status": None}, "status None; it must be"),
    ],
)
def test_anything_else_is_refused_with_a_sentence(returned: Any, told: str) -> None:
    with pytest.raises(InvalidResult, match=told):
        interpret(returned, hyperopt_losses=False)
    with pytest.raises(InvalidResult, match=told):
        interpret(returned, hyperopt_losses=True)


@pytest.mark.parametrize("loss", [math.nan, -math.inf])
@pytest.mark.parametrize("wrap", [lambda loss: loss, lambda loss: {"loss": loss, "status": "ok"}])
def test_a_loss_that_cannot_be_compared_is_refused_unless_hyperopt_takes_it(loss: float, wrap: Any) -> None:
    with pytest.raises(InvalidResult, match=f"a loss of {loss}, which cannot be compared"):
        interpret(wrap(loss), hyperopt_losses=False)
    assert repr(interpret(wrap(loss), hyperopt_losses=True)["loss"]) == repr(loss)


@given(st.floats(allow_nan=False).filter(lambda loss: loss != -math.inf))
def test_a_dict_means_what_its_loss_alone_means(loss: float) -> None:
    returned = {"loss": loss}
    assert interpret(returned, hyperopt_losses=False) == interpret(loss, hyperopt_losses=False)
    assert returned == {"loss": loss}, "the objective's own dict is left alone"
