"""The form of every round: the server's end of the conversation, and the script of what a device may say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from cutlayer.device.shape import Shape
from cutlayer.gate.forms import ScriptOf
from cutlayer.policies.aggregate import Contribution
from cutlayer.server.server import Server
from cutlayer.state import Keeper
from cutlayer.types import Costs, RoundPlan
from cutlayer.wire.link import Link


class Round(Keeper, Protocol):
    """The shape of a round. The two ends share nothing but a link.

    Attributes:
      shape: the device's end, and what both ends must know of it.
      script: what a device may send, message after message.
      equal_cuts: whether all devices must be cut at the same block.
      together: whether a device may have to wait for another, so that one which is late holds them all up.
      keeps_activations: whether activations of one round are trained on in later ones.
      cuts_batches: whether the batch of a local step may come in micro-batches.
      divisible: whether several servers may hold it, each with a part of its devices: on none of them does anything
        that is trained depend on another device's activations.

    Example:
      >>> from cutlayer import Method, Round, cut_at, everyone, mean_per_block, relay
      >>> from cutlayer.testing.playground import played
      >>> class Told:  # a relay that says who is in a round
      ...     def __init__(self) -> None:
      ...         self._relay = relay()
      ...     def __getattr__(self, name: str):
      ...         return getattr(self._relay, name)
      ...     async def server_end(self, server, links, plan):
      ...         print(plan.round, [device.device for device in plan.devices])
      ...         return await self._relay.server_end(server, links, plan)
      >>> round: Round = Told()
      >>> _ = played(Method((everyone(), cut_at(1)), round, mean_per_block()), num_devices=2)
      0 ['device-0', 'device-1']
      1 ['device-0', 'device-1']
    """

    shape: Shape
    script: ScriptOf
    equal_cuts: bool
    together: bool
    keeps_activations: bool
    cuts_batches: bool
    divisible: bool

    async def server_end(self, server: Server, links: Mapping[str, Link], plan: RoundPlan) -> list[Contribution]:
        """Runs on the server, one round: returns what was trained, by those who did not leave (`DeviceGone`)."""

    def holds(self, device: str, row: int) -> bool:
        """Whether the server keeps the activations of this row of a device's data, so that it need only be named."""

    def server_bytes(self, plan: RoundPlan, costs: Costs, num_tokens: int) -> int:
        """Memory that the server needs in a round of this plan, at batches of `num_tokens`."""
