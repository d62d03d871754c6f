"""The device's end of the proximal round: it trains alone, and is held near the adapter that was broadcast."""

from __future__ import annotations

from dataclasses import dataclass

from cutlayer.device.attentive import Attentive
from cutlayer.device.device import Device
from cutlayer.device.follow import follow
from cutlayer.device.shape import Shape
from cutlayer.state import Stateless
from cutlayer.types import Clause
from cutlayer.wire.link import Link
from cutlayer.wire.messages import Assignment, Message


@dataclass(frozen=True, slots=True)
class Proximal(Clause):
    """What a device adds to its loss: mu / 2 times the squared distance to the adapter that was broadcast."""

    mu: float


class ProximalTalk(Stateless):
    """Trains alone, on a short lead.

    Args:
      device: The device.
    """

    def __init__(self, device: Device) -> None:
        self._device = device

    async def converse(self, link: Link) -> None:
        """Takes part in rounds until the server says that the run is over."""

        async def work(assignment: Assignment) -> Message | None:
            self._device.begin(assignment)
            heard.begin()
            for step in range(assignment.plan.local_steps):
                await self._device.train(step, before_step=self._pull)
                if (ended := heard.waiting()) is not None:
                    return ended
            return None

        async with Attentive(link) as heard:
            await follow(heard, self._device, work)

    def _pull(self) -> None:
        """Adds the gradient of the term, mu (w - w0), to that of the loss."""
        asked = self._device.now.plan.clause(Proximal)
        if asked is None or not asked.mu:
            return
        for name, parameter in self._device.trainable.parameters.items():
            if parameter.grad is not None:
                away = parameter.detach() - self._device.broadcast[name]
                parameter.grad.add_(away, alpha=asked.mu)


SHAPE = Shape("proximal", ProximalTalk, devices="alone")
