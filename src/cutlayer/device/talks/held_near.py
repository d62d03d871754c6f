"""The device's end of the round held near (`rounds/held_near.py`): it trains alone, on a short lead."""

from __future__ import annotations

from cutlayer.device.attentive import Attentive
from cutlayer.device.device import Device
from cutlayer.device.follow import follow
from cutlayer.device.shape import Shape
from cutlayer.device.talks.local import steps_alone
from cutlayer.policies.held_near import HeldNear
from cutlayer.state import Stateless
from cutlayer.wire.link import Link
from cutlayer.wire.messages import Assignment, Message


class HeldNearTalk(Stateless):
    """Trains alone; to the gradient of its loss it adds that of mu / 2 |w - w0|^2, where w0 is what was broadcast.

    Args:
      device: The device.
    """

    def __init__(self, device: Device) -> None:
        self._device = device

    async def converse(self, link: Link) -> None:
        """See `Talk.converse`."""

        async def work(assignment: Assignment) -> Message | None:
            self._device.begin(assignment)
            return await steps_alone(self._device, heard, assignment, before_step=self._pull)

        async with Attentive(link) as heard:
            await follow(heard, self._device, work)

    def _pull(self) -> None:
        """Adds mu (w - w0) to the gradient."""
        held = self._device.now.plan.clause(HeldNear)
        if held is None or not held.mu:
            return
        for name, parameter in self._device.trainable.parameters.items():
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - self._device.broadcast[name], alpha=held.mu)


SHAPE = Shape("held-near", HeldNearTalk, devices="alone")
