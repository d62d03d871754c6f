"""The device's end of a real link: it notes what the device did and when, and says so before each update."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import torch

from cutlayer.device.probe import LinkRates
from cutlayer.fleet.clock import now
from cutlayer.types import Event
from cutlayer.wire.frames import frame_bytes
from cutlayer.wire.link import Around, Link
from cutlayer.wire.messages import Assignment, Judge, Measured, Message, Update

BeforeRound = Callable[[Assignment | Judge], Awaitable[None]]


class OwnLink(Around):
    """A link that records.

    How long a transmission took is not seen at an end: what is handed over may wait in buffers below. A transmission
    counts as long as its bytes take at the rate that was measured when the device came, and no shorter than it took
    to hand them over.

    Args:
      link: The session.
      name: The device's.
      rates: Of the link, as measured.
      before_round: Done with each assignment, and with what asks the device to judge, before anybody gets it.
    """

    def __init__(self, link: Link, name: str, rates: LinkRates, before_round: BeforeRound) -> None:
        super().__init__(link)
        self._name, self._rates, self._before_round = name, rates, before_round
        self._events: list[Event] = []
        self._since = 0.0

    def record(self, event: Event) -> None:
        """Notes something that the device's machine did."""
        self._events.append(event)

    async def send(self, message: Message) -> None:
        if isinstance(message, Update):
            await self._link.send(self._timeline(message))
        start, length = now(), frame_bytes(message)
        await self._link.send(message)
        end = max(now(), start + 8 * length / self._rates.up_bits_per_second)
        self._transmitted("upload", start, end, message, length)

    async def receive(self) -> Message:
        message = await self._link.receive()
        if isinstance(message, Assignment | Judge):
            self._events, self._since = [], now()
            await self._before_round(message)
        else:
            length = frame_bytes(message)
            start = max(self._since, now() - 8 * length / self._rates.down_bits_per_second)
            self._transmitted("download", start, now(), message, length)
        return message

    def _transmitted(self, what: str, start: float, end: float, message: Message, length: int) -> None:
        step = getattr(message, "step", None)
        self._events.append(Event(self._name, what, start, end, message.round, step, None, length))

    def _timeline(self, update: Update) -> Measured:
        whats = tuple(sorted({event.what for event in self._events}))
        # a clock may be set back while a round is going on; what it then says began before the round began with it
        starts = [max(0.0, event.start_seconds - self._since) for event in self._events]
        rows = [
            (
                start,
                max(start, event.end_seconds - self._since),
                -1 if event.step is None else event.step,
                event.num_bytes,
                event.flops,
                whats.index(event.what),
            )
            for event, start in zip(self._events, starts, strict=True)
        ]
        return Measured(
            update.run,
            update.round,
            update.device,
            whats,
            torch.tensor(rows, dtype=torch.float64).reshape(-1, 6),
        )
