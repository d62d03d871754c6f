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

from cutlayer.device.shape import Shape
from cutlayer.device.talks.local import SHAPE
from cutlayer.gate.forms import Forms, Script, ScriptOf
from cutlayer.policies.aggregate import Contribution
from cutlayer.rounds.round import Round
from cutlayer.rounds.turn import Turn
from cutlayer.server.adapters import Places, nowhere_else
from cutlayer.server.owners import one_per_device
from cutlayer.server.server import Server
from cutlayer.state import Stateless
from cutlayer.types import Costs, DevicePlan, RoundPlan
from cutlayer.wire.link import Link


def local() -> Round:
    """Builds the local round. Its plan must leave the whole model on every device (`policies.cut.whole_model`).

    Example:
      >>> from cutlayer import local
      >>> round = local()
      >>> round.divisible
      True
    """
    return alone(SHAPE, script)


def script(_plan: DevicePlan, forms: Forms) -> Script:
    """One update."""
    yield forms.update()


def alone(shape: Shape, script: ScriptOf, places: Places = nowhere_else) -> Round:
    """Builds a round in which every device trains by itself, whatever its talk does.

    Args:
      shape: The device's end.
      script: What a device may send.
      places: Where the tensors of an update lie in the full ones.
    """
    return _Alone(shape, script, places)


class _Alone(Stateless):
    equal_cuts = together = keeps_activations = cuts_batches = False
    divisible = True

    def __init__(self, shape: Shape, script: ScriptOf, places: Places) -> None:
        self.shape, self.script, self.places = shape, script, places

    async def server_end(self, server: Server, links: Mapping[str, Link], plan: RoundPlan) -> list[Contribution]:
        server.begin(plan, one_per_device)
        async with asyncio.TaskGroup() as tasks:
            for device in plan.devices:
                tasks.create_task(Turn(server, links[device.device], device).hold())
        return server.contributions(self.places)

    def holds(self, device: str, row: int) -> bool:  # noqa: ARG002
        return False

    def server_bytes(self, plan: RoundPlan, costs: Costs, num_tokens: int) -> int:  # noqa: ARG002
        """The full adapter and every device's: values, nothing that trains."""
        adapters = [costs.device_adapter_bytes(device) for device in plan.devices]
        return sum(adapters) + max(adapters)
