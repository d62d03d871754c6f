"""The device's end of the U-shape (`rounds/u_shape.py`): it holds both ends of the model, and so the labels stay here.

    each local step     forward -> Activations -> Hidden comes down -> forward, loss, backward -> HiddenGradients
                        -> Gradients come down -> backward, step

With a delay of d steps the device is at up to d + 1 steps together: it runs ahead while the server has the earlier
ones, whose graphs it keeps. The order in which answers come changes nothing (`model/versions.py`).

A device that holds the whole model trains alone, as in the local round.

Shapes: B batch, T tokens, D hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from cutlayer.device.ahead import Ahead
from cutlayer.device.attentive import Attentive
from cutlayer.device.follow import RoundTalk, ends
from cutlayer.device.shape import Shape
from cutlayer.device.talks.local import steps_alone
from cutlayer.policies.delay import delay_of
from cutlayer.types import Batch, DevicePlan, Flow
from cutlayer.wire.link import Link, unexpected
from cutlayer.wire.messages import Assignment, Gradients, Hidden, HiddenGradients, Message


@dataclass(slots=True)
class _Begun:
    """A step under way."""

    batch: Batch
    h_BTD: Tensor
    returned: bool = False  # whether its `HiddenGradients` have been sent


class UShape(RoundTalk):
    """Sends activations up, follows what comes down to the loss, and waits for the gradient at the cut.

    Args:
      device: The device.
    """

    async def work(self, heard: Attentive, assignment: Assignment) -> Message | None:
        """See `RoundTalk.work`."""
        self._device.begin(assignment)
        if assignment.plan.alone:
            return await steps_alone(self._device, heard, assignment)
        if delay_of(assignment.plan) == 0:
            return await self._steps(heard, assignment)
        async with Ahead(heard) as ahead:
            return await self._steps(ahead, assignment)

    async def _steps(self, link: Link, assignment: Assignment) -> Message | None:
        """All steps of a round, at most so many under way as the delay allows; or the message that ended them."""
        device, plan = self._device, assignment.plan
        most, begun = 1 + delay_of(plan), dict[int, _Begun]()
        drawn = done = 0
        while done < plan.local_steps:
            while drawn < min(plan.local_steps, done + most):
                batch = device.draw()
                begun[drawn] = _Begun(batch, await device.bottom(batch, drawn))
                await link.send(device.activations(batch, begun[drawn].h_BTD, drawn))
                drawn += 1
            answer = await link.receive()
            if ends(answer, assignment):
                device.take_back()
                return answer
            step = next((step for step, one in begun.items() if not one.returned), None)
            if isinstance(answer, Hidden) and answer.step == step:
                await self._return(link, answer, begun[step])
            elif isinstance(answer, Gradients) and answer.step == done and begun[done].returned:
                one = begun.pop(done)
                device.count(one.batch)
                await device.back(one.batch, one.h_BTD, answer.grad_BTD, done, moves=True)
                done += 1
            else:
                raise unexpected(device.name, f"Hidden of step {step}, or Gradients of step {done}", answer)
        return None

    async def _return(self, link: Link, hidden: Hidden, one: _Begun) -> None:
        device, now = self._device, self._device.now
        loss, grad_BTD = await device.tail(one.batch, hidden.h_BTD, hidden.step)
        one.returned = True
        await link.send(HiddenGradients(now.run, now.round, hidden.step, device.name, grad_BTD, loss))


def _flow(plan: DevicePlan) -> Flow:
    return Flow(in_flight=1 + delay_of(plan))


SHAPE = Shape("u-shape", UShape, flow=_flow, labels_stay=True)
