"""What a trial prints, kept within bounds: its beginning and its end."""

from __future__ import annotations

from collections import deque

HEAD = 64 << 10
TAIL = 192 << 10


class LogBuffer:
    """Takes any amount of output and keeps the first `head` and the last `tail` bytes."""

    def __init__(self, head: int = HEAD, tail: int = TAIL) -> None:
        self._head_size, self._tail_size = head, tail
        self.clear()

    def clear(self) -> None:
        self._head = bytearray()
        self._tail: deque[bytes] = deque()
        self._tail_bytes = 0
        self._dropped = 0

    def add(self, data: bytes) -> None:
        room = self._head_size - len(self._head)
        self._head += data[:room]
        rest = data[room:] if room < len(data) else b""
        if not rest:
            return
        self._tail.append(rest)
        self._tail_bytes += len(rest)
        while self._tail_bytes > self._tail_size:
            excess = self._tail_bytes - self._tail_size
            first = self._tail.popleft()
            cut = min(excess, len(first))
            if cut < len(first):
                self._tail.appendleft(first[cut:])
            self._tail_bytes -= cut
            self._dropped += cut

    def content(self) -> bytes:
        """Everything that was kept, with one line in place of what was left out."""
        gap = b""
        if self._dropped:
            gap = f"\n... {self._dropped:,} bytes of output left out here ...\n".encode()
        return bytes(self._head) + gap + b"".join(self._tail)
