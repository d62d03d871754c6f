"""The device's end of the local round (`rounds/local.py`): it trains the whole model alone and sends its adapter."""

from __future__ import annotations

from collections.abc import Callable

from cutlayer.device.attentive import Attentive
from cutlayer.device.device import Device
from cutlayer.device.follow import RoundTalk
from cutlayer.device.shape import Shape
from cutlayer.model.part import WholePart
from cutlayer.wire.messages import Assignment, Message


class Local(RoundTalk):
    """Trains alone.

    Args:
      device: The device.
    """

    async def work(self, heard: Attentive, assignment: Assignment) -> Message | None:
        """See `RoundTalk.work`."""
        self._device.begin(assignment)
        return await steps_alone(self._device, heard, assignment)


async def steps_alone(
    device: Device,
    heard: Attentive,
    assignment: Assignment,
    *,
    part: Callable[[], WholePart] | None = None,
    before_step: Callable[[], None] | None = None,
    after_step: Callable[[], None] | None = None,
) -> Message | None:
    """The local steps of a device that holds the whole model; or the message that ended them.

    Args:
      device: The device, which has begun the round.
      heard: Its end of the link.
      assignment: Of the round.
      part, before_step, after_step: See `Device.train`.
    """
    heard.begin()
    for step in range(assignment.plan.local_steps):
        await device.train(step, part=part, before_step=before_step, after_step=after_step)
        if (ended := heard.waiting()) is not None:
            return ended
    return None


SHAPE = Shape("local", Local, devices="alone")
