"""What a trial prints, kept within bounds: its beginning and its end."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from hyperfarm.worker.logbuffer import HEAD, TAIL, LogBuffer


@given(st.lists(st.binary(max_size=20), max_size=30), st.integers(0, 30), st.integers(1, 30))
def test_beginning_and_end_are_kept_exactly(parts: list[bytes], head: int, tail: int) -> None:
    buffer = LogBuffer(head, tail)
    for part in parts:
        buffer.add(part)
    everything = b"".join(parts)
    if len(everything) <= head + tail:
        assert buffer.content() == everything
        return
    dropped = len(everything) - head - tail
    gap = f"\n... {dropped:,} bytes of output left out here ...\n".encode()
    assert buffer.content() == everything[:head] + gap + everything[-tail:]


@given(st.lists(st.binary(max_size=20), max_size=30), st.integers(0, 200))
def test_how_the_output_was_cut_does_not_matter(parts: list[bytes], size: int) -> None:
    everything = b"".join(parts)
    whole, pieces, halves = LogBuffer(10, 15), LogBuffer(10, 15), LogBuffer(10, 15)
    whole.add(everything)
    for part in parts:
        pieces.add(part)
    halves.add(everything[:size])
    halves.add(everything[size:])
    assert whole.content() == pieces.content() == halves.content()


def test_a_flood_takes_bounded_memory() -> None:
    buffer = LogBuffer()
    line = b"epoch 1: loss 0.5\n" * 1000
    for _ in range(1000):
        buffer.add(line)
    content = buffer.content()
    assert len(content) < HEAD + TAIL + 100
    assert len(buffer._head) + sum(map(len, buffer._tail)) <= HEAD + TAIL
    [gap] = re.findall(rb"\n\.\.\. ([\d,]+) bytes of output left out here \.\.\.\n", content)
    assert int(gap.replace(b",", b"")) == 18_000_000 - HEAD - TAIL


def test_the_next_trial_begins_empty() -> None:
    buffer = LogBuffer(2, 3)
    buffer.add(b"0123456789")
    buffer.clear()
    assert buffer.content() == b""
    buffer.add(b"abc")
    assert buffer.content() == b"abc"
