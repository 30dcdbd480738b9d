"""The identity of values: equal over processes, and different where it matters."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import decimal
import enum
import functools
import json
import os
import pathlib
import random
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hyperopt import hp
from hypothesis import given
from hypothesis import strategies as st

from hyperfarm.fingerprint import DEPTH_LIMIT, fingerprint, fingerprint_space, held_by, user_symbols

SCRIPT = """
import collections, dataclasses, enum, functools, json, pathlib, threading
import numpy as np
from hyperopt import hp
from hyperfarm.fingerprint import fingerprint, fingerprint_space

class Color(enum.Enum):
    RED = 1
    BLUE = "b"

@dataclasses.dataclass
class Point:
    x: int = 1
    tags: frozenset = frozenset({"p", "q", "r"})
    friend: object = None

class Slotted:
    __slots__ = ("a", "__hidden")
    def __init__(self): self.a, self.__hidden = {"k", "l"}, 2

WORDS = {"alpha", "beta", "gamma", "delta"}
LOCK = threading.Lock()
def even(n): return n == 0 or odd(n - 1)
def odd(n): return n != 0 and even(n - 1)
def in_words(x): return x in {"one", "two", "three"} or x in WORDS
def outer(k):
    def inner(x, *, y=WORDS): return x + k
    return inner
class Node:
    def __init__(self): self.me, self.lock = self, LOCK
    def __call__(self, x): return even(x), Node, super().__hash__
    @property
    def p(self): return WORDS
