"""The server's end of a link behind a guard: what a device sends is checked as it travelled and as it was unpacked.

transport -> check_form -> unpack -> check_values -> the round
"""

from __future__ import annotations

from collections.abc import Callable

from cutlayer.gate.guard import Guard
from cutlayer.wire.link import Around, Link
from cutlayer.wire.messages import Assignment, Close, Judge, Message


def guarded(link: Link, guard: Guard, packing: Callable[[Link], Link]) -> Link:
    """An end that tells its guard of each assignment, judge and close that is sent; its `receive` raises `Refused`.

    Args:
      link: The transport's end.
      guard: Of the device at the other end.
      packing: Puts compression around an end.
    """
    return _Whole(packing(_Travelled(link, guard)), guard)


class _End(Around):
    """An end of a link with its guard."""

    def __init__(self, link: Link, guard: Guard) -> None:
        super().__init__(link)
        self._guard = guard


class _Travelled(_End):
    """Messages as they travel."""

    async def receive(self) -> Message:
        return self._guard.check_form(await self._link.receive())


class _Whole(_End):
    """Messages in whole tensors."""

    async def send(self, message: Message) -> None:
        if isinstance(message, Assignment):
            self._guard.open(message)
        elif isinstance(message, Judge):
            self._guard.judge(message)
        elif isinstance(message, Close):
            self._guard.close(message)
        await self._link.send(message)

    async def receive(self) -> Message:
        message = await self._link.receive()
        self._guard.check_values(message)
        return message
