"""The device's end of the hybrid round (`rounds/hybrid.py`): it only runs forward, and moves its adapter by seeds.

    each local step     forward -> Activations -> the gradient at the cut comes down -> P forwards a little aside
                        -> how much the loss would grow along each direction -> the adapter moves; Facts(slopes) go up

No graph is kept, so the device needs the memory of inference. Nothing drops out: two forward passes are to differ by
the direction alone.

Shapes: B batch, T tokens, D hidden size, P directions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cutlayer.device.attentive import Attentive
from cutlayer.device.follow import RoundTalk, ends
from cutlayer.device.shape import Shape
from cutlayer.model.optimizers import zeroth
from cutlayer.model.part import model_inputs
from cutlayer.model.trainable import Trainable, TrainSettings
from cutlayer.model.zeroth import mean_terms, projected
from cutlayer.policies.directions import directions_of, step_seeds
from cutlayer.types import Batch, DevicePlan, Flow
from cutlayer.wire.link import Link, unexpected
from cutlayer.wire.messages import Assignment, Facts, Gradients, Message, Update

SLOPES = "slopes"
"""The fact of a step: fp32 (P,), by how much the loss would grow along each direction, per unit of its length."""


class Hybrid(RoundTalk):
    """Runs forward and is told the gradient at the cut.

    Args:
      device: The device.
    """

    async def work(self, heard: Attentive, assignment: Assignment) -> Message | None:
        """See `RoundTalk.work`."""
        self._device.begin(assignment)
        for step in range(assignment.plan.local_steps):
            if (ended := await self._step(heard, assignment, step)) is not None:
                self._device.take_back()
                return ended
        return None

    async def _step(self, link: Link, assignment: Assignment, step: int) -> Message | None:
        device, passes = self._device, 1 + directions_of(assignment.plan).count
        batch = device.draw()
        h_BTD = await device.bottom(batch, step, graph=False, share=1 / passes)
        await link.send(device.activations(batch, h_BTD, step))
        answer = await link.receive()
        if ends(answer, assignment):
            return answer
        if not isinstance(answer, Gradients) or answer.step != step:
            raise unexpected(device.name, f"Gradients of step {step}", answer)
        slopes_P = await self._slopes(batch, h_BTD, answer.grad_BTD, step)
        device.count(batch)
        await link.send(Facts(assignment.run, assignment.round, step, device.name, {SLOPES: slopes_P}))
        return None

    async def _slopes(self, batch: Batch, h_BTD: Tensor, grad_BTD: Tensor | None, step: int) -> Tensor:
        """Looks along each direction and moves; zeros where nothing on the device trains."""
        device, now = self._device, self._device.now
        plan, asked = now.plan, directions_of(now.plan)
        if grad_BTD is None:
            return torch.zeros(asked.count)
        part = device.base.device_part(plan.cut, plan.blocks)
        seeds = step_seeds(device.settings.seed, device.name, now.round, step, asked.count)

        def work() -> Tensor:
            adapter, inputs = device.trainable.parameters, model_inputs(batch, device.base.device)
            with torch.no_grad():
                grown = projected(
                    part, inputs, adapter, adapter, seeds, asked.mu, h_BTD, grad_BTD, at_once=asked.at_once
                )
            slopes_P = torch.tensor([value / asked.mu for value in grown], dtype=torch.float32)
            move(device.trainable, device.settings, plan, now.rate(step), seeds, slopes_P)
            return slopes_P

        return await device.forwards(
            work, batch, step, share=asked.count / (1 + asked.count), like=lambda: torch.zeros(asked.count)
        )

    def update(self) -> Update:
        """The steps are known by their slopes: the adapter stays here."""
        return self._device.update(adapter={})


def move(
    trainable: Trainable, settings: TrainSettings, plan: DevicePlan, rate: float, seeds: Sequence[int], slopes_P: Tensor
) -> None:
    """Moves an adapter against the mean of slope x direction, on the device and, to the same bits, on the server.

    Args:
      trainable: The adapter.
      settings: How it trains: its weight decay.
      plan: The device's.
      rate: The run's learning rate at this step.
      seeds: Of the directions.
      slopes_P: What was found along them.
    """
    terms = mean_terms(seeds, slopes_P.tolist())
    rule = zeroth(terms, weight_decay=settings.optimizer.weight_decay)
    trainable.step(rate * directions_of(plan).scale, rule)


def _flow(plan: DevicePlan) -> Flow:
    asked = directions_of(plan)
    return Flow(forwards=1 + asked.count, at_once=asked.at_once, backward=False)


SHAPE = Shape("hybrid", Hybrid, flow=_flow)
