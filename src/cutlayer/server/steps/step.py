"""Calls and facts that every server step of an up-and-down round offers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from cutlayer.server.arrivals import Arrivals
from cutlayer.server.owners import Owner
from cutlayer.server.server import Server
from cutlayer.state import Keeper
from cutlayer.types import Costs, RoundPlan
from cutlayer.wire.messages import Gradients

Reply = Callable[[Gradients], Awaitable[None]]
"""Sends an answer, without holding up the server."""


class ServerStep(Keeper, Protocol):
    """Empties a round's queue.

    Attributes:
      owner: who owns the server adapter that a device's activations train.
      equal_cuts: whether all devices must be cut at the same block.
      together: whether a device may have to wait for what another has not sent.
      cuts_batches: whether parts of one device's batch may be served with others' activations between them.

    Example:
      >>> from cutlayer import Method, ServerStep, cut_at, everyone, fifo, mean_per_block, one_device_at_a_time, split
      >>> from cutlayer.testing.playground import played
      >>> class Told:  # one device at a time, and who was answered
      ...     def __init__(self) -> None:
      ...         self._step = one_device_at_a_time(fifo())
      ...     def __getattr__(self, name: str):
      ...         return getattr(self._step, name)
      ...     async def __call__(self, server, arrivals, reply):
      ...         async def told(gradients):
      ...             print(gradients.device, gradients.step)
      ...             await reply(gradients)
      ...         await self._step(server, arrivals, told)
      >>> step: ServerStep = Told()
      >>> method = Method((everyone(), cut_at(1)), split(server_step=step), mean_per_block())
      >>> _ = played(method, num_devices=2, rounds=1, local_steps=1)  # device-1 is the faster one
      device-1 0
      device-0 0
    """

    owner: Owner

    equal_cuts: bool
    together: bool
    cuts_batches: bool

    async def __call__(self, server: Server, arrivals: Arrivals, reply: Reply) -> None:
        """Serves every step of a round, and answers it."""

    def server_bytes(self, plan: RoundPlan, costs: Costs, num_tokens: int) -> int:
        """Memory that the server needs, at batches of `num_tokens`."""
