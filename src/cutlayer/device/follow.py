"""Round after round on a device, whatever the shape: its assignment, its steps, its update; or an early end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from functools import partial

from cutlayer.device.attentive import Attentive
from cutlayer.device.device import Device
from cutlayer.device.judging import judge
from cutlayer.state import Stateless
from cutlayer.wire.link import Link, unexpected
from cutlayer.wire.messages import Assignment, Close, Finish, Judge, Message, Update

Work = Callable[[Assignment], Awaitable[Message | None]]
"""The steps of one round; returns None when they are done, or the message that ended them before: a `Close`, or what
comes after a round that went on without this device."""


class RoundTalk(Stateless, ABC):
    """A talk that does the same in each round: some work, at whose end it sends an update.

    It keeps nothing from round to round, unless it overrides `state` and `load`.

    Args:
      device: The device.
    """

    def __init__(self, device: Device) -> None:
        self._device = device

    async def converse(self, link: Link) -> None:
        """See `Talk.converse`."""
        async with Attentive(link) as heard:
            await follow(heard, self._device, partial(self.work, heard), self.update)

    @abstractmethod
    async def work(self, heard: Attentive, assignment: Assignment) -> Message | None:
        """The steps of one round. See `Work`.

        Args:
          heard: The link to the server, which a talk that waits for no answer listens to between steps.
          assignment: What the server wants of the round.
        """

    def update(self) -> Update:
        """The update that the device sends at the end of a round."""
        return self._device.update()


async def follow(link: Link, device: Device, work: Work, update: Callable[[], Update]) -> None:
    """Follows the server until the run is over.

    Args:
      link: To the server.
      device: The device.
      work: What it does in a round.
      update: Makes what it sends at the end of one.
    """
    message = await link.receive()
    while not isinstance(message, Finish):
        ended = None
        if isinstance(message, Assignment):
            ended = await work(message)
            if ended is None or (isinstance(ended, Close) and ended.wanted):
                await link.send(update())
        elif isinstance(message, Judge):
            message = await judge(device, link, message)
            continue
        elif not isinstance(message, Close):  # it asks for an update that was on its way
            raise unexpected(device.name, "an Assignment or Finish", message)
        message = await link.receive() if ended is None or isinstance(ended, Close) else ended


def ends(message: Message, assignment: Assignment) -> bool:
    """Whether a message that comes to a device at work says that its round is over."""
    later = isinstance(message, Assignment | Judge) and message.round > assignment.round
    return later or isinstance(message, Close | Finish)
