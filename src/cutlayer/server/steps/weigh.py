"""A step of the server that also weighs the LoRA modules it trains (`model/matrix_importance.py`).

As `steps/train.py`, but that the scores of the step are noted of the device whose activations they are of: by proxy at
every step, exactly at the first where the plan says so.

Shapes: B batch, T tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext

import torch
from torch import Tensor

from cutlayer.model.base import Base
from cutlayer.model.matrix_importance import Exactly, by_proxy, flops_of
from cutlayer.policies.importance_ranks import EXACT, PROXY, Weigh
from cutlayer.server.server import Server
from cutlayer.server.steps.train import train
from cutlayer.types import DevicePlan
from cutlayer.wire.messages import Activations


async def train_and_weigh(server: Server, arrived: Activations, device: DevicePlan) -> tuple[float, Tensor | None]:
    """Trains on activations at the cut of `device`, whose batches come whole, and weighs. See `train`.

    Args:
      server: The server.
      arrived: What the device sent.
      device: Its plan.
    """
    weigh = device.clause(Weigh)
    if weigh is None:
        return await train(server, arrived, device)
    engine, base, owner = server.engine, server.base, server.adapters.owner(arrived.device)
    span, part = engine.span(device.cut, device.blocks), base.server_part(device.cut, device.blocks)
    exactly = Exactly(base, part) if weigh.exact and arrived.step == 0 else None

    def compute() -> tuple[float, Tensor | None]:
        with exactly.watching() if exactly else nullcontext():
            graph = engine.loss(owner, span, arrived)
        loss = graph.value
        engine.check_finite(loss, arrived.device, arrived.round, arrived.step)
        grad_BTD = graph.back()
        held = server.adapters.trainable(owner).parameters
        engine.check_gradients(held, grad_BTD, arrived.device, arrived.round, arrived.step)
        scores = _placed(base, PROXY, by_proxy(server.adapters.trainable(owner).parameters))
        if exactly:
            scores |= _placed(base, EXACT, exactly.scores)
        server.ledger.note(arrived.device, **scores)
        engine.step(owner, server.learning_rate(arrived.round, arrived.step))
        return loss, grad_BTD

    cost = server.costs.server(device, *arrived.h_BTD.shape[:2])
    probing = flops_of(base, part.names, *arrived.h_BTD.shape[:2]) if exactly else 0.0
    return await server.machine.run(
        compute,
        like=lambda: (0.0, torch.empty_like(arrived.h_BTD) if span.trains_below else None),
        what="step",
        flops=cost.forward_flops + cost.backward_flops + probing,
        round=arrived.round,
        step=arrived.step,
        peer=arrived.device,
    )


def _placed(base: Base, what: str, scores: Mapping[str, float]) -> dict[str, float]:
    """Scores by the place of each module in the model."""
    return {f"{what}/{place}": scores[name] for place, name in enumerate(base.modules) if name in scores}
