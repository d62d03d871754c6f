"""One device's activations after the other: adapters are swapped on one base, in an order."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from torch import Tensor

from cutlayer.errors import DivergedError
from cutlayer.policies.order import Order, fifo
from cutlayer.server.arrivals import Arrivals
from cutlayer.server.owners import Owner, one_per_device
from cutlayer.server.server import Server
from cutlayer.server.steps.step import Reply, ServerStep
from cutlayer.server.steps.train import answer, train
from cutlayer.state import State
from cutlayer.types import Costs, DevicePlan, RoundPlan
from cutlayer.wire.messages import Activations

Train = Callable[[Server, Activations, DevicePlan], Awaitable[tuple[float, Tensor | None]]]
"""Trains on what one device sent, under its plan: the loss, and its gradient by the activations (`steps/train.py`)."""


def one_device_at_a_time(order: Order, *, owner: Owner = one_per_device, training: Train = train) -> ServerStep:
    """Serves one device's activations after the other, swapping adapters on one base.

    Args:
      order: Which of those who have arrived is next.
      owner: One server adapter per device, or one for all.
      training: What a step is.

    Example:
      >>> from cutlayer import fifo, one_device_at_a_time
      >>> step = one_device_at_a_time(fifo())
      >>> step.equal_cuts, step.cuts_batches
      (False, True)
    """
    return _OneAtATime(order, owner, training)


def a_copy_each() -> ServerStep:
    """Serves activations as they arrive, each by a copy of the server-side model that is its device's own (SFL-V1).

    Copies of a frozen base compute the same, so here one base stands for all; the memory that is reported is that of
    a copy and a step for every device, as SFL-V1's server, which serves devices in parallel, would hold them
    (`benchmarks/memory.py` makes such copies and measures).

    Example:
      >>> from cutlayer import a_copy_each
      >>> step = a_copy_each()
      >>> step.owner("pi-1")
      'pi-1'
    """
    return _ACopyEach(fifo(), one_per_device)


class _OneAtATime:
    equal_cuts = False

    def __init__(self, order: Order, owner: Owner, training: Train = train) -> None:
        self._order, self.owner, self._training = order, owner, training
        self.together = order.waits
        self.cuts_batches = owner is one_per_device  # a shared adapter would move in the middle of a batch

    async def __call__(self, server: Server, arrivals: Arrivals, reply: Reply) -> None:
        while (arrived := await arrivals.pick(self._order)) is not None:
            try:
                loss, grad_BTD = await self._training(server, arrived, server.ledger.device(arrived.device))
            except DivergedError as error:
                server.blame(error)
                arrivals.answer(arrived.device)
                continue
            await reply(answer(server, arrived, loss, grad_BTD))

    def server_bytes(self, plan: RoundPlan, costs: Costs, num_tokens: int) -> int:
        """One model and one step, every other owner's adapter at rest, and a queue in which everyone else waits.

        An adapter whose step comes in parts keeps their gradients meanwhile.
        """
        step = max(costs.server(device, device.micro_batch_size, num_tokens).memory_bytes for device in plan.devices)
        largest: dict[str, int] = {}
        for device in plan.devices:
            owner = self.owner(device.device)
            largest[owner] = max(_bytes_between_parts(costs, device), largest.get(owner, 0))
        queue = sum(costs.activation_bytes(device.samples_in_flight, num_tokens) for device in plan.devices)
        return step + sum(largest.values()) - max(largest.values()) + queue

    def state(self) -> State:
        return self._order.state()

    def load(self, state: State) -> None:
        self._order.load(state)


class _ACopyEach(_OneAtATime):
    def server_bytes(self, plan: RoundPlan, costs: Costs, num_tokens: int) -> int:
        """Memory of as many server-side models as devices, each in its step."""
        return sum(costs.server(device, device.micro_batch_size, num_tokens).memory_bytes for device in plan.devices)


def _bytes_between_parts(costs: Costs, device: DevicePlan) -> int:
    """A server adapter whose turn it is not: values and AdamW's moments, and gradients where a step is under way."""
    at_rest = costs.server_trainable_bytes(device)
    return at_rest if device.micro_batches == 1 else at_rest * 4 // 3
