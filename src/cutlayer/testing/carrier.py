"""A modelled connection: packets from one end to the other in this process, after the latency, on the loop's clock."""

from __future__ import annotations

import asyncio
from collections import deque

from cutlayer.transport.carrier import CarrierLost


def modelled_carriers(latency_seconds: float) -> tuple[ModelledCarrier, ModelledCarrier]:
    """The two ends of a connection that changes nothing and ends only when one of them closes it."""
    first, second = ModelledCarrier(latency_seconds), ModelledCarrier(latency_seconds)
    first.other, second.other = second, first
    return first, second


class ModelledCarrier:
    """One end (`transport/carrier.py`). Where the other closes, what it had sent still arrives, then the end of it."""

    intact = True

    def __init__(self, latency_seconds: float) -> None:
        self.other = self
        self._latency_seconds = latency_seconds
        self._closed = self._over = False  # nothing can be sent; nothing more will arrive
        self._under_way: deque[bytes | None] = deque()  # None: the end of it
        self._arrived: asyncio.Queue[bytes | None] = asyncio.Queue()

    async def send(self, packet: bytes) -> None:
        await asyncio.sleep(0)
        if self._closed:
            raise CarrierLost("connection: closed")
        self._dispatch(packet)

    async def receive(self) -> bytes:
        packet = None if self._over else await self._arrived.get()
        if packet is None or self._over:
            self._over = True
            raise CarrierLost("connection: closed")
        return packet

    def close(self) -> None:
        if not self._closed:
            self._dispatch(None)
        self._closed = self._over = True
        self._arrived.put_nowait(None)

    def reset(self) -> None:
        """The connection ends for both at once; what was under way is lost."""
        for end in (self, self.other):
            end._closed = end._over = True
            end._arrived.put_nowait(None)

    def _dispatch(self, packet: bytes | None) -> None:
        self.other._under_way.append(packet)
        asyncio.get_running_loop().call_later(self._latency_seconds, self.other._arrive)

    def _arrive(self) -> None:
        # timers of the same instant may fire in any order: this one says when, the deque says which
        packet = self._under_way.popleft()
        self._closed = self._closed or packet is None
        self._arrived.put_nowait(packet)
