"""A TCP proxy between a device and its server that misbehaves on demand: it cuts, delays, slows, and falls silent."""

from __future__ import annotations

import asyncio
import time
from typing import Literal

Side = Literal["device", "server"]
CHUNK_BYTES = 2**16
CHUNKS_UNDER_WAY = 64
BURST_SECONDS = 0.02
"""Seconds of an idle link that it may make up for at once: sleeping too long, on a busy machine, does not slow it."""


class Proxy:
    """One device's way to the server.

    Args:
      port: The server's, on this machine.

    Attributes:
      port: the proxy's own, once it is open.
      delay_seconds: how long what is sent now is under way, in each direction.
      bytes_per_second: of each direction.
      ended: which side ended a connection, and when (`time.monotonic`).
    """

    def __init__(self, port: int) -> None:
        self.port = 0
        self.delay_seconds = 0.0
        self.bytes_per_second = float("inf")
        self.ended: list[tuple[Side, float]] = []
        self._target = port
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._refusing = False
        self._writers: set[asyncio.StreamWriter] = set()

    async def open(self) -> None:
        """Takes a free port and listens."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Ends everything."""
        self._server.close()
        self._flowing.set()
        while self._writers:
            self._abort()
            await asyncio.sleep(0.01)

    async def cut(self, seconds: float) -> None:
        """Ends the connection, and each new one for so long."""
        self._refusing = True
        self._abort()
        await asyncio.sleep(seconds)
        self._refusing = False

    async def silence(self, seconds: float) -> None:
        """Delivers nothing for so long and says nothing of it, as a cable that is pulled out."""
        self._flowing.clear()
        await asyncio.sleep(seconds)
        self._flowing.set()

    async def slow(self, seconds: float, *, delay_seconds: float, bytes_per_second: float) -> None:
        """Is a bad link for so long."""
        self.delay_seconds, self.bytes_per_second = delay_seconds, bytes_per_second
        await asyncio.sleep(seconds)
        self.delay_seconds, self.bytes_per_second = 0.0, float("inf")

    def first_end(self, side: Side, since: float) -> float | None:
        """The moment at which that side first ended a connection after `since`; None if it ended none."""
        return min((when for who, when in self.ended if who == side and when >= since), default=None)

    def _abort(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    async def _connected(self, from_device: asyncio.StreamReader, to_device: asyncio.StreamWriter) -> None:
        try:
            from_server, to_server = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            to_device.transport.abort()
            return
        pair = {to_device, to_server}
        self._writers |= pair
        if self._refusing:
            self._abort()
        await asyncio.gather(
            self._carry(from_device, to_server, "device"), self._carry(from_server, to_device, "server")
        )
        self._writers -= pair
        for writer in pair:
            writer.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, side: Side) -> None:
        """One direction, until its sender ends it."""
        way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(CHUNKS_UNDER_WAY)
        delivering = asyncio.ensure_future(self._deliver(way, writer))
        free = 0.0  # when all that has come has been let through, at the rate of this link
        try:
            while data := await reader.read(CHUNK_BYTES):
                free = max(free, time.monotonic() - BURST_SECONDS) + len(data) / self.bytes_per_second
                await asyncio.sleep(max(0.0, free - time.monotonic()))
                await way.put((time.monotonic() + self.delay_seconds, data))
        except OSError:
            pass
        self.ended.append((side, time.monotonic()))
        await way.put((time.monotonic() + self.delay_seconds, b""))
        await delivering

    async def _deliver(self, way: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
        while True:
            due, data = await way.get()
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            await self._flowing.wait()
            try:
                if not data:
                    writer.write_eof()
                    return
                writer.write(data)
                await writer.drain()
            except (OSError, RuntimeError):
                writer.transport.abort()
                if not data:
                    return
