"""The device's end of the layers round (`rounds/layers.py`): backward goes block by block from the output, on a clock.

    each local step     forward to the loss; or to the cut, where the gradient comes back from the server
                        head, block L - 1, block L - 2, ...: each a piece of work of its own, and between two of them
                        the device looks at its clock, and whether the server has closed the round
                        the adapter of the blocks that were reached moves

A block is begun if there is time for it at the pace of the one before, the first at that of the forward pass. The
step's part of the time is the plan's (`policies.layerwise.Reach`); without one, every step goes to its end. At the end
of the round the blocks that were reached in some step are sent.

Shapes: B batch, T tokens, D hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from cutlayer.device.attentive import Attentive
from cutlayer.device.device import Device
from cutlayer.device.follow import RoundTalk, ends
from cutlayer.device.shape import Shape
from cutlayer.fleet.clock import now
from cutlayer.model.base import Base
from cutlayer.model.part import Part
from cutlayer.model.seams import Seams
from cutlayer.packing import StartedFrom
from cutlayer.policies.layerwise import REACHED, Pieces, Reach, pieces_of
from cutlayer.types import Adapter, Batch
from cutlayer.wire.link import unexpected
from cutlayer.wire.messages import Assignment, Gradients, Message, Update


class Layers(RoundTalk):
    """Runs backward for as long as it may.

    Args:
      device: The device.
    """

    def __init__(self, device: Device) -> None:
        super().__init__(device)
        self._seams = Seams(device.base.family.blocks)
        self._begun = 0.0
        self._reached: list[int] = []  # steps in which the head and then each block from the output down was reached

    async def work(self, heard: Attentive, assignment: Assignment) -> Message | None:
        """See `RoundTalk.work`."""
        self._device.begin(assignment)
        await self._device.machine.aside(self._part)
        self._begun = now()  # its part was built, if it had not been, before the clock runs
        self._reached = [0] * (assignment.plan.cut + 1)
        step_of = self._alone if assignment.plan.alone else self._below_the_cut
        for step in range(assignment.plan.local_steps):
            if (ended := await step_of(heard, assignment, step)) is not None:
                return ended
        return None

    def _part(self) -> Part:
        """The part of the model that the device holds."""
        base, plan = self._device.base, self._device.now.plan
        return base.whole(plan.blocks) if plan.alone else base.device_part(plan.cut, plan.blocks)

    # ------------------------------------------------------------------ a step

    async def _alone(self, heard: Attentive, assignment: Assignment, step: int) -> Message | None:
        """A step of a device that holds the whole model."""
        device, plan = self._device, assignment.plan
        heard.begin()
        batch = device.draw()

        def forward() -> Tensor:
            whole = device.base.whole(plan.blocks)
            whole.use(device.trainable.parameters)
            with self._seams.sewn(whole, range(plan.cut)), device.dropping(step):
                return whole.loss(batch)

        start = now()
        loss = await device.forwards(forward, batch, step, like=lambda: torch.zeros(()))
        took, value, pieces = now() - start, float(loss.detach()), self._pieces(batch)
        before = sum(self._reached)
        ended = heard.waiting()
        if ended is None and now() + took * pieces.head <= self._until(step):
            await self._piece(loss.backward, pieces.head_flops, step)
            self._reached[0] += 1
            ended = await self._down(heard, pieces, step, took)
        self._seams.forget()
        if ended is not None and sum(self._reached) == before:
            device.take_back()  # nothing has learnt from it
        else:
            device.count(batch, value)
        return ended

    async def _below_the_cut(self, heard: Attentive, assignment: Assignment, step: int) -> Message | None:
        """A step of a device that holds the blocks below the cut: the server's has been taken when it runs backward."""
        device, plan = self._device, assignment.plan
        batch = device.draw()
        start = now()
        h_BTD = await device.bottom(batch, step, within=lambda part: self._seams.sewn(part, range(plan.cut)))
        took = now() - start
        await heard.send(device.activations(batch, h_BTD, step))
        answer = await heard.receive()
        if ends(answer, assignment):
            device.take_back()
            return answer
        if not isinstance(answer, Gradients) or answer.step != step:
            raise unexpected(device.name, f"Gradients of step {step}", answer)
        device.count(batch)
        self._reached[0] += 1
        heard.begin()
        if (grad_BTD := answer.grad_BTD) is None:
            return None
        ended = await self._down(heard, self._pieces(batch), step, took, lambda: h_BTD.backward(grad_BTD))
        self._seams.forget()
        return ended

    async def _down(
        self, heard: Attentive, pieces: Pieces, step: int, took: float, first: Callable[[], None] = lambda: None
    ) -> Message | None:
        """Goes down block by block while there is time, and moves what was reached; what the server said meanwhile.

        Args:
          heard: The link.
          pieces: The blocks.
          step: The local step.
          took: Seconds that its forward pass took here: until a block has been timed, each is reckoned by that.
          first: Done before the first block is followed back.
        """
        device, pace = self._device, took * pieces.block
        for depth, block in enumerate(pieces.blocks):
            if (ended := heard.waiting()) is not None or now() + pace > self._until(step):
                break
            start = now()

            def back(block: int = block, first: Callable[[], None] = first if depth == 0 else lambda: None) -> None:
                first()
                self._seams.back(block)

            await self._piece(back, pieces.block_flops, step)
            self._reached[depth + 1] += 1
            pace = now() - start
        else:
            ended = heard.waiting()
        await device.machine.aside(lambda: device.move(step))
        return ended

    async def _piece(self, work: Callable[[], None], flops: float, step: int) -> None:
        device = self._device
        await device.machine.run(
            work, like=lambda: None, what="backward", flops=flops, round=device.now.round, step=step
        )

    def _pieces(self, batch: Batch) -> Pieces:
        device = self._device
        rank = device.base.settings.lora.rank
        return pieces_of(device.now.plan, device.costs, rank, batch.num_samples, batch.num_tokens)

    def _until(self, step: int) -> float:
        """The time at which a step is to be over, on the clock of the loop."""
        plan = self._device.now.plan
        reach = plan.clause(Reach)
        return math.inf if reach is None else self._begun + reach.until(step, plan.local_steps)

    # ------------------------------------------------------------------ the end of a round

    def update(self) -> Update:
        """The blocks that were reached, and how often each was."""
        device = self._device
        plan, (head, *down) = device.now.plan, self._reached
        counts = [*reversed(down), *([head] if plan.alone else [])]
        facts = {REACHED: torch.tensor(counts, dtype=torch.int32)}
        adapter = device.trainable.adapter()
        return device.update(facts, adapter={name: adapter[name] for name in names_in(device.base, adapter, counts)})


def names_in(base: Base, names: Adapter | dict[str, tuple[int, ...]], counts: list[int]) -> list[str]:
    """Names of a device's trainable tensors that were reached.

    Args:
      base: The model.
      names: By which the tensors, or their shapes, go.
      counts: See `REACHED`.
    """
    places = {name: base.block_of(name) for name in names}
    return [name for name, block in places.items() if counts[-1 if block is None else block] > 0]


def _started_from(_base: Base) -> StartedFrom:
    """An update is the difference to what it has of the broadcast."""

    def started_from(broadcast: Adapter, update: Update) -> Adapter:
        return {name: broadcast[name] for name in update.adapter if name in broadcast}

    return started_from


SHAPE = Shape("layers", Layers, started_from=_started_from, devices="training")
