"""The device's end of the round held near (`rounds/held_near.py`): it trains alone, on a short lead."""

from __future__ import annotations

from cutlayer.device.attentive import Attentive
from cutlayer.device.follow import RoundTalk
from cutlayer.device.shape import Shape
from cutlayer.device.talks.local import steps_alone
from cutlayer.policies.held_near import HeldNear
from cutlayer.wire.messages import Assignment, Message


class HeldNearTalk(RoundTalk):
    """Trains alone; to the gradient of its loss it adds that of mu / 2 |w - w0|^2, where w0 is what was broadcast.

    Args:
      device: The device.
    """

    async def work(self, heard: Attentive, assignment: Assignment) -> Message | None:
        """See `RoundTalk.work`."""
        self._device.begin(assignment)
        return await steps_alone(self._device, heard, assignment, before_step=self._pull)

    def _pull(self) -> None:
        """Adds mu (w - w0) to the gradient."""
        held = self._device.now.plan.clause(HeldNear)
        if held is None or not held.mu:
            return
        for name, parameter in self._device.trainable.parameters.items():
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - self._device.broadcast[name], alpha=held.mu)


SHAPE = Shape("held-near", HeldNearTalk, devices="alone")
