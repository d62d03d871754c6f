"""The device's end of judging (`rounds/judging.py`): what an adapter comes to on the rows that it holds out.

    who holds                         judges
    --------------------------------  ----------------------------------------------------------------
    the whole model                   by itself
    the first blocks and a tail       with the server in between: HeldOut up, Hidden down; labels stay
    the first blocks                  nothing: HeldOut with its labels up, and the server knows the rest

All of it with whole forward passes, no dropout and no graph; nothing that the device keeps for training is touched.

Shapes: B batch, T tokens, D hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from cutlayer.device.attentive import Attentive
from cutlayer.device.device import Device
from cutlayer.fleet.allotment import frequency_of
from cutlayer.model.dropout import still
from cutlayer.model.part import model_inputs
from cutlayer.model.sums import Sums
from cutlayer.types import Adapter, Batch, DevicePlan
from cutlayer.wire.link import Link, unexpected
from cutlayer.wire.messages import Assignment, Close, Finish, HeldOut, Hidden, Judge, Judged, Message

T = TypeVar("T")


async def judge(device: Device, link: Link, asked: Judge) -> Message:
    """Judges and answers, or stops where the server says something else meanwhile: the message that comes next.

    Args:
      device: The device.
      link: To the server.
      asked: What it is to judge.
    """
    if device.before_judging is not None:
        device.before_judging(asked)
    device.machine.set_pace(frequency_of(asked.plan))  # not as slow as the round before may have had it
    device.base.fold(asked.folds)
    judging = _Judging(device, asked)
    async with Attentive(link) as heard:
        ended = await _batches(device, heard, asked, judging)
        if ended is not None:
            return ended
        sums = judging.sums
        await heard.send(
            Judged(
                run=asked.run,
                round=asked.round,
                device=device.name,
                samples=sums.samples,
                weight=sums.weight,
                loss=math.fsum(sums.losses),
                counts_3C=sums.counts_3C,
            )
        )
        return await heard.receive()


async def _batches(device: Device, heard: Attentive, asked: Judge, judging: _Judging) -> Message | None:
    """All rows that are held out; or the message that ended it."""
    heard.begin()
    for number, batch in enumerate(device.held_out.batches(asked.plan.batch_size)):
        h_BTD = await (judging.whole(batch) if asked.plan.alone else judging.bottom(batch))
        if (ended := heard.waiting()) is not None:
            return ended
        if h_BTD is None:
            continue
        await heard.send(_as_sent(device, asked, number, batch, h_BTD))
        if not asked.plan.head:
            judging.sums.note(batch.num_samples, batch.weight)
            continue
        answer = await heard.receive()
        if isinstance(answer, Close | Finish | Assignment | Judge):
            return answer
        if not isinstance(answer, Hidden) or answer.step != number:
            raise unexpected(device.name, f"Hidden of held-out batch {number}", answer)
        heard.begin()
        await judging.tail(batch, answer.h_BTD)
    return None


def _as_sent(device: Device, asked: Judge, number: int, batch: Batch, h_BTD: Tensor) -> HeldOut:
    return HeldOut(
        run=asked.run,
        round=asked.round,
        number=number,
        device=device.name,
        h_BTD=h_BTD,
        mask_BT=batch.attention_mask_BT.bool(),
        labels=None if asked.plan.head else batch.labels.int(),
        weight=batch.weight,
    )


class _Judging:
    """One device's forward passes, with the adapter that is judged.

    Attributes:
      sums: what they came to so far.
    """

    def __init__(self, device: Device, asked: Judge) -> None:
        self._device, self._asked = device, asked
        self._adapter: Adapter = {name: value.to(device.base.device) for name, value in asked.adapter.items()}
        self._blocks = device.base.blocks_in(self._adapter)
        self.sums = Sums(asked.classes)

    async def whole(self, batch: Batch) -> None:
        """Runs a batch through the whole model."""
        base, adapter = self._device.base, self._adapter
        if self._asked.kept:
            kept, _ = base.structure.from_tensors(self._asked.kept, "the server")
            adapter = base.structure.slice_all(adapter, kept)

        def work() -> None:
            part = base.pruned(kept, self._blocks) if self._asked.kept else base.whole(self._blocks)
            part.use(adapter)
            labels, inputs = batch.labels.long().to(base.device), model_inputs(batch, base.device)
            self.sums.judge(part.model, lambda: part.model(**inputs).logits, labels, batch.weight)

        await self._run(work, lambda: None, batch, self._asked.plan)

    async def bottom(self, batch: Batch) -> Tensor:
        """Runs a batch up to the cut: (B, T, D)."""
        base, plan = self._device.base, self._asked.plan

        def work() -> Tensor:
            part = base.device_part(plan.cut, self._blocks)
            part.use(self._adapter)
            with still(part.model):
                return part.forward(model_inputs(batch, base.device))

        shape_BTD = (batch.num_samples, batch.num_tokens, self._device.costs.hidden_size)
        return await self._run(work, lambda: torch.empty(shape_BTD, dtype=base.dtype), batch, plan.below)

    async def tail(self, batch: Batch, h_BTD: Tensor) -> None:
        """Runs what came down through the tail."""
        base, plan = self._device.base, self._asked.plan
        top = plan.top
        assert top is not None, "who is sent hidden states has a tail"

        def work() -> None:
            part = base.tail_part(top, self._blocks)
            part.use(self._adapter)
            given = h_BTD.to(base.device), batch.attention_mask_BT.bool().to(base.device)
            labels = batch.labels.long().to(base.device)
            self.sums.judge(part.model, lambda: part.logits(*given), labels, batch.weight)

        await self._run(work, lambda: None, batch, plan, less=plan.below)

    async def _run(
        self,
        work: Callable[[], T],
        like: Callable[[], T],
        batch: Batch,
        plan: DevicePlan,
        *,
        less: DevicePlan | None = None,
    ) -> T:
        """Does work that is a forward pass of the part of a plan, without that of a lesser part."""
        costs, size = self._device.costs, (batch.num_samples, batch.num_tokens)
        flops = costs.device_forward(plan, *size) - (costs.device_forward(less, *size) if less else 0.0)
        return await self._device.machine.run(
            work, like=like, what="forward", flops=flops, round=self._asked.round, step=None
        )
