"""A step of the server on one message of activations: forward, loss, backward; the adapter moves with the last part.

Shapes: B batch, T tokens, D hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cutlayer.server.owners import SHARED
from cutlayer.server.server import Server
from cutlayer.types import DevicePlan
from cutlayer.wire.messages import Activations, Gradients


async def train(server: Server, arrived: Activations, device: DevicePlan) -> tuple[float, Tensor | None]:
    """Trains on activations at the cut of `device`.

    Of a part of a batch the gradient adds up with those of the others; the adapter's step comes with the last.

    Args:
      server: The server.
      arrived: What one device sent; or what several did, as if `SHARED` had sent it.
      device: The plan, of the one or of any of several.

    Returns:
      The loss, and its gradient by the activations (B, T, D); None where nothing below the cut trains.

    Raises:
      DivergedError: The loss or a gradient is not finite; the adapter has not moved.
    """
    engine, owner = server.engine, server.adapters.owner(arrived.device)
    span = engine.span(device.cut, device.blocks)

    def compute() -> tuple[float, Tensor | None]:
        graph = engine.loss(owner, span, arrived)
        loss = graph.value
        engine.check_finite(loss, arrived.device, arrived.round, arrived.step)
        grad_BTD = graph.back(arrived.share)
        held = server.adapters.trainable(owner).parameters
        engine.check_gradients(held, grad_BTD, arrived.device, arrived.round, arrived.step)
        if arrived.ends_step:
            engine.step(owner, server.learning_rate(arrived.round, arrived.step))
        return loss, grad_BTD

    cost = server.costs.server(device, *arrived.h_BTD.shape[:2])
    return await server.machine.run(
        compute,
        like=lambda: (0.0, torch.empty_like(arrived.h_BTD) if span.trains_below else None),
        what="step",
        flops=cost.forward_flops + cost.backward_flops,
        round=arrived.round,
        step=arrived.step,
        peer=None if arrived.device == SHARED else arrived.device,
    )


def answer(server: Server, arrived: Activations, loss: float, grad_BTD: Tensor | None) -> Gradients:
    """The answer to activations that were trained on; they count from now on."""
    server.ledger.trained(arrived, loss)
    return Gradients(server.run, arrived.round, arrived.step, arrived.device, grad_BTD, loss, arrived.micro_batch)
