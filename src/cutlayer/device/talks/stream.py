"""The device's end of the stream (`rounds/stream.py`): activations go up, nothing comes down, nothing here trains.

Where the plan says that activations repeat (`policies/repeat.py`), a sample is sent once and from then on only named.
"""

from __future__ import annotations

import torch

from cutlayer.device.ahead import Ahead
from cutlayer.device.attentive import Attentive
from cutlayer.device.device import Device
from cutlayer.device.follow import RoundTalk
from cutlayer.device.shape import Shape
from cutlayer.policies.repeat import Repeat
from cutlayer.state import State
from cutlayer.wire.messages import Activations, Assignment, Message, Recall


class Stream(RoundTalk):
    """Sends activations up, the next batch in the making while one is on its way.

    Args:
      device: The device.
    """

    def __init__(self, device: Device) -> None:
        super().__init__(device)
        self._sent: set[int] = set()  # the samples whose activations the server keeps

    async def work(self, heard: Attentive, assignment: Assignment) -> Message | None:
        """See `RoundTalk.work`."""
        self._device.begin(assignment)
        heard.begin()
        async with Ahead(heard) as ahead:
            for step in range(assignment.plan.local_steps):
                if (ended := heard.waiting()) is not None:
                    return ended
                await ahead.send(await self._batch(assignment, step))
        return heard.waiting()

    async def _batch(self, assignment: Assignment, step: int) -> Activations | Recall:
        """Runs a batch up to the cut and forgets it; or names it, if the server has all of it."""
        device, batch = self._device, self._device.draw()
        device.count(batch)
        if not assignment.plan.clause(Repeat):
            return device.activations(batch, await device.bottom(batch, step), step)
        rows_B = torch.tensor(batch.indices, dtype=torch.int32)
        if self._sent.issuperset(batch.indices):
            return Recall(assignment.run, assignment.round, step, device.name, rows_B, batch.num_tokens)
        h_BTD = await device.bottom(batch, step)
        self._sent.update(batch.indices)
        return device.activations(batch, h_BTD, step, rows_B)

    def state(self) -> State:
        """The samples whose activations the server keeps."""
        return State({"sent": sorted(self._sent)})

    def load(self, state: State) -> None:
        """Goes on from a `state`."""
        self._sent = set(state.facts.get("sent", ()))


SHAPE = Shape("stream", Stream, devices="frozen")
