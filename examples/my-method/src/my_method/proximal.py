"""The device's end of the proximal round: it trains alone, and is held near the adapter that was broadcast."""

from __future__ import annotations

from dataclasses import dataclass

from cutlayer.device.attentive import Attentive
from cutlayer.device.follow import RoundTalk
from cutlayer.device.shape import Shape
from cutlayer.types import Clause
from cutlayer.wire.messages import Assignment, Message


@dataclass(frozen=True, slots=True)
class Proximal(Clause):
    """The term that a device adds to its loss: mu / 2 times the squared distance to the adapter that was broadcast."""

    mu: float


class ProximalTalk(RoundTalk):
    """Trains alone, on a short lead.

    Args:
      device: The device.
    """

    async def work(self, heard: Attentive, assignment: Assignment) -> Message | None:
        """The local steps of a round; or the message that ended them early."""
        self._device.begin(assignment)
        heard.begin()
        for step in range(assignment.plan.local_steps):
            await self._device.train(step, before_step=self._pull)
            if (ended := heard.waiting()) is not None:
                return ended
        return None

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
