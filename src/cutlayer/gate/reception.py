"""The server's end of a real link: what a device says that no round has a place for, and what becomes of one that
sends what may not be believed.

    session -> guard: form -> Timelined -> unpacking -> guard: values -> Attended -> the round
"""

from __future__ import annotations

from collections.abc import Callable

from cutlayer.errors import DeviceGone, MalformedMessage, Refused, WireError
from cutlayer.types import Event, Recorder
from cutlayer.wire.frames import frame_bytes
from cutlayer.wire.link import Around, Link
from cutlayer.wire.messages import Assignment, Judge, Measured, Message, SiteRound


class Timelined(Around):
    """A link that takes out a device's record of its round, and lays it on the server's clock.

    A device's clock may be anywhere: its record counts from when it had its assignment, and is laid from where that was
    sent. What it says happened after now happened now, and what it says of bytes is at most what passed here.
    """

    def __init__(self, link: Link, clock: Callable[[], float], record: Recorder) -> None:
        super().__init__(link)
        self._clock, self._record = clock, record
        self._opened = 0.0
        self._up_before = self._down = 0  # bytes received when the round opened, and sent since

    async def send(self, message: Message) -> None:
        if isinstance(message, Assignment):
            self._up_before, self._down = self.bytes_received, 0
        self._down += frame_bytes(message)
        await self._link.send(message)
        if isinstance(message, Assignment):
            self._opened = self._clock()

    async def receive(self) -> Message:
        while isinstance(message := await self._link.receive(), Measured):
            for event in self._events(message):
                self._record(event)
        return message

    def _events(self, measured: Measured) -> list[Event]:
        longest = self._clock() - self._opened
        left = {"upload": self.bytes_received - self._up_before, "download": self._down}

        def passed(what: str, claimed: float) -> int:
            """The bytes of an event: what it says, as long as so much has passed."""
            taken = min(int(claimed), left.get(what, 0))
            left[what] = left.get(what, 0) - taken
            return taken

        return [
            Event(
                measured.device,
                measured.whats[int(what)],
                self._opened + min(start, longest),
                self._opened + min(end, longest),
                measured.round,
                None if step < 0 else int(step),
                None,
                passed(measured.whats[int(what)], num_bytes),
                flops,
            )
            for start, end, step, num_bytes, flops, what in measured.events_E6.tolist()
        ]


class Attended(Around):
    """A link whose device is shown the door when what it sends may not be believed; the round goes on without it."""

    def __init__(
        self, link: Link, eject: Callable[[WireError], DeviceGone], refused: Callable[[], DeviceGone | None]
    ) -> None:
        super().__init__(link)
        self._eject, self._refused = eject, refused

    async def send(self, message: Message) -> None:
        """See `Link.send`.

        Raises:
          DeviceGone: A round would begin with a device that was refused since it was planned.
        """
        gone = self._refused() if isinstance(message, Assignment | Judge | SiteRound) else None
        if gone is not None:
            raise gone
        await self._link.send(message)

    def refuse(self, error: WireError) -> None:
        """See `Refusing`."""
        self._eject(error)

    async def receive(self) -> Message:
        """See `Link.receive`.

        Raises:
          DeviceGone: What arrived was refused.
        """
        try:
            return await self._link.receive()
        except (Refused, MalformedMessage) as error:
            raise self._eject(error) from error
