"""Returns of devices that have the labels: the gradients by what the server sent them."""

from __future__ import annotations

import asyncio

from cutlayer.wire.messages import HiddenGradients


class Returns:
    """The answers to `Hidden` of one round, each for whoever waits for this step of this device."""

    def __init__(self) -> None:
        self._awaited: dict[tuple[str, int], asyncio.Future[HiddenGradients | None]] = {}
        self._left: set[str] = set()

    def put(self, returned: HiddenGradients) -> None:
        """Gradients have come."""
        self._place(returned.device, returned.step).set_result(returned)

    def leave(self, device: str) -> None:
        """A device returns nothing more."""
        self._left.add(device)
        for (name, _), place in self._awaited.items():
            if name == device and not place.done():
                place.set_result(None)

    async def of(self, device: str, step: int) -> HiddenGradients | None:
        """Waits for the gradients that a device returns in a step; None where nothing more comes."""
        if device in self._left and (device, step) not in self._awaited:
            return None
        returned = await self._place(device, step)
        del self._awaited[device, step]
        return returned

    def _place(self, device: str, step: int) -> asyncio.Future[HiddenGradients | None]:
        if (device, step) not in self._awaited:
            self._awaited[device, step] = asyncio.get_running_loop().create_future()
        return self._awaited[device, step]
