"""What comes back from devices that have the labels: the gradients by what the server sent them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from cutlayer.wire.messages import HiddenGradients


class Returns:
    """The answers to `Hidden` of one round.

    Args:
      devices: Their names.
    """

    def __init__(self, devices: Iterable[str]) -> None:
        self._queues: dict[str, asyncio.Queue[HiddenGradients | None]] = {name: asyncio.Queue() for name in devices}

    def put(self, returned: HiddenGradients) -> None:
        """Gradients have come: those of each device in the order of its steps."""
        self._queues[returned.device].put_nowait(returned)

    def leave(self, device: str) -> None:
        """A device returns nothing more."""
        self._queues[device].put_nowait(None)

    async def next(self, device: str) -> HiddenGradients | None:
        """The next that a device returns; None where nothing more comes."""
        returned = await self._queues[device].get()
        if returned is None:
            self._queues[device].put_nowait(None)  # for whoever asks after this one
        return returned