ring = [1]
ring.append({"back": ring, "words": WORDS})
VALUES = [
    None, True, 1, 1.5, float("nan"), "text", b"bytes", [1, "a"], (1, 2), {"b": 1, "a": {"x", "y"}}, WORDS,
    frozenset(WORDS), np.arange(6).reshape(2, 3), np.float32(2), np.array(["x", None], dtype=object),
    np.dtype("f8"), even, in_words, outer(3), functools.partial(outer, k=WORDS), Color.RED, Color, Point(), Point,
    Slotted(), Node(), Node().__call__, ring, LOCK, len, np.sin, [].append, json, lambda x: x, Node.p,
    pathlib.PurePosixPath("a/b"), collections.OrderedDict(a=1), collections.deque([1]), range(3), slice(1, 2),
    collections.defaultdict(set, k={"m", "n"}), np.random.default_rng(), object(),
]
hash(VALUES[35]); str(VALUES[35])
CHOICE = hp.choice("c", [even, outer(2), {"s", "t", "u"}, {"d": hp.normal("n", 0, 1)}])
SPACE = {"x": hp.uniform("x", 0, 1), "c": CHOICE}
print(json.dumps([fingerprint(value) for value in VALUES] + [fingerprint_space(SPACE)]))
"""


def run(script: Path, seed: str) -> list[str]:
    env = {**os.environ, "PYTHONHASHSEED": seed}
    done = subprocess.run([sys.executable, script], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: list[str] = json.loads(done.stdout)
    return found


def test_equal_in_processes_with_other_hash_seeds(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    one, moved = tmp_path / "script.py", tmp_path / "elsewhere.py"
    moved.write_text("# Lines move, and the file has another name.\n\n" + SCRIPT)
    first = run(one, "1")
    assert first == run(moved, "2") == run(one, "random")
    assert len(set(first)) == len(first)


def make(k: object) -> Callable[[], object]:
    return lambda: k


@dataclasses.dataclass
class Config:
    rate: float
    other: object = None


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Text(str):
    """A type derived from a built-in one."""


class Cached:
    def __init__(self, k: int) -> None:
        self.k, self.cache = k, object()

    def __getstate__(self) -> dict[str, int]:
        return {"k": self.k}


def power(x: float, p: float = 2) -> float:
    return x**p


class Tensor:
    """Stands for an object of a library whose state is not stable."""


Tensor.__module__ = "tensorflow.fake"

ALL_DIFFERENT: list[Any] = [
    0, False, 0.0, -0.0, None, "", "0", b"", b"0", [], (), {}, set(), frozenset(), [0], [[0]], (0,), [0, 0],
    ["ab", "c"], ["a", "bc"], {0: 1}, {1: 0}, {0}, 1, 1.0, "1", np.int64(1), np.int32(1), np.array(1.0),
    np.zeros(2), np.zeros((2, 1)), np.zeros((1, 2)), np.zeros(2, "i8"), np.array([0.0, 1.0]),
    np.array(["2020-01-01"], "M8[D]"), np.array([(1, 2)], dtype=[("a", "i4"), ("b", "i4")]),
    np.array([(1, 2)], dtype=[("a", "i4"), ("c", "i4")]), float("inf"), float("nan"), 1j, ...,
    power, functools.partial(power), functools.partial(power, 1), functools.partial(power, p=1),
    functools.partial(functools.partial, power), make(1), make(2), make([make(1)]), make([make(2)]),
    {"a": make(1), "b": make(2)}, {"a": make(2), "b": make(1)}, lambda: 1, lambda: 2, lambda x=1: 2,
    lambda *, x=1: 2, lambda *, x=2: 2, lambda: power, lambda: Config,
    Config, Config(1), Config(2), Config(1, Config(1)), Level.LOW, Level.HIGH, Level, Text("a"), Text("b"), "a",
    Cached(1), Cached(2), Cached(1).__getstate__, decimal.Decimal("1.0"), decimal.Decimal("1.00"),
    datetime.datetime(2020, 1, 1), datetime.timedelta(1), pathlib.PurePosixPath("a"),
    pathlib.PurePosixPath("b"), range(3), range(4), slice(3), re.compile("a"), re.compile("a", re.I),
    collections.OrderedDict(a=1, b=2), collections.OrderedDict(b=2, a=1), collections.deque([1]),
    collections.deque([1], maxlen=2), len, abs, [].append, os, json, threading.Lock(), random.Random(1), Tensor(),
]  # fmt: skip


def test_what_differs_counts_as_different() -> None:
    prints = [fingerprint(value) for value in ALL_DIFFERENT]
    for index, one in enumerate(prints):
        assert one not in prints[:index], ALL_DIFFERENT[index]


def test_what_is_equal_counts_as_equal() -> None:
    shared = [1, make(1)]
    ones = Cached(1)
    for one, two in [
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        (make(1), make(1)),
        ([shared, shared], [[1, make(1)], [1, make(1)]]),
        (np.arange(4)[::2], np.array([0, 2])),
        (ones, Cached(1)),
        (random.Random(1), random.Random(2)),
        (Tensor(), Tensor()),
        (threading.Lock(), threading.Lock()),
        (float("nan"), -float("nan")),
    ]:
        assert fingerprint(one) == fingerprint(two), one


def test_circles_and_depth_end() -> None:
    ring: list[Any] = [1]
    ring.append(ring)
    other: list[Any] = [1]
    other.append(other)
    assert fingerprint(ring) == fingerprint(other)
    assert fingerprint(ring) != fingerprint([1, [1]])
    deep: list[Any] = []
    for _ in range(10 * DEPTH_LIMIT):
        deep = [deep, deep]
    assert fingerprint(deep) == fingerprint([deep[0], deep[1]])


def test_a_wide_graph_takes_linear_time() -> None:
    layer: list[Any] = [{"k": 1}]
    for _ in range(DEPTH_LIMIT - 5):
        layer = [layer] * 50
    assert fingerprint(layer)


def test_a_million_numbers_are_quick() -> None:
    assert fingerprint(list(range(1_000_000))) != fingerprint(list(range(1_000_001)))


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(json_like)
def test_copies_are_equal(value: Any) -> None:
    def copy(thing: Any) -> Any:
        if isinstance(thing, dict):
            return {key: copy(thing[key]) for key in reversed(list(thing))}
        return [copy(item) for item in thing] if isinstance(thing, list) else thing

    assert fingerprint(value) == fingerprint(copy(value))
    assert fingerprint([value]) != fingerprint(value)


def test_spaces() -> None:
    space = {"x": hp.uniform("x", 0, 1), "c": hp.choice("c", ["a", {"n": hp.normal("n", 0, 1)}])}
    assert fingerprint_space(space) == fingerprint_space(dict(reversed(list(space.items()))))
    others = [
        {**space, "x": hp.uniform("x", 0, 2)},
        {**space, "x": hp.loguniform("x", 0, 1)},
        {**space, "x": hp.uniform("z", 0, 1)},
        {"x": space["x"]},
        {**space, "c": hp.choice("c", [make(1), make(2)])},
        {**space, "c": hp.choice("c", [make(1), make(3)])},
    ]
    prints = {fingerprint_space(other) for other in [space, *others]}
    assert len(prints) == len(others) + 1
    assert user_symbols(space) == {}


def test_what_a_value_holds_is_named() -> None:
    def inner(x: int, y: object = 5, *, z: object = 6) -> object:
        return k, pytest

    k = 4
    labels = {held.label.replace(inner.__qualname__, "f"): held.value for held in held_by(inner)}
    assert labels == {
        "closure variable 'k' of function 'f'": 4,
        "global variable 'pytest' of function 'f'": pytest,
        "the default of argument 'y' of function 'f'": 5,
        "the default of argument 'z' of function 'f'": 6,
    }
    assert list(held_by(power)) == []
