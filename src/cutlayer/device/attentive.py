"""A device's end of a link that hears, while the device works, whether the server has something to say.

For rounds in which nothing comes down: between two steps the device asks whether the round has been ended.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from cutlayer.wire.link import Around, Link
from cutlayer.wire.messages import Message


class Attentive(Around):
    """A link that can be listened to without waiting. A context manager: it stops listening at its end.

    Args:
      link: The device's end.
    """

    def __init__(self, link: Link) -> None:
        super().__init__(link)
        self._next: asyncio.Task[Message] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._next is not None:
            self._next.cancel()

    def begin(self) -> None:
        """Listens from now on, until the next message."""
        self._next = self._next or asyncio.create_task(self._receive())

    def waiting(self) -> Message | None:
        """The message that has come since `begin`, if one has."""
        if self._next is None or not self._next.done():
            return None
        heard, self._next = self._next, None
        return heard.result()

    async def receive(self) -> Message:
        """See `Link.receive`."""
        if self._next is None:
            return await self._link.receive()
        message = await self._next
        self._next = None
        return message

    async def _receive(self) -> Message:
        return await self._link.receive()
