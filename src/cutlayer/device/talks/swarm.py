"""The device's end of the swarm round (`rounds/swarm.py`): it trains alone, and others run blocks for it.

    batch -> embeddings, blocks below the cut
             -> calls to spans, forward (`device/chain.py`)
    head, loss, their backward pass
             -> calls to spans, back
    backward below the cut, adapter step

Labels, the head and all that trains stay here. A span sees hidden states, and the trainable tensors of its blocks.

Shapes: B batch, T tokens, D hidden size.
"""

from __future__ import annotations

import math
from dataclasses import astuple

import numpy as np
import torch
from torch import Tensor

from cutlayer.device.attentive import Attentive
from cutlayer.device.chain import Chain, Counted, Errand, Interrupted
from cutlayer.device.device import Device
from cutlayer.device.follow import RoundTalk
from cutlayer.device.shape import Shape
from cutlayer.errors import ConfigError
from cutlayer.fleet.machine import Work
from cutlayer.model.base import Base
from cutlayer.model.part import model_inputs
from cutlayer.policies.routing import Router
from cutlayer.policies.spans import Through
from cutlayer.types import Adapter, Batch, Cost, DevicePlan, Flow
from cutlayer.wire.messages import Assignment, Message, Update

SPANS = "spans"
"""The fact of an update: int64, what the device counted (`policies.spans.COUNTED`)."""


