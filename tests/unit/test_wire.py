"""Messages between a supervisor and its child: whole or not at all, and nothing but plain values."""

from __future__ import annotations

import datetime as dt
import os
import pickle
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hyperfarm.worker import wire

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.datetimes()
    | st.datetimes(timezones=st.just(dt.timezone.utc)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.dictionaries(st.text(), plain, max_size=4), max_size=4))
def test_messages_arrive_as_they_were_and_in_order(pair: Pair, messages: list[wire.Message]) -> None:
    for message in messages:
        wire.send(pair[0], message)
    assert [wire.receive(pair[1]) for _ in messages] == messages


def test_a_large_message_arrives_whole(pair: Pair) -> None:
    message = {"data": os.urandom(20 << 20)}
    sender = threading.Thread(target=wire.send, args=(pair[0], message))
    sender.start()
    assert wire.receive(pair[1]) == message
    sender.join()


def test_a_message_may_come_in_pieces(pair: Pair) -> None:
    body = pickle.dumps({"a": 1})
    sent = struct.pack("!Q", len(body)) + body
    got: list[Any] = []
    reader = threading.Thread(target=lambda: got.append(wire.receive(pair[1])))
    reader.start()
    for number in range(len(sent)):
        pair[0].sendall(sent[number : number + 1])
    reader.join()
    assert got == [{"a": 1}]


@pytest.mark.parametrize("sent", [0, 3, 8, 12])
def test_none_says_that_the_other_side_is_gone(pair: Pair, sent: int) -> None:
    body = pickle.dumps({"a": 1})
    pair[0].sendall((struct.pack("!Q", len(body)) + body)[:sent])
    pair[0].close()
    assert wire.receive(pair[1]) is None
    with pytest.raises(OSError, match="Broken pipe"):
        wire.send(pair[1], {"a": 1})


class Exploit:
    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.flag),)


@pytest.mark.parametrize(
    "value",
    [np.float64(1.0), np.arange(3), Path("/tmp"), 1j, wire, os.system, wire.send, dt.date(2026, 1, 1)],
    ids=lambda value: type(value).__name__,
)
def test_only_plain_values_are_taken(pair: Pair, value: Any) -> None:
    try:
        wire.send(pair[0], {"value": value})
    except TypeError:
        return  # A module is refused by pickle itself.
    with pytest.raises(pickle.UnpicklingError, match="is not a plain value"):
        wire.receive(pair[1])


def test_nothing_is_run_by_reading(pair: Pair, tmp_path: Path) -> None:
    wire.send(pair[0], {"value": Exploit(tmp_path / "was here")})
    with pytest.raises(pickle.UnpicklingError, match="mkdir is not a plain value"):
        wire.receive(pair[1])
    assert list(tmp_path.iterdir()) == []
