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

A step may go up and down in parts (micro-batches), one after the other or two at a time (docs/decisions/0023).
The device's end of this and every other shape is in the file of the same name in `device/talks/`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from cutlayer.device.shape import Shape
from cutlayer.device.talks.split import SHAPE
from cutlayer.errors import DeviceGone
from cutlayer.gate.forms import Forms, Script, ScriptOf
from cutlayer.policies.aggregate import Contribution
from cutlayer.rounds.round import Round
from cutlayer.rounds.turn import Turn
from cutlayer.server.adapters import Places, nowhere_else
from cutlayer.server.arrivals import Arrivals
from cutlayer.server.owners import one_per_device
from cutlayer.server.server import Server
from cutlayer.server.steps.step import ServerStep
from cutlayer.state import State
from cutlayer.types import Costs, DevicePlan, RoundPlan
from cutlayer.wire.link import Link
from cutlayer.wire.messages import Activations, Gradients, Hidden


def split(*, server_step: ServerStep) -> Round:
    """Builds the up-and-down round.

    Args:
      server_step: How arriving activations are processed on the one base model.

    Example:
      >>> from cutlayer import merged, split
      >>> round = split(server_step=merged())
      >>> round.equal_cuts, round.divisible
      (True, False)
    """
    return up_and_down(SHAPE, script, hold_turn, server_step, cuts_batches=server_step.cuts_batches)


def script(plan: DevicePlan, forms: Forms) -> Script:
    """A batch for each local step, whole or in parts, then the update."""
    for step in range(plan.local_steps):
        yield from forms.batch(step)
    yield forms.update()


HoldTurn = Callable[[Server, Link, DevicePlan, Arrivals], Coroutine[Any, Any, None]]
"""Holds one device's part of a round: its activations go into the queue."""


def up_and_down(
    shape: Shape,
    script: ScriptOf,
    hold_turn: HoldTurn,
    server_step: ServerStep,
    *,
    cuts_batches: bool,
    places: Places = nowhere_else,
) -> Round:
    """Builds a round in which every local step sends activations up and brings their gradient down.

    Args:
      shape: The device's end.
      script: What a device may send.
      hold_turn: What the server does with each device's messages.
      server_step: How arriving activations are processed on the one base model.
      cuts_batches: Whether the batch of a local step may come in micro-batches.
      places: Where the tensors of an update lie in the full ones.
    """
    return _UpAndDown(shape, script, hold_turn, server_step, cuts_batches, places)


class _UpAndDown:
    keeps_activations = False

    def __init__(
        self,
        shape: Shape,
        script: ScriptOf,
        hold_turn: HoldTurn,
        server_step: ServerStep,
        cuts_batches: bool,
        places: Places,
    ) -> None:
        self.shape, self.script, self.cuts_batches, self.places = shape, script, cuts_batches, places
        self._hold_turn, self._server_step = hold_turn, server_step
        self.equal_cuts, self.together = server_step.equal_cuts, server_step.together
        self.divisible = server_step.owner is one_per_device

    async def server_end(self, server: Server, links: Mapping[str, Link], plan: RoundPlan) -> list[Contribution]:
        server.begin(plan, self._server_step.owner)
        arrivals = Arrivals(plan, server.forecast, server.longest_tokens)
        async with asyncio.TaskGroup() as tasks:

            async def reply(gradients: Gradients) -> None:
                """Sends without holding up the server: the next device's step begins while these bytes leave."""
                tasks.create_task(send_answer(links[gradients.device], gradients, arrivals))

            for device in plan.devices:
                tasks.create_task(self._hold_turn(server, links[device.device], device, arrivals))
            await self._server_step(server, arrivals, reply)
        return server.contributions(self.places)

    def holds(self, device: str, row: int) -> bool:  # noqa: ARG002
        return False

    def server_bytes(self, plan: RoundPlan, costs: Costs, num_tokens: int) -> int:
        return self._server_step.server_bytes(plan, costs, num_tokens)

    def state(self) -> State:
        return self._server_step.state()

    def load(self, state: State) -> None:
        self._server_step.load(state)


async def send_answer(link: Link, answer: Hidden | Gradients, arrivals: Arrivals) -> None:
    """Sends an answer of a step; who is gone needs none."""
    with contextlib.suppress(DeviceGone):
        await link.send(answer)
    arrivals.answer(answer.device)


async def hold_turn(server: Server, link: Link, device: DevicePlan, arrivals: Arrivals) -> None:
    """One device's round, as the server sees it. If the device leaves, nobody waits for it.

    Where it ends early, what both sides have done by then counts: what the server is at is answered first; activations
    that wait, or come later, are not trained on, on neither side. A step of which only some parts were answered is
    none: no adapter has moved, and the device takes its batch back.
    """
    turn = Turn(server, link, device, Activations)

    async def take(activations: Activations) -> None:
        if not turn.late:
            arrivals.put(activations)

    async def settle() -> None:
        arrivals.leave(device.device)
        await arrivals.settled(device.device)

    await turn.hold(take, closing=settle, gone=lambda: arrivals.leave(device.device))
