"""Messages between a supervisor and its child: length, then a pickle of plain values.

The reader takes nothing but plain values (no class is ever looked up), so that what user code sends
cannot run code in the supervisor.
"""

from __future__ import annotations

import io
import pickle
import socket
import struct
from typing import Any

Message = dict[str, Any]
_LENGTH = struct.Struct("!Q")
_ALLOWED = {("datetime", "datetime"), ("datetime", "timezone"), ("datetime", "timedelta")}


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not a plain value")


def send(channel: socket.socket, message: Message) -> None:
    """Send one message whole. Raises OSError when the other side is gone."""
    body = pickle.dumps(message, protocol=5)
    channel.sendall(_LENGTH.pack(len(body)))
    channel.sendall(body)


def receive(channel: socket.socket) -> Message | None:
    """Wait for one message; None when the other side has closed or died."""
    head = _read(channel, _LENGTH.size)
    if head is None:
        return None
    body = _read(channel, _LENGTH.unpack(head)[0])
    if body is None:
        return None
    message: Message = _PlainUnpickler(io.BytesIO(body)).load()
    return message


def _read(channel: socket.socket, size: int) -> bytearray | None:
    data = bytearray(size)
    view = memoryview(data)
    while view.nbytes:
        try:
            count = channel.recv_into(view)
        except ConnectionError:
            return None
        if count == 0:
            return None
        view = view[count:]
    return data
