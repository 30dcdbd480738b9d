"""From what objectives return to what BSON can hold: everything fits, nothing is lost without a word."""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import fractions
import math
import os
import pathlib
import re
import socket
from typing import Any
from zoneinfo import ZoneInfo

import bson
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hyperfarm.values import (
    MAX_DEPTH,
    decode_key,
    decode_keys,
    encode_key,
    encode_keys,
    is_number,
    to_plain,
)
from hyperfarm.worker import wire

UTC = dt.timezone.utc


class Color(enum.Enum):
    RED = "red"
    BOX = (1, np.float32(2.0))


class Level(enum.IntEnum):
    HIGH = 3


@dataclasses.dataclass
class Point:
    x: float
    tags: set


class Stamp(dt.datetime):
    """Stands for pandas.Timestamp: a datetime of another class."""


class Missing(dt.datetime):
    """Stands for pandas.NaT: a datetime that is no time."""

    def date(self) -> Any:
        raise ValueError("no date")


class Blob(bytes):
    pass


class Word(str):
    __slots__ = ()


class Network:
    """A model: callable, with weights."""

    def __call__(self, x: Any) -> Any:
        return x

    def get_weights(self) -> list:
        return []


class Broken:
    def __repr__(self) -> str:
        raise RuntimeError("no")


class BrokenTensor:
    def numpy(self) -> Any:
        raise RuntimeError("still on the GPU")


NOON = dt.datetime(2026, 1, 2, 12, 0, 0, 5000, tzinfo=UTC)
PLAIN = [
    (None, None),
    (True, True),
    (7, 7),
    (0.1, 0.1),
    (math.inf, math.inf),
    ("text", "text"),
    ("$state", "$state"),
    (b"raw", b"raw"),
    (np.float32(0.5), 0.5),
    (np.float64(0.1), 0.1),
    (np.int8(-3), -3),
    (np.uint64(2**63 - 1), 2**63 - 1),
    (np.bool_(True), True),
    (np.str_("s"), "s"),
    (np.bytes_(b"s"), b"s"),
    (np.array(2.5), 2.5),
    (np.arange(4).reshape(2, 2), [[0, 1], [2, 3]]),
    (np.array(["a", None, 1], dtype=object), ["a", None, 1]),
    (np.array([]), []),
    (np.datetime64("2026-01-02T12:00:00"), dt.datetime(2026, 1, 2, 12)),
    ((1, (2, 3)), [1, [2, 3]]),
    ({1}, [1]),
    (frozenset({"a"}), ["a"]),
    ({"k": 1}.keys(), ["k"]),
    ({"a": {"b": (1,)}}, {"a": {"b": [1]}}),
    ({1: "a", None: "b", (1, 2): "c", 0.5: "d"}, {"1": "a", "None": "b", "(1, 2)": "c", "0.5": "d"}),
    (pathlib.PurePosixPath("a/b"), "a/b"),
    (Color.RED, "red"),
    (Color.BOX, [1, 2.0]),
    (Level.HIGH, 3),
    (fractions.Fraction(1, 4), 0.25),
    (bytearray(b"ab"), b"ab"),
    (memoryview(b"ab"), b"ab"),
    (Blob(b"ab"), b"ab"),
    (bson.Binary(b"ab", 5), b"ab"),
    (Word("w"), "w"),
    (NOON, NOON),
    (dt.datetime(2026, 1, 2, 12), dt.datetime(2026, 1, 2, 12)),
    (dt.date(2026, 1, 2), dt.datetime(2026, 1, 2, tzinfo=UTC)),
    (dt.datetime(2026, 1, 2, 13, 0, 0, 5000, tzinfo=ZoneInfo("Europe/Berlin")), NOON),
    (Stamp(2026, 1, 2, 12, 0, 0, 5000, tzinfo=UTC), NOON),
    (Point(1.0, {2}), {"x": 1.0, "tags": [2]}),
    (2**63 - 1, 2**63 - 1),
    (-(2**63), -(2**63)),
]


@pytest.mark.parametrize(("value", "expected"), PLAIN, ids=lambda value: type(value).__name__)
def test_what_has_a_plain_form_takes_it_without_a_word(value: Any, expected: Any) -> None:
    notes: list[str] = []
    got = to_plain(value, note=notes.append)
    assert got == expected
    assert type(got) is type(expected)
    assert notes == []
    if isinstance(got, dt.datetime):
        assert got.tzinfo in (None, UTC)


ODD = [
    (2**63, str(2**63), "beyond 64 bits"),
    (-(2**63) - 1, str(-(2**63) - 1), "beyond 64 bits"),
    (10**5000, hex(10**5000), "beyond 64 bits"),
    (fractions.Fraction(10**400), None, "beyond the range of a float"),
    (1 + 2j, "(1+2j)", "is a complex"),
    (np.complex64(1j), None, "is a complex"),
    (decimal.Decimal("0.1"), "Decimal('0.1')", "is a Decimal"),
    (dt.timedelta(1), None, "is a timedelta"),
    (int, "<class 'int'>", "is a type"),
    (len, "<built-in function len>", "is a builtin_function_or_method"),
    (object(), None, "is a object"),
    (Network(), None, r"is a Network.*save a model with trial\.save_model\(model\)"),
    (Broken(), "<Broken>", "is a Broken"),
    (BrokenTensor(), None, "numpy.. failed: still on the GPU"),
    ("a\udcffb", "a\\udcffb", "is not valid Unicode"),
    (pathlib.PurePosixPath("a\udcff"), "a\\udcff", "is not valid Unicode"),
    ({"k\udcff": 1}, {"k\\udcff": 1}, "is not valid Unicode"),
    ({1: "a", "1": "b"}, {"1": "b"}, "several keys that become '1'"),
    (dt.datetime.min.replace(tzinfo=dt.timezone(dt.timedelta(hours=5))), None, "beyond the years 1 to 9999"),
    (Missing(2026, 1, 1), None, "beyond the years"),
]


