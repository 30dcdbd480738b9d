"""Spaces as plain data, and what a person may write for a point."""

from __future__ import annotations

from typing import Any

import pytest
from bson import BSON
from hyperopt import hp

from hyperfarm.controller.known_space import describe, read
from hyperfarm.controller.points import check_points, read_points
from hyperfarm.errors import UsageError

SPACE = {
    "lr": hp.loguniform("lr", -10, 0),
    "units": hp.choice("units", [32, 64, 128]),
    "layers": hp.choice("layers", [1, 2, 3]),
    "act": hp.choice("act", ["relu", "tanh"]),
    "bias": hp.choice("bias", [True, False]),
    "opt.er": hp.pchoice("opt.er", [(0.3, "sgd"), (0.7, {"beta": hp.quniform("beta", 0, 9, 3)})]),
    "depth": hp.normal("depth", 0, 2),
    "$n": hp.randint("$n", 3, 9),
}
POINT: dict[str, Any] = {
    "lr": 0.01,
    "units": 1,
    "layers": 2,
    "act": 0,
    "bias": 1,
    "opt.er": 1,
    "beta": 6,
    "depth": 0.5,
    "$n": 4,
}


def test_a_space_comes_back_from_the_database_as_it_was() -> None:
    known = describe(SPACE)
    document = BSON.encode({"columns": known.document()}).decode()["columns"]
    back = read(document)
    assert back.space == known.space
    assert back.document() == document == known.document()


@pytest.mark.parametrize(
    ("label", "given", "index"),
    [
        ("units", 64, 1),
        ("units", 64.0, 1),
        ("units", 2, 2),
        ("layers", 1, 1),  # An index, as hyperopt has it: 1 is also an option, but 0 to 2 are indices.
        ("act", "tanh", 1),
        ("bias", True, 0),
        ("bias", 0, 0),
        ("bias", 1, 1),
        ("act", 1, 1),
    ],
)
def test_an_option_may_be_named_by_itself_where_it_can_be_nothing_else(
    label: str, given: Any, index: int
) -> None:
    (checked,) = check_points([{**POINT, label: given}], describe(SPACE))
    assert checked[label] == index
    assert type(checked[label]) is int
    assert type(checked["beta"]) is float


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"lr": 2.0}, "point 1: lr is 2.0; it must be a number from 4.5"),
        ({"lrr": 0.1}, "the space has no parameter 'lrr'; the nearest is 'lr'"),
        ({"layers": 3}, "layers is 3; it must be the index of an option, 0 to 2"),
        ({"units": 65}, "units is 65; it must be the index"),
        ({"act": "rleu"}, "act is 'rleu'; its options are 'relu', 'tanh'"),
        ({"opt.er": 0}, "beta is given, but the options chosen do not use it"),
        ({"beta": 4}, "beta is 4; it must be a multiple of 3"),
        ({"$n": 9}, "a whole number from 3 to 8"),
        ({"lr": "0.1"}, "lr is '0.1'; it must be a number"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"bias": "yes"}, "its options are True, False"),
        ({"lr": None}, "lr is None"),
    ],
)
def test_a_point_that_the_space_does_not_hold_is_told(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError) as error:
        check_points([{**POINT, **changes}], describe(SPACE))
    assert told in str(error.value)


def test_a_point_that_lacks_something_or_is_none_is_told() -> None:
    known = describe(SPACE)
    with pytest.raises(UsageError, match="point 2: depth is missing; it must be a number"):
        check_points([POINT, {label: value for label, value in POINT.items() if label != "depth"}], known)
    with pytest.raises(UsageError, match="point 1 is no dict of parameters, but 3"):
        check_points([3], known)


def test_points_are_read_from_text_files_and_standard_input(tmp_path: Any, monkeypatch: Any) -> None:
    file = tmp_path / "points.json"
    file.write_text('[{"x": 1}, {"x": 2}]')
    assert read_points('{"x": 1}') == [{"x": 1}]
    assert read_points(f"@{file}") == [{"x": 1}, {"x": 2}]
    with file.open() as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        assert len(read_points("-")) == 2
    with pytest.raises(UsageError, match=r"cannot read the points in gone\.json: No such file"):
        read_points("@gone.json")
    with pytest.raises(UsageError, match=r"'\{x: 1\}' is no JSON"):
        read_points("{x: 1}")
    file.write_text('{"x": 1')
    with pytest.raises(UsageError, match=r"points.json is no JSON"):
        read_points(f"@{file}")


def test_options_that_the_database_cannot_hold_have_an_index_only() -> None:
    known = describe(hp.choice("x", [2**70, "\udcff", -(2**63), "ü"]))
    assert known.options["x"] == [None, None, -(2**63), "ü"]
