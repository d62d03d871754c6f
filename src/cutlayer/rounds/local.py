"""The local round: every device trains the whole model by itself; only adapters cross the network.

    device                              wire                    server
                          <- Assignment(plan, adapter) <-
    local_steps times: batch -> forward, loss, backward, adapter step
                          -> Update(adapter) ->                 contributions to the aggregate

This is federated learning: the cut is L and the head is on the device, so labels never leave it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from cutlayer.errors import DeviceGone
from cutlayer.policies.aggregate import Contribution
from cutlayer.rounds.round import Round
from cutlayer.server.server import Server, one_per_device
from cutlayer.types import Costs, DevicePlan, RoundPlan
from cutlayer.wire.link import Link, unexpected
from cutlayer.wire.messages import Close, Update


def local(*, personal: bool = False) -> Round:
    """Builds the local round. Its plan must leave the whole model on every device (`policies.cut.whole_model`).

    Args:
      personal: Whether every device goes on from its own adapter in the next round, and not from the aggregate.
    """
    return _Local(personal)


class _Local:
    conversation = "alone"
    equal_cuts = together = keeps_activations = cuts_batches = False
    divisible = True

    def __init__(self, personal: bool) -> None:
        self._personal = personal

    async def server_end(self, server: Server, links: Mapping[str, Link], plan: RoundPlan) -> list[Contribution]:
        server.begin(plan, one_per_device)
        async with asyncio.TaskGroup() as tasks:
            for device in plan.devices:
                tasks.create_task(_turn(server, links[device.device], device))
        if self._personal:
            server.personal |= {name: update.adapter for name, update in server.open.updates.items()}
        return server.contributions()

    def holds(self, device: str, row: int) -> bool:  # noqa: ARG002
        return False

    def server_bytes(self, plan: RoundPlan, costs: Costs, num_tokens: int) -> int:  # noqa: ARG002
        """The full adapter and every device's: values, nothing that trains."""
        adapters = [costs.device_adapter_bytes(device) for device in plan.devices]
        return sum(adapters) + max(adapters)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to continue from: devices keep what outlives a round."""


async def _turn(server: Server, link: Link, device: DevicePlan) -> None:
    """One device's round, as the server sees it."""
    try:
        await link.send(server.assignment(device))
        message = await link.receive()
        if late := isinstance(message, Close):
            await link.send(message)
            message = await link.receive()
    except DeviceGone:
        return server.leave(device.device)
    if not isinstance(message, Update):
        raise unexpected(device.device, "an Update", message)
    return server.accept(message, late=late)
