"""Carriers in memory, for tests of what runs over them."""

from __future__ import annotations

import asyncio

from cutlayer.transport.carrier import CarrierLost


class MemoryCarrier:
    """One end of a pipe of packets in this process; what is sent is there at once, unless `pass_on` says otherwise."""

    intact = False

    def __init__(self) -> None:
        self.arrived: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.other: MemoryCarrier | None = None
        self.closed = False

    def pass_on(self, packet: bytes) -> list[bytes]:
        """The packets that arrive of one that is sent."""
        return [packet]

    async def send(self, packet: bytes) -> None:
        await asyncio.sleep(0)
        if self.closed or self.other is None or self.other.closed:
            raise CarrierLost("connection: closed")
        for one in self.pass_on(packet):
            self.other.arrived.put_nowait(one)

    async def receive(self) -> bytes:
        if self.closed:
            raise CarrierLost("connection: closed")
        packet = await self.arrived.get()
        if packet is None:
            raise CarrierLost("connection: closed")
        return packet

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.arrived.put_nowait(None)
            if self.other is not None:
                self.other.arrived.put_nowait(None)


def pipe(
    first: MemoryCarrier | None = None, second: MemoryCarrier | None = None
) -> tuple[MemoryCarrier, MemoryCarrier]:
    """The two ends of a connection."""
    one, two = first or MemoryCarrier(), second or MemoryCarrier()
    one.other, two.other = two, one
    return one, two
