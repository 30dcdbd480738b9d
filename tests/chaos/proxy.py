"""A TCP proxy on the loopback address that can fail in all the ways in which a network fails.

One event loop in a thread of its own serves all proxies of a campaign; the calls below are safe from any
thread and have taken effect when they return.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Coroutine
from typing import Any

BLOCK = 1 << 16
ANSWER_S = 10.0
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER that makes a close a reset: what was not sent yet is lost."""


class ProxyLoop:
    """The thread with the event loop; a context manager."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="proxies")
        self.proxies: list[Proxy] = []

    def __enter__(self) -> ProxyLoop:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for proxy in self.proxies:
            proxy.refuse()
        self.call(self._cancel_all())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(ANSWER_S)
        self._loop.close()

    async def _cancel_all(self) -> None:
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await asyncio.sleep(0)  # Transports close their sockets in the next round.

    def call(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run `work` on the loop and return what it returns."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(ANSWER_S)


class _Connection:
    """One client and its connection to the server behind."""

    def __init__(self, client: asyncio.StreamWriter) -> None:
        self.client = client
        self.server: asyncio.StreamWriter | None = None

    def reset(self) -> None:
        for writer in (self.client, self.server):
            if writer is not None:
                own = writer.get_extra_info("socket")
                with contextlib.suppress(OSError):
                    own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                writer.transport.abort()


class Proxy:
    """Passes connections to `port` on to `upstream`, both on 127.0.0.1, unless told otherwise."""

    def __init__(self, loop: ProxyLoop, port: int, upstream: int) -> None:
        self.port, self.upstream = port, upstream
        self._loop = loop
        self._delay_s = 0.0
        self._requests_flow, self._answers_flow = asyncio.Event(), asyncio.Event()
        self._connections: set[_Connection] = set()
        self._listener: asyncio.Server | None = None
        loop.call(self._heal())
        loop.proxies.append(self)

    # ---- what a campaign does ----------------------------------------------------------------------

    def heal(self) -> None:
        """Work as a network should; what was held back by `hold` arrives now, late."""
        self._loop.call(self._heal())

    def cut(self) -> None:
        """Reset every connection; new ones are taken."""
        self._loop.call(self._cut())

    def refuse(self) -> None:
        """Reset every connection and refuse new ones until healed."""
        self._loop.call(self._refuse())

    def delay(self, seconds: float) -> None:
        """Hold every block of bytes for so long, each way, until healed."""
        self._delay_s = seconds

    def hold(self, *, requests: bool = True, answers: bool = True) -> None:
        """Forward nothing in these directions until healed; connections stay open and new ones are taken."""
        self._loop.call(self._hold(requests, answers))

    def half_close(self, *, towards_client: bool) -> None:
        """End one direction of every connection, as a peer does that has nothing more to say."""
        self._loop.call(self._half_close(towards_client))

    # ---- on the loop -------------------------------------------------------------------------------

    async def _heal(self) -> None:
        self._delay_s = 0.0
        self._requests_flow.set()
        self._answers_flow.set()
        if self._listener is None:
            self._listener = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def _cut(self) -> None:
        for connection in list(self._connections):
            connection.reset()

    async def _refuse(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        await self._cut()

    async def _hold(self, requests: bool, answers: bool) -> None:
        if requests:
            self._requests_flow.clear()
        if answers:
            self._answers_flow.clear()

    async def _half_close(self, towards_client: bool) -> None:
        for connection in list(self._connections):
            writer = connection.client if towards_client else connection.server
            if writer is not None and not writer.is_closing():
                with contextlib.suppress(OSError):
                    writer.write_eof()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(writer)
        self._connections.add(connection)
        try:
            await self._requests_flow.wait()
            answers, connection.server = await asyncio.open_connection("127.0.0.1", self.upstream)
            await asyncio.gather(
                self._pump(reader, connection.server, self._requests_flow),
                self._pump(answers, writer, self._answers_flow),
            )
        except (OSError, asyncio.CancelledError):
            pass  # One side is gone, and the other shall be: that is what a proxy is for.
        finally:
            connection.reset()
            self._connections.discard(connection)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gate: asyncio.Event
    ) -> None:
        with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: this direction was half-closed.
            while data := await reader.read(BLOCK):
                await gate.wait()
                if self._delay_s:
                    await asyncio.sleep(self._delay_s)
                writer.write(data)
                await writer.drain()
            await gate.wait()
        with contextlib.suppress(OSError, RuntimeError):
            writer.write_eof()
