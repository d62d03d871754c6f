"""Steps on samples of several devices, for rounds in which nothing goes down (`rounds/stream.py`).

    lift     activations of a shallow cut, through frozen blocks, to the deepest one
    mixed    one step of the adapter that all share, on samples of several devices

Shapes: B batch, T tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from cutlayer.errors import DivergedError
from cutlayer.model.dropout import seeded_dropout
from cutlayer.model.loss import MASKED
from cutlayer.server.concat import concat
from cutlayer.server.engine import Span
from cutlayer.server.owners import SHARED
from cutlayer.server.server import Server
from cutlayer.server.steps.apart import train_apart
from cutlayer.server.steps.stages import Stages
from cutlayer.wire.messages import Activations


async def lift(server: Server, arrived: Activations, cut: int) -> Activations:
    """The activations at a deeper cut: runs the frozen blocks between the device's cut and this one."""
    device = server.ledger.device(arrived.device)
    if device.cut == cut:
        return arrived
    shape = arrived.h_BTD.shape[:2]
    below, above = (server.costs.server(replace(device, cut=c), *shape).forward_flops for c in (device.cut, cut))
    h_BTD: Tensor = await server.machine.run(
        lambda: server.engine.lift(Span(device.cut, cut), arrived),
        like=lambda: torch.empty_like(arrived.h_BTD),
        what="forward",
        flops=below - above,
        round=arrived.round,
        step=arrived.step,
        peer=arrived.device,
    )
    return replace(arrived, h_BTD=h_BTD)


async def train_mixed(
    server: Server, samples: Sequence[Activations], stages: Stages, *, step: int, local_step: int
) -> None:
    """One step of the adapter that all devices share, on samples of several of them, each a batch of one.

    Args:
      server: The server.
      samples: Activations at the cut of `stages`.
      stages: The server side.
      step: The server's step in this round.
      local_step: The place in the schedule of learning rates that it has.

    Raises:
      DivergedError: The loss or a gradient is not finite, and no device's samples are to blame.
    """
    here = [sample for sample in samples if sample.device not in server.diverged]
    if here:
        span = Span(stages.cut, None, server.ledger.plan.devices[0].blocks, trains_below=False)
        await train_apart(
            server, here, span, lambda some: _train(server, some, stages, step=step, local_step=local_step)
        )


async def _train(server: Server, samples: Sequence[Activations], stages: Stages, *, step: int, local_step: int) -> None:
    """See `train_mixed`."""
    round = server.ledger.plan.round
    plan = replace(server.ledger.plan.devices[0], cut=stages.cut)
    cost = server.costs.server(plan, len(samples), max(sample.h_BTD.shape[1] for sample in samples))
    trainable, device = server.adapters.trainable(SHARED), server.base.device

    def compute() -> float:
        h_BTD = concat([sample.h_BTD.to(device) for sample in samples])
        mask_BT = concat([sample.mask_BT for sample in samples]).to(device)
        labels = concat([sample.targets for sample in samples], MASKED).long().to(device)
        stages.use(trainable.parameters)
        with seeded_dropout(server.base.settings.drops, server.settings.seed, "server", SHARED, round, step):
            loss = stages.backward(h_BTD, mask_BT, labels)
        who = ", ".join(sorted({sample.device for sample in samples}))
        try:
            server.engine.check_finite(loss, who, round, step)
        except DivergedError:
            for parameter in trainable.parameters.values():
                parameter.grad = None
            raise
        server.engine.check_gradients(trainable.parameters, None, who, round, step)
        server.engine.step(SHARED, server.learning_rate(round, local_step))
        return loss

    loss = await server.machine.run(
        compute,
        like=lambda: 0.0,
        what="step",
        flops=cost.forward_flops + cost.backward_flops,
        round=round,
        step=step,
    )
    for sample in samples:
        server.ledger.learnt(sample.device, loss, sample.weight)