@pytest.mark.parametrize(("value", "expected", "told"), ODD, ids=lambda value: type(value).__name__)
def test_what_has_none_becomes_a_text_and_is_told(value: Any, expected: Any, told: str) -> None:
    notes: list[str] = []
    got = to_plain({"loss": 1.0, "odd": [value]}, note=notes.append)
    assert got["loss"] == 1.0
    assert isinstance(got["odd"][0], (str, dict))
    if expected is not None:
        assert got["odd"][0] == expected
    [note] = notes
    assert "result['odd'][0]" in note
    assert re.search(told, note), note
    bson.encode(got)


def test_endless_nesting_ends() -> None:
    notes: list[str] = []
    ring: list[Any] = [1]
    ring.append(ring)
    got = to_plain({"ring": ring}, note=notes.append)
    depth = 0
    while isinstance(got, (dict, list)):
        got, depth = got["ring"] if isinstance(got, dict) else got[-1], depth + 1
    assert depth == MAX_DEPTH
    assert isinstance(got, str)
    assert len(notes) == 1
    assert "nested deeper than" in notes[0]


def test_simple_values_are_kept_at_any_depth() -> None:
    value: Any = "text"
    for _ in range(MAX_DEPTH):
        value = [value]
    got = to_plain(value, note=pytest.fail)
    for _ in range(MAX_DEPTH):
        [got] = got
    assert got == "text"


odd_texts = st.text(alphabet=st.characters(), max_size=5) | st.sampled_from(["\udcff", "a.b", "$x", "\0"])
numpy_values = st.one_of(
    st.floats(width=32).map(np.float32),
    st.integers(-128, 127).map(np.int8),
    st.lists(st.floats(), max_size=3).map(np.array),
    st.lists(st.booleans(), max_size=3).map(np.array),
    st.complex_numbers().map(np.complex128),
)
zones = st.sampled_from([None, UTC, ZoneInfo("Asia/Kolkata"), dt.timezone(dt.timedelta(hours=-14))])
OBJECTS = [Color.RED, Level.HIGH, Point(1.0, {2}), Network(), Broken(), BrokenTensor(), object, len, ...]
leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(10**4500), 10**4500),
    st.floats(),
    st.fractions(),
    st.decimals(),
    st.complex_numbers(),
    st.binary(max_size=4),
    odd_texts,
    st.datetimes(timezones=zones),
    st.dates(),
    st.times(),
    st.timedeltas(),
    st.uuids(),
    numpy_values,
    st.integers(0, len(OBJECTS) - 1).map(lambda number: OBJECTS[number]),
    odd_texts.map(lambda text: pathlib.PurePosixPath(text.replace("\0", ""))),
)
anything = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(odd_texts | st.integers() | st.none(), inner, max_size=3),
    ),
    max_leaves=8,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(anything)
def test_anything_becomes_what_bson_and_the_wire_can_carry(value: Any) -> None:
    notes: list[str] = []
    plain = to_plain({"odd": value}, note=notes.append)
    encoded = encode_keys(plain)
    assert decode_keys(encoded) == plain or "nan" in repr(plain)
    bson.decode(bson.encode(encoded))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        wire.send(ours, plain)
        assert repr(wire.receive(theirs)) == repr(plain)
    assert to_plain(plain, note=pytest.fail) is not None
    assert all(isinstance(note, str) and "\n" not in note for note in notes)


keys = st.text(alphabet=".$%\x00245E0ab", max_size=8) | st.text(max_size=8)


@given(keys)
def test_a_key_comes_back_from_its_field_name(key: str) -> None:
    name = encode_key(key)
    assert decode_key(name) == key
    assert "." not in name
    assert "\0" not in name
    assert not name.startswith("$")


@given(st.lists(keys, unique=True, max_size=10))
def test_different_keys_have_different_field_names(several: list[str]) -> None:
    assert len({encode_key(key) for key in several}) == len(several)


@pytest.mark.parametrize("key", ["loss", "val_loss", "a b", "%", "100%", "x$y", "%zz", "", "lr%2e"])
def test_an_ordinary_key_is_its_own_field_name(key: str) -> None:
    assert encode_key(key) == key


def test_keys_are_encoded_at_every_level_and_nothing_else() -> None:
    value = {"a.b": [{"$c": "a.b"}, ["$d", {"%2E": 1}]]}
    assert encode_keys(value) == {"a%2Eb": [{"%24c": "a.b"}, ["$d", {"%252E": 1}]]}
    assert decode_keys(encode_keys(value)) == value
    assert value == {"a.b": [{"$c": "a.b"}, ["$d", {"%2E": 1}]]}, "the argument is left alone"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, True),
        (0.5, True),
        (math.inf, True),
        (np.float32(1), True),
        (math.nan, False),
        (True, False),
        (None, False),
        ("1", False),
    ],
)
def test_what_is_a_number(value: Any, expected: bool) -> None:
    assert is_number(value) is expected


def test_file_names_that_are_no_unicode_are_stored(tmp_path: pathlib.Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9")).touch()
    [path] = tmp_path.iterdir()
    assert to_plain({"path": path})["path"].endswith("caf\\udce9")
