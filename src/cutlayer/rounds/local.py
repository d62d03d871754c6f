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

from cutlayer.policies.aggregate import Contribution
from cutlayer.rounds.round import Round
from cutlayer.rounds.turn import Turn
from cutlayer.server.owners import one_per_device
from cutlayer.server.server import Server
from cutlayer.state import Stateless
from cutlayer.types import Costs, RoundPlan
from cutlayer.wire.link import Link


def local() -> Round:
    """Builds the local round. Its plan must leave the whole model on every device (`policies.cut.whole_model`)."""
    return _Local()


class _Local(Stateless):
    conversation = "alone"
    equal_cuts = together = keeps_activations = cuts_batches = False
    divisible = True

    async def server_end(self, server: Server, links: Mapping[str, Link], plan: RoundPlan) -> list[Contribution]:
        server.begin(plan, one_per_device)
        async with asyncio.TaskGroup() as tasks:
            for device in plan.devices:
                tasks.create_task(Turn(server, links[device.device], device).hold())
        return server.contributions()

    def holds(self, device: str, row: int) -> bool:  # noqa: ARG002
        return False

    def server_bytes(self, plan: RoundPlan, costs: Costs, num_tokens: int) -> int:  # noqa: ARG002
        """The full adapter and every device's: values, nothing that trains."""
        adapters = [costs.device_adapter_bytes(device) for device in plan.devices]
        return sum(adapters) + max(adapters)
