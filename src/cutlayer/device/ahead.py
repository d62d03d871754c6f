"""A device's end of a link that sends while the device goes on: one message is on its way, the next in the making."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from cutlayer.wire.link import Around, Link
from cutlayer.wire.messages import Message


class Ahead(Around):
    """A link whose `send` returns when the message before has left. A context manager: at its end all have left.

    So much memory is taken, and no more: of one message on its way, and of one in the making.

    Args:
      link: The device's end.
    """

    def __init__(self, link: Link) -> None:
        super().__init__(link)
        self._leaving: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            await self._left()
        elif self._leaving is not None:
            self._leaving.cancel()

    async def send(self, message: Message) -> None:
        """See `Link.send`, but that it returns before the message has left; an error shows with the next."""
        await self._left()
        self._leaving = asyncio.create_task(self._link.send(message))

    async def _left(self) -> None:
        if self._leaving is not None:
            await self._leaving
            self._leaving = None
