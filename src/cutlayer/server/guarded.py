"""The server's end of a link behind a guard: what a device sends is checked as it travelled and as it was unpacked.

transport -> check_form -> unpack -> check_values -> the round
"""

from __future__ import annotations

from collections.abc import Callable

from cutlayer.server.guard import Guard
from cutlayer.wire.link import Link
from cutlayer.wire.messages import Assignment, Message


def guarded(link: Link, guard: Guard, packing: Callable[[Link], Link]) -> Link:
    """An end that opens its guard with each assignment that is sent; its `receive` raises `Refused`.

    Args:
      link: The transport's end.
      guard: Of the device at the other end.
      packing: Puts compression around an end.
    """
    return _Checked(packing(_Checked(link, guard.check_form)), guard.check_values, guard.open)


class _Checked:
    """A link whose messages are checked as they come in."""

    def __init__(
        self, link: Link, check: Callable[[Message], None], opens: Callable[[Assignment], None] | None = None
    ) -> None:
        self._link, self._check, self._opens = link, check, opens

    @property
    def bytes_sent(self) -> int:
        return self._link.bytes_sent

    @property
    def bytes_received(self) -> int:
        return self._link.bytes_received

    async def send(self, message: Message) -> None:
        if self._opens is not None and isinstance(message, Assignment):
            self._opens(message)
        await self._link.send(message)

    async def receive(self) -> Message:
        message = await self._link.receive()
        self._check(message)
        return message
