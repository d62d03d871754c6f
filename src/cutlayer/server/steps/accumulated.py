"""One shared server adapter, stepped once a round on the gradients of everybody: cuts and the order do not matter.

Stepping a shared adapter device by device and then averaging counts the server's gradients once for each device that
passes (a warning in a public audit of split federated code, which the notes on HSFL quote). Here the adapter stands
still while a round is going on; each device's gradients add up by themselves, weighted by what was trained on, and are
joined by name at the end:

    g = sum_k sum_t w_kt g_kt / sum_k sum_t w_kt       w the loss normaliser of a batch, g the gradient of its mean loss

Devices are answered at once, so nobody waits for another.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cutlayer.errors import DivergedError
from cutlayer.model.trainable import Trainable
from cutlayer.policies.order import Order, fifo
from cutlayer.server.arrivals import Arrivals
from cutlayer.server.owners import SHARED, Owner, one_for_all
from cutlayer.server.server import Server
from cutlayer.server.steps.step import Reply, ServerStep
from cutlayer.server.steps.train import answer
from cutlayer.state import Stateless
from cutlayer.types import Adapter, Costs, RoundPlan
from cutlayer.wire.messages import Activations


def accumulated() -> ServerStep:
    """Serves activations as they arrive on one adapter, which moves when the round ends.

    Example:
      >>> from cutlayer import accumulated
      >>> step = accumulated()
      >>> step.equal_cuts, step.together
      (False, False)
    """
    return _Accumulated(fifo())


class GradientSum:
    """The gradients of one device, and what they weigh.

    Attributes:
      gradients: by name, of the sum of losses that are weighted by what was trained.
      weight: of the batches.
    """

    def __init__(self) -> None:
        self.gradients: Adapter = {}
        self.weight = 0

    def take(self, trainable: Trainable, weight: int) -> None:
        """Takes the gradients that an adapter has, of the mean loss over a batch of this weight."""
        found = {name: parameter.grad for name, parameter in trainable.parameters.items()}
        self.add({name: gradient for name, gradient in found.items() if gradient is not None}, weight)
        for parameter in trainable.parameters.values():
            parameter.grad = None

    def add(self, gradients: Adapter, weight: int) -> None:
        """Adds the gradients of a mean loss over a batch of this weight."""
        for name, gradient in gradients.items():
            known = self.gradients.get(name)
            self.gradients[name] = gradient * weight if known is None else known.add_(gradient, alpha=weight)
        self.weight += weight


class _Accumulated(Stateless):
    owner: Owner = staticmethod(one_for_all)

    equal_cuts = together = cuts_batches = False

    def __init__(self, order: Order) -> None:
        self._order = order

    async def __call__(self, server: Server, arrivals: Arrivals, reply: Reply) -> None:
        sums: dict[str, GradientSum] = {}
        while (arrived := await arrivals.pick(self._order)) is not None:
            try:
                loss, grad_BTD = await _back(server, arrived, sums.setdefault(arrived.device, GradientSum()))
            except DivergedError as error:
                server.blame(error)
                arrivals.answer(arrived.device)
                continue
            await reply(answer(server, arrived, loss, grad_BTD))
        await step_once(server, sums)

    def server_bytes(self, plan: RoundPlan, costs: Costs, num_tokens: int) -> int:
        """One model and one step, a gradient of the server's adapter for every device, and a queue of the others."""
        step = max(costs.server(device, device.batch_size, num_tokens).memory_bytes for device in plan.devices)
        gradients = sum(costs.server_trainable_bytes(device) // 3 for device in plan.devices)
        queue = sum(costs.activation_bytes(device.batch_size, num_tokens) for device in plan.devices)
        return step + gradients + queue


async def _back(server: Server, arrived: Activations, total: GradientSum) -> tuple[float, Tensor | None]:
    """Forward and backward of one device's batch; the gradients of the adapter go to the device's sum."""
    engine, device = server.engine, server.ledger.device(arrived.device)
    span, trainable = engine.span(device.cut, device.blocks), server.adapters.trainable(SHARED)

    def compute() -> tuple[float, Tensor | None]:
        graph = engine.loss(SHARED, span, arrived)
        loss = graph.value
        engine.check_finite(loss, arrived.device, arrived.round, arrived.step)
        grad_BTD = graph.back()
        engine.check_gradients(trainable.parameters, grad_BTD, arrived.device, arrived.round, arrived.step)
        total.take(trainable, arrived.weight)
        return loss, grad_BTD

    cost = server.costs.server(device, *arrived.h_BTD.shape[:2])
    return await server.machine.run(
        compute,
        like=lambda: (0.0, torch.empty_like(arrived.h_BTD) if span.trains_below else None),
        what="step",
        flops=cost.forward_flops + cost.backward_flops,
        round=arrived.round,
        step=arrived.step,
        peer=arrived.device,
    )


async def step_once(server: Server, sums: dict[str, GradientSum]) -> None:
    """Moves the adapter by the gradients of those who stayed, joined in the order of their names.

    Args:
      server: The server.
      sums: By device.
    """
    stayed = [total for device, total in sorted(sums.items()) if device not in server.ledger.gone and total.weight]
    round, trainable = server.ledger.plan.round, server.adapters.trainable(SHARED)
    if not stayed:
        return

    def compute() -> None:
        weight = sum(total.weight for total in stayed)
        for name, parameter in trainable.parameters.items():
            parts = [total.gradients[name] for total in stayed if name in total.gradients]
            if parts:
                parameter.grad = torch.stack(parts).sum(0) / weight
        server.engine.step(SHARED, server.learning_rate(round, 0))

    await server.machine.run(compute, like=lambda: None, what="step", flops=0.0, round=round, step=None)
