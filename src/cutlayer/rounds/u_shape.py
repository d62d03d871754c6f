"""The U-shape: the device holds both ends of the model, the server what lies between, and labels stay on the device.

    device                              wire                    server
    batch -> blocks below the cut
                          -> Activations(step, h, mask) ->
                                                                queue, ordered by policy
                                                                blocks up to the tail; the graph is kept
                          <- Hidden(step, h) <-
    tail, loss, backward
                          -> HiddenGradients(step, dh, loss) ->
                                                                backward, adapter step
                          <- Gradients(step, dh) <-
    backward below the cut; the adapter of both ends moves
    ... local_steps times, then
                          -> Update(adapter of both ends) ->    contributions to the aggregate

No message holds a label or a token id. A gradient may still tell of labels whoever knows the head, as the server does:
this keeps them from being sent, and hides nothing that can be worked out.

With a delay (`policies/delay.py`) a device is ahead of the answers by so many steps.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from cutlayer.device.talks.u_shape import SHAPE
from cutlayer.gate.forms import Form, Forms, Script, ScriptOf
from cutlayer.policies.aggregate import Contribution
from cutlayer.policies.delay import delay_of
from cutlayer.rounds.round import Round
from cutlayer.rounds.split import send_answer
from cutlayer.rounds.turn import Turn
from cutlayer.server.arrivals import Arrivals
from cutlayer.server.owners import one_per_device
from cutlayer.server.returns import Returns
from cutlayer.server.server import Server
from cutlayer.server.steps.halves import HalvedStep
from cutlayer.state import State
from cutlayer.types import Costs, DevicePlan, RoundPlan
from cutlayer.wire.link import Link
from cutlayer.wire.messages import Activations, Gradients, Hidden, HiddenGradients


def u_shape(*, server_step: HalvedStep) -> Round:
    """Builds the U-shape. Its plan must leave the head on every device (`policies.labels.labels_on_devices`).

    Args:
      server_step: How arriving activations are processed on the one base model, in two halves.

    Example:
      >>> from cutlayer import fifo, in_halves, u_shape
      >>> round = u_shape(server_step=in_halves(fifo()))
      >>> round.shape.name, round.divisible
      ('u-shape', True)
    """
    return _UShape(server_step)


def script(plan: DevicePlan, forms: Forms) -> Script:
    """A batch without labels for each local step, then gradients of what came down; of later steps so many batches
    before them as the delay allows. Then the update, which a device that holds the whole model sends alone."""
    steps, ahead = 0 if plan.alone else plan.local_steps, delay_of(plan)
    sent = returned = 0
    while returned < steps:
        options: list[Form] = []
        if sent < min(steps, returned + ahead + 1):
            options.append(forms.unlabelled(sent))
        if returned < sent:
            options.append(forms.hidden_gradients(returned))
        message = yield tuple(options)
        sent += isinstance(message, Activations)
        returned += isinstance(message, HiddenGradients)
    yield forms.update()


class _UShape:
    equal_cuts = keeps_activations = cuts_batches = False

    def __init__(self, server_step: HalvedStep) -> None:
        self.shape, self._server_step = SHAPE, server_step
        self.script: ScriptOf = script
        self.together = server_step.together
        self.divisible = server_step.owner is one_per_device

    async def server_end(self, server: Server, links: Mapping[str, Link], plan: RoundPlan) -> list[Contribution]:
        server.begin(plan, self._server_step.owner)
        halved = RoundPlan(plan.round, tuple(device for device in plan.devices if not device.alone))
        arrivals = Arrivals(halved, server.forecast, server.longest_tokens)
        returns = Returns()
        async with asyncio.TaskGroup() as tasks:

            async def reply(answer: Hidden | Gradients) -> None:
                """Sends without holding up the server: the next device's step begins while these bytes leave."""
                tasks.create_task(send_answer(links[answer.device], answer, arrivals))

            for device in plan.devices:
                link = links[device.device]
                if device.alone:
                    tasks.create_task(Turn(server, link, device).hold())
                else:
                    tasks.create_task(_hold_turn(server, link, device, arrivals, returns))
            await self._server_step(server, arrivals, returns, reply)
        return server.contributions()

    def holds(self, device: str, row: int) -> bool:  # noqa: ARG002
        return False

    def server_bytes(self, plan: RoundPlan, costs: Costs, num_tokens: int) -> int:
        return self._server_step.server_bytes(plan, costs, num_tokens)

    def state(self) -> State:
        return self._server_step.state()

    def load(self, state: State) -> None:
        self._server_step.load(state)


async def _hold_turn(server: Server, link: Link, device: DevicePlan, arrivals: Arrivals, returns: Returns) -> None:
    """One device's round, as the server sees it. If the device leaves, nobody waits for it.

    Where it ends early, steps count whose gradients have come back by then; of the others nothing moves on either side.
    """
    turn, name = Turn(server, link, device, Activations, HiddenGradients, ahead=delay_of(device)), device.device

    async def take(message: Activations | HiddenGradients) -> None:
        if turn.late:
            return
        if isinstance(message, Activations):
            arrivals.put(message)
        else:
            arrivals.goes_on(name)
            returns.put(message)

    def leave() -> None:
        arrivals.leave(name)
        returns.leave(name)

    async def settle() -> None:
        leave()
        await arrivals.settled(name)

    await turn.hold(take, closing=settle, gone=leave)