class Swarm(RoundTalk):
    """Trains through spans.

    Args:
      device: The device.
    """

    def __init__(self, device: Device) -> None:
        super().__init__(device)
        self._counted = Counted()
        self._bytes_before = (0, 0)

    async def work(self, heard: Attentive, assignment: Assignment) -> Message | None:
        """See `RoundTalk.work`."""
        device = self._device
        device.begin(assignment)
        heard.begin()
        self._counted, self._bytes_before = Counted(), self._bytes()
        through = assignment.plan.clause(Through)
        random = np.random.default_rng([device.settings.seed, assignment.round, *device.name.encode()])
        router = Router({} if through is None else through.held, random)
        for step in range(assignment.plan.local_steps):
            if through is None:
                await device.train(step)
            else:
                try:
                    await self._step(step, through, router, heard)
                except Interrupted as interrupted:
                    device.take_back()
                    return interrupted.message
            if (ended := heard.waiting()) is not None:
                return ended
        return None

    async def _step(self, step: int, through: Through, router: Router, heard: Attentive) -> None:
        """One local step."""
        device, base = self._device, self._device.base
        assert device.spans is not None, "a device whose plan names spans has a way to them"
        now, batch = device.now, device.draw()
        trained = sorted(base.blocks_in(device.trainable.parameters))
        lowest = trained[0] if trained else base.num_blocks
        mask_BT = batch.attention_mask_BT.bool()
        errand = Errand(now.run, now.round, step, device.name, mask_BT.to(base.device), self._adapters(through), lowest)
        chain = Chain(
            errand,
            device.spans,
            through.address,
            router,
            self._counted,
            heard.waiting,
            restarts=through.restarts,
        )
        h_BTD = await self._below(batch, through, step)
        top_BTD = await chain.forward(through.first, base.num_blocks, h_BTD.detach())
        loss, grad_BTD = await self._head(batch, top_BTD, through, step, trains_below=bool(trained))
        last_BTD: Tensor | None = None
        gradients: Adapter = {}
        if not math.isfinite(loss):
            device.count(batch, loss)  # training has diverged, which the server will say
            return
        if grad_BTD is not None:
            last_BTD, gradients = await chain.back(grad_BTD)
        await self._finish(batch, h_BTD, last_BTD, gradients, through, step)
        device.count(batch, loss)

    def _adapters(self, through: Through) -> dict[int, Adapter]:
        """The trainable tensors of the blocks that others run, by block."""
        found: dict[int, Adapter] = {}
        for name, value in self._device.trainable.values().items():
            block = self._device.base.block_of(name)
            if block is not None and block >= through.first:
                found.setdefault(block, {})[name] = value
        return found

    async def _below(self, batch: Batch, through: Through, step: int) -> Tensor:
        """The batch as it leaves the blocks below the cut, with its graph where something there trains."""
        device, base = self._device, self._device.base
        part = base.device_part(through.first, device.now.plan.blocks)

        def work() -> Tensor:
            part.use(device.trainable.parameters)
            return part.forward(model_inputs(batch, base.device))

        cost = self._cost_below(batch, through)
        hidden_size = device.costs.hidden_size
        return await device.machine.run(
            work,
            like=lambda: torch.empty(
                batch.num_samples, batch.num_tokens, hidden_size, dtype=base.dtype, device=base.device
            ),
            what="forward",
            flops=cost.forward_flops,
            round=device.now.round,
            step=step,
        )

    async def _head(
        self, batch: Batch, h_BTD: Tensor, through: Through, step: int, *, trains_below: bool
    ) -> tuple[float, Tensor | None]:
        """The mean loss, and its gradient by what came out of the last block; None where nothing below trains."""
        device, base = self._device, self._device.base
        part = base.server_part(base.num_blocks, device.now.plan.blocks)
        leaf_BTD = h_BTD.detach().requires_grad_(trains_below)
        whole, below = device.cost(batch), self._cost_below(batch, through)
        loss: Tensor | None = None

        def forward() -> Tensor:
            nonlocal loss
            part.use(device.trainable.parameters)
            mask_BT, labels = batch.attention_mask_BT.bool(), batch.labels.long()
            loss = part.loss(leaf_BTD, mask_BT.to(base.device), labels.to(base.device))
            return loss.detach()

        def backward() -> Tensor | None:
            assert loss is not None
            if loss.requires_grad:
                loss.backward()
            return leaf_BTD.grad

        works = (
            Work(forward, lambda: torch.zeros(()), "forward", whole.forward_flops - below.forward_flops),
            Work(
                backward,
                lambda: torch.empty_like(h_BTD) if trains_below else None,
                "backward",
                whole.backward_flops - below.backward_flops,
            ),
        )
        value, grad_BTD = await device.machine.run_in_turn(works, round=device.now.round, step=step)
        return float(value), grad_BTD

    async def _finish(
        self,
        batch: Batch,
        h_BTD: Tensor,
        grad_BTD: Tensor | None,
        gradients: Adapter,
        through: Through,
        step: int,
    ) -> None:
        """Follows the graph below the cut back, takes the gradients that came, and moves the adapter."""
        device = self._device

        def work() -> None:
            if grad_BTD is not None and h_BTD.requires_grad:
                h_BTD.backward(grad_BTD)
            for name, gradient in gradients.items():
                device.trainable.parameters[name].grad = gradient
            device.move(step)

        await device.machine.run(
            work,
            like=lambda: None,
            what="backward",
            flops=self._cost_below(batch, through).backward_flops,
            round=device.now.round,
            step=step,
        )

    def _cost_below(self, batch: Batch, through: Through) -> Cost:
        plan = self._device.now.plan
        return self._device.cost(batch, DevicePlan(plan.device, cut=through.first, ranks=plan.ranks))

    def _bytes(self) -> tuple[int, int]:
        spans = self._device.spans
        return (0, 0) if spans is None else (spans.bytes_sent, spans.bytes_received)

    def update(self) -> Update:
        if self._device.now.plan.clause(Through) is None:
            return self._device.update()
        moved = [after - before for after, before in zip(self._bytes(), self._bytes_before, strict=True)]
        return self._device.update({SPANS: torch.tensor([*astuple(self._counted), *moved], dtype=torch.int64)})


def _flow(plan: DevicePlan) -> Flow:
    through = plan.clause(Through)
    return Flow() if through is None else Flow(away=(through.first, plan.cut))


def _prepare(base: Base, plan: DevicePlan) -> None:
    model = base.settings
    if plan.clause(Through) and model.drops:
        raise ConfigError(
            f"lora.dropout, model.base_dropout: expected none where blocks are run again elsewhere if a machine fails, "
            f"got {model.lora.dropout:g} and {str(model.base_dropout).lower()}. Set them to 0 and false."
        )


def _reads(plan: DevicePlan) -> tuple[int, int | None]:
    through = plan.clause(Through)
    return (plan.cut if through is None else through.first), plan.top


SHAPE = Shape("swarm", Swarm, flow=_flow, prepare=_prepare, reads=_reads, keeps_labels=True)
