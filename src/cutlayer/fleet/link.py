"""A connection on the virtual clock: messages by reference, in the time that their bytes would take."""

from __future__ import annotations

import asyncio
from typing import Literal

from cutlayer.fleet.clock import now
from cutlayer.fleet.profile import DeviceProfile
from cutlayer.types import Event, Recorder
from cutlayer.wire.frames import frame_bytes
from cutlayer.wire.link import Link
from cutlayer.wire.messages import Message


def modelled_link(profile: DeviceProfile, record: Recorder) -> tuple[Link, Link]:
    """The two ends of a device's connection, the device's first.

    A direction sends one message after the other: `8 * frame_bytes(message) / rate` seconds, and the message
    arrives the latency later. The other direction is not slowed by it. Each transmission is one event of the
    device, from its first to its last byte: `upload` or `download`.
    """
    up = _Pipe(profile, profile.up_bits_per_second, "upload", record)
    down = _Pipe(profile, profile.down_bits_per_second, "download", record)
    return _End(up, down), _End(down, up)


class _End:
    """One end: it sends into one pipe and receives from the other."""

    def __init__(self, outgoing: _Pipe, incoming: _Pipe) -> None:
        self.bytes_sent = 0
        self.bytes_received = 0
        self._outgoing = outgoing
        self._incoming = incoming

    async def send(self, message: Message) -> None:
        num_bytes = await self._outgoing.transmit(message)
        self.bytes_sent += num_bytes  # read after the wait: others may have been sent meanwhile

    async def receive(self) -> Message:
        message, num_bytes = await self._incoming.arrived.get()
        self.bytes_received += num_bytes
        return message


class _Pipe:
    """One direction, first in, first out."""

    def __init__(
        self,
        profile: DeviceProfile,
        bits_per_second: float,
        what: Literal["upload", "download"],
        record: Recorder,
    ) -> None:
        self.arrived: asyncio.Queue[tuple[Message, int]] = asyncio.Queue()
        self._free = asyncio.Lock()
        self._profile = profile
        self._bits_per_second = bits_per_second
        self._what = what
        self._record = record

    async def transmit(self, message: Message) -> int:
        """Returns the message's length in bytes when the last of them has left."""
        num_bytes = frame_bytes(message)
        async with self._free:
            start = now()
            await asyncio.sleep(num_bytes * 8 / self._bits_per_second)
            arrive = self.arrived.put_nowait
            asyncio.get_running_loop().call_later(self._profile.latency_seconds, arrive, (message, num_bytes))
            step = getattr(message, "step", None)
            event = Event(self._profile.name, self._what, start, now(), message.round, step, None, num_bytes)
            self._record(event)
        return num_bytes
