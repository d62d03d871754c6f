"""The hybrid round: the server trains by gradients, and devices, which only run forward, by differences along seeds.

    device                              wire                    server
    batch -> forward, no graph
                          -> Activations(step, h, mask, labels) ->
                                                                queue, ordered by policy
                                                                server-side forward, loss, backward, adapter step
                          <- Gradients(step, dh) <-
    P forwards aside; the adapter moves
                          -> Facts(step, P slopes) ->           noted: they and the seeds are the device's step
    ... local_steps times, then
                          -> Update() ->                        the device's steps are made again

A device's adapter never goes up: from what was broadcast the server makes the same steps, to the same bits.

Shapes: P directions.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from cutlayer.device.talks.hybrid import SHAPE, SLOPES, move
from cutlayer.gate.forms import Forms, Listed, Script
from cutlayer.model.trainable import Trainable
from cutlayer.policies.directions import directions_of, step_seeds
from cutlayer.rounds.round import Round
from cutlayer.rounds.split import up_and_down
from cutlayer.rounds.turn import Turn
from cutlayer.server.arrivals import Arrivals
from cutlayer.server.server import Server
from cutlayer.server.steps.step import ServerStep
from cutlayer.types import Adapter, DevicePlan
from cutlayer.wire.link import Link
from cutlayer.wire.messages import Activations, Facts, Update


def hybrid(*, server_step: ServerStep) -> Round:
    """Builds the hybrid round. Its plan must say along how many directions devices look (`along_directions`).

    Args:
      server_step: How arriving activations are processed on the one base model.

    Example:
      >>> from cutlayer import fifo, hybrid, one_device_at_a_time
      >>> round = hybrid(server_step=one_device_at_a_time(fifo()))
      >>> round.shape.name, round.cuts_batches
      ('hybrid', False)
    """
    return up_and_down(SHAPE, script, hold_turn, server_step, cuts_batches=False)


def script(plan: DevicePlan, forms: Forms) -> Script:
    """A batch and its slopes for each local step, then an update without an adapter."""
    slopes = {SLOPES: torch.empty(directions_of(plan).count, device="meta")}
    for step in range(plan.local_steps):
        yield from forms.batch(step)
        yield forms.facts(step, slopes, lambda facts: forms.expect_slopes(SLOPES, facts[SLOPES]))
    yield forms.update(Listed(forms, {}, {}))


async def hold_turn(server: Server, link: Link, device: DevicePlan, arrivals: Arrivals) -> None:
    """One device's round, as the server sees it: as `rounds/split.py`, with the slopes of each step."""
    turn = Turn(server, link, device, Activations, Facts)
    slopes: list[Tensor] = []

    async def take(message: Activations | Facts) -> None:
        if isinstance(message, Facts):
            slopes.append(message.facts[SLOPES])
        elif not turn.late:
            arrivals.put(message)

    async def settle() -> None:
        arrivals.leave(device.device)
        await arrivals.settled(device.device)

    async def finish(update: Update) -> Update:
        adapter = await server.machine.run(
            lambda: moved(server, device, slopes),
            like=lambda: server.assignment(device).adapter,
            what="step",
            flops=0.0,  # an addition for each number of an adapter, beside forward passes of a model
            round=update.round,
            step=None,
            peer=device.device,
        )
        return replace(update, adapter=adapter)

    await turn.hold(take, closing=settle, finish=finish, gone=lambda: arrivals.leave(device.device))


def moved(server: Server, device: DevicePlan, slopes: list[Tensor]) -> Adapter:
    """A device's adapter after its steps, made again from what was broadcast to it.

    Args:
      server: Which has broadcast it.
      device: The device's plan.
      slopes: (P,) of each step that it has taken.
    """
    assignment, settings, round = server.assignment(device), server.settings, server.ledger.plan.round
    trainable = Trainable(assignment.adapter, settings.optimizer)
    for step, slopes_P in enumerate(slopes):
        seeds = step_seeds(settings.seed, device.device, round, step, directions_of(device).count)
        move(trainable, settings, device, assignment.rate(step), seeds, slopes_P)
    return trainable.adapter()
