"""The up-and-down round: every local step sends activations up and brings their gradient down.

    device                              wire                    server
    batch -> device-side forward
                          -> Activations(step, h, mask, labels) ->
                                                                queue, ordered by policy
                                                                server-side forward, loss, backward, adapter step
                          <- Gradients(step, dh) <-
    device-side backward, adapter step
    ... local_steps times, then
                          -> Update(adapter) ->                 contributions to the aggregate

Devices run at the same time, each at its own pace; only the end of the round is a barrier.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from cutlayer.device.device import Device
from cutlayer.policies.aggregate import Contribution
from cutlayer.rounds.round import Round, unexpected
from cutlayer.server.arrivals import Arrivals
from cutlayer.server.server import Server
from cutlayer.server.steps import ServerStep
from cutlayer.types import Costs, DevicePlan, RoundPlan
from cutlayer.wire.link import Link
from cutlayer.wire.messages import Activations, Assignment, Finish, Gradients, Update


def split(*, server_step: ServerStep) -> Round:
    """Builds the up-and-down round.

    Args:
      server_step: How arriving activations are processed on the one base model.
    """
    return _Split(server_step)


class _Split:
    keeps_activations = False

    def __init__(self, server_step: ServerStep) -> None:
        self._server_step = server_step
        self.equal_cuts = server_step.equal_cuts

    async def device_end(self, link: Link, device: Device) -> None:
        while isinstance(message := await link.receive(), Assignment):
            device.begin(message)
            for step in range(message.plan.local_steps):
                await link.send(await device.forward(step))
                gradients = await link.receive()
                if not isinstance(gradients, Gradients) or gradients.step != step:
                    raise unexpected(device.name, f"Gradients of step {step}", gradients)
                await device.backward(gradients)
            await link.send(device.update())
        if not isinstance(message, Finish):
            raise unexpected(device.name, "an Assignment or Finish", message)

    async def server_end(self, server: Server, links: Mapping[str, Link], plan: RoundPlan) -> list[Contribution]:
        server.begin(plan, self._server_step.owner)
        arrivals = Arrivals(plan, server.forecast, server.longest_tokens)
        async with asyncio.TaskGroup() as tasks:

            async def reply(gradients: Gradients) -> None:
                """Sends without holding up the server: the next device's step begins while these bytes leave."""
                tasks.create_task(links[gradients.device].send(gradients))

            for device in plan.devices:
                tasks.create_task(links[device.device].send(server.assignment(device)))
                tasks.create_task(_listen(server, links[device.device], device, arrivals))
            await self._server_step(server, arrivals, reply)
        return server.contributions()

    def holds(self, device: str, row: int) -> bool:  # noqa: ARG002
        return False

    def server_bytes(self, plan: RoundPlan, costs: Costs, num_tokens: int) -> int:
        return self._server_step.server_bytes(plan, costs, num_tokens)

    def state_dict(self) -> dict[str, Any]:
        return self._server_step.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._server_step.load_state_dict(state)


async def _listen(server: Server, link: Link, device: DevicePlan, arrivals: Arrivals) -> None:
    """Takes in one device's messages of one round: its activations, then its update."""
    for step in range(device.local_steps):
        message = await link.receive()
        if not isinstance(message, Activations) or message.step != step:
            raise unexpected(device.device, f"Activations of step {step}", message)
        arrivals.put(message)
    message = await link.receive()
    if not isinstance(message, Update):
        raise unexpected(device.device, "an Update", message)
    server.accept(message)
