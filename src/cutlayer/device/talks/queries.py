"""The device's end of the queries round (`rounds/queries.py`): it trains alone, by forward passes alone.

    each local step     a batch; the loss at 2q places near the adapter, as many in a pass as the form says;
                        q slopes; the adapter moves against the mean of slope x direction

Only B moves (LoRA-FA), and the head; A stays as it was drawn, so it is not sent up. Nothing drops out, and no graph is
kept.

Shapes: Q queries.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cutlayer.device.attentive import Attentive
from cutlayer.device.device import Device
from cutlayer.device.follow import RoundTalk
from cutlayer.device.shape import Shape
from cutlayer.model.base import Base
from cutlayer.model.optimizers import zeroth
from cutlayer.model.recurrence import Recurrence
from cutlayer.model.replicas import replicated
from cutlayer.model.zeroth import lora_fa, mean_terms, two_sided
from cutlayer.packing import StartedFrom
from cutlayer.policies.directions import step_seeds
from cutlayer.policies.queries import queries_of
from cutlayer.types import Adapter, Batch, DevicePlan, Flow
from cutlayer.wire.messages import Assignment, Message, Update


class QueriesTalk(RoundTalk):
    """Trains alone by queries.

    Args:
      device: The device.
    """

    def __init__(self, device: Device) -> None:
        super().__init__(device)
        self._recurrence: Recurrence | None = None  # of this round, where the form is that
        self._last: tuple[float, Sequence[float]] = (0.0, ())  # rate and slopes of the pass before

    async def work(self, heard: Attentive, assignment: Assignment) -> Message | None:
        """See `RoundTalk.work`."""
        self._device.begin(assignment)
        self._recurrence, self._last = None, (0.0, ())
        heard.begin()
        for step in range(assignment.plan.local_steps):
            await self._step(step)
            if (ended := heard.waiting()) is not None:
                return ended
        return None

    async def _step(self, step: int) -> None:
        device, now = self._device, self._device.now
        asked, batch = queries_of(now.plan), self._device.draw()
        seeds = step_seeds(device.settings.seed, device.name, now.round, step, asked.count)

        def work() -> float:
            with torch.no_grad():
                return self._recur(batch, seeds, step) if asked.form == "recurrence" else self._ask(batch, seeds, step)

        loss = await device.forwards(work, batch, step, like=lambda: 0.0)
        device.count(batch, loss)

    def _ask(self, batch: Batch, seeds: Sequence[int], step: int) -> float:
        """Takes the slopes and moves; the mean of the losses."""
        device, asked = self._device, queries_of(self._device.now.plan)
        parameters = device.trainable.parameters
        part = device.base.whole(device.now.plan.blocks)
        slopes, loss = two_sided(
            part, batch, parameters, lora_fa(parameters), seeds, asked.epsilon, at_once=asked.at_once
        )
        moving = {name: parameters[name] for name in lora_fa(parameters)}
        zeroth(mean_terms(seeds, slopes))(moving, {}, device.now.rate(step))
        return loss

    def _recur(self, batch: Batch, seeds: Sequence[int], step: int) -> float:
        """Does as `_ask`, but leaves the step for the next pass to take; the mean of the losses."""
        device, asked = self._device, queries_of(self._device.now.plan)
        values = device.trainable.values()
        if self._recurrence is None:
            self._recurrence = Recurrence({name: values[name] for name in lora_fa(values)}, asked.count, asked.epsilon)
        part = device.base.whole(device.now.plan.blocks)
        with replicated(part, values, self._recurrence.next(seeds, *self._last)):
            losses_2Q = part.losses(batch, asked.passes)
        plus_Q, minus_Q = losses_2Q[: asked.count].tolist(), losses_2Q[asked.count :].tolist()
        slopes = [(plus - minus) / (2 * asked.epsilon) for plus, minus in zip(plus_Q, minus_Q, strict=True)]
        self._last = device.now.rate(step), slopes
        return float(losses_2Q.mean())

    def update(self) -> Update:
        """The update with what has moved, which is not A."""
        device = self._device
        if self._recurrence is not None:
            device.trainable.load(device.trainable.adapter() | self._recurrence.end(*self._last))
            self._recurrence = None
        adapter = device.trainable.adapter()
        return device.update(adapter={name: adapter[name] for name in lora_fa(adapter)})


def moved_shapes(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The shapes of what an update has, of those of the whole adapter."""
    return {name: shapes[name] for name in lora_fa(shapes)}


def _started_from(_base: Base) -> StartedFrom:
    """An update is the difference to what it has of the broadcast."""

    def started_from(broadcast: Adapter, update: Update) -> Adapter:
        return {name: broadcast[name] for name in update.adapter if name in broadcast}

    return started_from


def _flow(plan: DevicePlan) -> Flow:
    asked = queries_of(plan)
    return Flow(forwards=asked.passes, at_once=asked.at_once, backward=False)


SHAPE = Shape("queries", QueriesTalk, flow=_flow, started_from=_started_from, devices="alone")
