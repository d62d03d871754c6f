"""What every shape of a round offers: the conversation's two ends."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from cutlayer.device.device import Device
from cutlayer.errors import WireError
from cutlayer.policies.aggregate import Contribution
from cutlayer.server.server import Server
from cutlayer.types import Costs, RoundPlan
from cutlayer.wire.link import Link
from cutlayer.wire.messages import Assignment, Close, Finish, Message


class Round(Protocol):
    """The shape of a round. The two ends share nothing but a link.

    Attributes:
      equal_cuts: whether all devices must be cut at the same block.
      together: whether a device may have to wait for another, so that one which is late holds them all up.
      keeps_activations: whether activations of one round are trained on in later ones.
    """

    equal_cuts: bool
    together: bool
    keeps_activations: bool

    async def device_end(self, link: Link, device: Device) -> None:
        """Runs on the device, over all rounds, until the server says it is finished."""

    async def server_end(self, server: Server, links: Mapping[str, Link], plan: RoundPlan) -> list[Contribution]:
        """Runs on the server, one round: returns what was trained, by those who did not leave (`DeviceGone`)."""

    def holds(self, device: str, row: int) -> bool:
        """Whether the server keeps the activations of this row of a device's data, so that it need only be named."""

    def server_bytes(self, plan: RoundPlan, costs: Costs, num_tokens: int) -> int:
        """Memory that the server needs in a round of this plan, at batches of `num_tokens`."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to decide as this one would have; JSON can hold it."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from a `state_dict`."""


async def follow(link: Link, device: Device, work: Callable[[Assignment], Awaitable[Message | None]]) -> None:
    """The device's end over all rounds.

    Args:
      link: To the server.
      device: The device.
      work: Its steps of one round; returns None when they are done, or the message that ended them before: a `Close`,
        or what comes after a round that went on without this device.
    """
    message = await link.receive()
    while not isinstance(message, Finish):
        ended = None
        if isinstance(message, Assignment):
            device.begin(message)
            ended = await work(message)
            if ended is None or (isinstance(ended, Close) and ended.wanted):
                await link.send(device.update())
        elif not isinstance(message, Close):  # it asks for an update that was on its way
            raise unexpected(device.name, "an Assignment or Finish", message)
        message = await link.receive() if ended is None or isinstance(ended, Close) else ended


def ends(message: Message, assignment: Assignment) -> bool:
    """Whether a message that comes to a device at work says that its round is over."""
    later = isinstance(message, Assignment) and message.round > assignment.round
    return later or isinstance(message, Close | Finish)


def unexpected(device: str, expected: str, message: object) -> WireError:
    """The error for a message that this point of the conversation has no place for."""
    return WireError(
        f"device {device}: expected {expected}, got {type(message).__name__}. Do both ends run one version?"
    )
