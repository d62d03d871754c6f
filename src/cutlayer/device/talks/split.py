"""The device's end of the up-and-down round (`rounds/split.py`): each local step waits for the gradient at the cut.

In parts, if the plan says so, of which two may be under way:

    computes    forward 0   forward 1   backward 0   forward 2   backward 1   backward 2, step
    sends                   part 0      part 1                   part 2
    awaits                              answer 0                 answer 1     answer 2

Shapes: B batch, T tokens, D hidden size.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace

from torch import Tensor

from cutlayer.data.batches import parts_of
from cutlayer.device.ahead import Ahead
from cutlayer.device.attentive import Attentive
from cutlayer.device.follow import RoundTalk, ends
from cutlayer.device.shape import Shape
from cutlayer.types import Batch
from cutlayer.wire.link import Link, unexpected
from cutlayer.wire.messages import Assignment, Gradients, Message


class Split(RoundTalk):
    """Sends activations up and waits for their gradient.

    A talk that does more below the cut overrides what a round is made of: `begin`, `ahead`, `back`, `update`.

    Args:
      device: The device.
    """

    async def work(self, heard: Attentive, assignment: Assignment) -> Message | None:
        """See `RoundTalk.work`."""
        self.begin(assignment)
        if assignment.plan.in_flight == 1:
            return await self._steps(heard, assignment)
        async with Ahead(heard) as ahead:
            return await self._steps(ahead, assignment)

    def begin(self, assignment: Assignment) -> None:
        """Begins a round."""
        self._device.begin(assignment)

    async def ahead(self, part: Batch, step: int, number: int) -> Tensor:
        """Runs a part of a step's batch up to the cut: (B, T, D)."""
        return await self._device.bottom(part, step, number)

    async def back(self, part: Batch, h_BTD: Tensor, grad_BTD: Tensor | None, step: int, *, last: bool) -> None:
        """Follows the gradient at the cut back through what `ahead` made; with the last part the adapter moves."""
        await self._device.back(part, h_BTD, grad_BTD, step, moves=last)

    async def _steps(self, link: Link, assignment: Assignment) -> Message | None:
        for step in range(assignment.plan.local_steps):
            if (ended := await self._step(link, assignment, step)) is not None:
                self._device.take_back()
                return ended
        return None

    async def _step(self, link: Link, assignment: Assignment, step: int) -> Message | None:
        """One local step: as many parts on their way as the plan allows, each answered in turn."""
        device, plan = self._device, assignment.plan
        batch = device.draw()
        parts = parts_of(batch, plan.parts_of(batch.num_samples))
        weight = sum(part.weight for part in parts)
        graphs: deque[Tensor] = deque()  # activations of parts that were sent and not answered
        behind = plan.in_flight - 1
        for sends in range(len(parts) + behind):
            if sends < len(parts):
                part = parts[sends]
                graphs.append(await self.ahead(part, step, sends))
                activations = replace(
                    device.activations(part, graphs[-1], step),
                    micro_batch=sends,
                    micro_batches=len(parts),
                    others_weight=weight - part.weight,
                )
                await link.send(activations)
            awaits = sends - behind
            if awaits < 0:
                continue
            answer = await link.receive()
            if ends(answer, assignment):
                return answer
            if not isinstance(answer, Gradients) or (answer.step, answer.micro_batch) != (step, awaits):
                raise unexpected(device.name, f"Gradients of step {step}", answer)
            last = awaits + 1 == len(parts)
            if last:  # a step that is not done to its end does not count
                device.count(batch)
            await self.back(parts[awaits], graphs.popleft(), answer.grad_BTD, step, last=last)
        return None


SHAPE = Shape("split", Split)
