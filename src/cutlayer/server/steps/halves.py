"""Server steps in two halves, for devices that have the labels: forward to the device's tail, later back from it.

    Activations ->   forward through the server's blocks    -> Hidden
    HiddenGradients -> backward, the adapter moves          -> Gradients

Between the halves the graph is kept, and others are served. Where devices share one adapter that moves with every step
nobody else is: the server waits for the device, and what is learnt is what a server with the labels would learn.

Shapes: B batch, T tokens, D hidden size.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from cutlayer.errors import ConfigError, DivergedError
from cutlayer.model.versions import Versions
from cutlayer.policies.delay import delay_of
from cutlayer.policies.order import Order, fifo
from cutlayer.server.arrivals import Arrivals
from cutlayer.server.engine import Graph, Span
from cutlayer.server.owners import SHARED, Owner, one_for_all, one_per_device
from cutlayer.server.returns import Returns
from cutlayer.server.server import Server
from cutlayer.server.steps.accumulated import GradientSum, step_once
from cutlayer.state import Keeper, State
from cutlayer.types import Costs, DevicePlan, RoundPlan
from cutlayer.wire.messages import Activations, Gradients, Hidden, HiddenGradients

Reply = Callable[[Hidden | Gradients], Awaitable[None]]
"""Sends an answer, without holding up the server."""


class HalvedStep(Keeper, Protocol):
    """Serves a round of devices that have the labels.

    Attributes:
      owner: who owns the server adapter that a device's activations train.
      together: whether a device may have to wait for what another has not sent.

    Example:
      >>> from cutlayer import fifo, in_halves, one_per_device
      >>> step = in_halves(fifo())
      >>> step.owner is one_per_device, step.together
      (True, False)
    """

    owner: Owner
    together: bool

    async def __call__(self, server: Server, arrivals: Arrivals, returns: Returns, reply: Reply) -> None:
        """Serves every step of a round, and answers both of its halves."""

    def server_bytes(self, plan: RoundPlan, costs: Costs, num_tokens: int) -> int:
        """Memory that the server needs, at batches of `num_tokens`."""


def in_halves(order: Order, *, owner: Owner = one_per_device, copies: bool = False) -> HalvedStep:
    """Serves one device's activations after the other, swapping adapters on one base.

    First halves are in the order that is asked for; a second half is served as soon as the server is free.

    Args:
      order: Which of those who have arrived is next.
      owner: One server adapter per device, or one for all.
      copies: Whether the memory that is reported is that of a copy of the server's blocks for every device
        (`a_copy_each`); what is computed is the same.

    Example:
      >>> from cutlayer import fifo, in_halves, one_for_all
      >>> in_halves(fifo(), owner=one_for_all).together
      True
    """
    return _InHalves(order, owner, copies=copies)


def accumulated_in_halves() -> HalvedStep:
    """Serves activations as they arrive on one adapter, which moves when the round ends (`accumulated`).

    Example:
      >>> from cutlayer import accumulated_in_halves
      >>> accumulated_in_halves().together
      False
    """
    return _Accumulated()


@dataclass(frozen=True, slots=True)
class _Passing:
    """A step between its halves."""

    arrived: Activations
    graph: Graph
    span: Span
    adapter: Mapping[str, Tensor]


class _InHalves:
    def __init__(self, order: Order, owner: Owner, *, copies: bool = False) -> None:
        self._order, self.owner, self._copies = order, owner, copies
        self._alone = owner is not one_per_device  # one adapter that moves with every step: one step at a time
        self.together = order.waits or self._alone
        self._versions: dict[str, Versions] = {}

    async def __call__(self, server: Server, arrivals: Arrivals, returns: Returns, reply: Reply) -> None:
        self._open(server)
        async with asyncio.TaskGroup() as tasks:
            while (arrived := await arrivals.pick(self._order)) is not None:
                try:
                    passing = await self._forward(server, arrived)
                except DivergedError as error:
                    server.blame(error)
                    arrivals.answer(arrived.device)
                    continue
                await reply(_hidden(server, passing))
                second = self._second_half(server, passing, arrivals, returns, reply)
                if self._alone:
                    await second
                else:
                    tasks.create_task(second)

    def _open(self, server: Server) -> None:
        """A round begins.

        Raises:
          ConfigError: Devices would be ahead of an adapter that others move.
        """
        plan = server.ledger.plan
        if self._alone and any(delay_of(device) for device in plan.devices):
            raise ConfigError(
                "method.delay: expected 0 where devices share a server adapter that moves with every step, got more. "
                "Give every device a server adapter of its own."
            )
        self._versions = {
            (name := self.owner(device.device)): Versions(server.adapters.trainable(name), delay_of(device))
            for device in plan.devices
            if not device.alone
        }

    async def _forward(self, server: Server, arrived: Activations) -> _Passing:
        """The first half: a graph of the owner's adapter, as it is to this step."""
        owner = self.owner(arrived.device)
        return await forward_half(server, arrived, lambda: self._versions[owner].of(arrived.step))

    async def _second_half(
        self, server: Server, passing: _Passing, arrivals: Arrivals, returns: Returns, reply: Reply
    ) -> None:
        """Follows what came back to the cut; does nothing for a device that has left meanwhile."""
        arrived = passing.arrived
        if (returned := await returns.of(arrived.device, arrived.step)) is None:
            return
        try:
            grad_BTD = await back_half(server, passing, returned, self._moves(server, arrived))
        except DivergedError as error:
            server.blame(error)
            arrivals.answer(arrived.device)
            return
        await reply(_answer(server, passing, returned, grad_BTD))

    def _moves(self, server: Server, arrived: Activations) -> Callable[[], None]:
        """The function that is called when the gradients of a step are there."""
        owner = self.owner(arrived.device)
        rate, rule = server.learning_rate(arrived.round, arrived.step), server.adapters.rule(owner)
        return lambda: self._versions[owner].step(arrived.step, rate, rule)

    def server_bytes(self, plan: RoundPlan, costs: Costs, num_tokens: int) -> int:
        """One model, the graphs of all steps under way, every other owner's adapter at rest, and a queue."""
        devices = [device for device in plan.devices if not device.alone]
        if not devices:
            return 0
        models = [costs.server(device, 0, num_tokens).memory_bytes for device in devices]
        model = sum(models) if self._copies else max(models)
        graphs = [graph_bytes(device, costs, num_tokens) * (1 + delay_of(device)) for device in devices]
        at_rest: dict[str, int] = {}
        for device in devices:
            owner = self.owner(device.device)
            versions = costs.server_trainable_bytes(device) * (3 + delay_of(device)) // 3
            at_rest[owner] = max(versions, at_rest.get(owner, 0))
        queue = sum(costs.activation_bytes(device.batch_size, num_tokens) for device in devices)
        stashed = max(graphs) if self._alone else sum(graphs)
        return model + stashed + sum(at_rest.values()) - max(at_rest.values()) + queue

    def state(self) -> State:
        return self._order.state()

    def load(self, state: State) -> None:
        self._order.load(state)


class _Accumulated(_InHalves):
    """Second halves add to a device's sum; the adapter stands still until the round ends."""

    def __init__(self) -> None:
        super().__init__(fifo(), one_for_all)
        self._alone = self.together = False
        self._sums: dict[str, GradientSum] = {}

    async def __call__(self, server: Server, arrivals: Arrivals, returns: Returns, reply: Reply) -> None:
        await super().__call__(server, arrivals, returns, reply)
        await step_once(server, self._sums)

    def _open(self, server: Server) -> None:  # noqa: ARG002
        self._sums = {}

    async def _forward(self, server: Server, arrived: Activations) -> _Passing:
        return await forward_half(server, arrived, lambda: server.adapters.trainable(SHARED).parameters)

    def _moves(self, server: Server, arrived: Activations) -> Callable[[], None]:
        total = self._sums.setdefault(arrived.device, GradientSum())
        trainable = server.adapters.trainable(SHARED)
        return lambda: total.take(trainable, arrived.weight)


async def forward_half(server: Server, arrived: Activations, adapter: Callable[[], Mapping[str, Tensor]]) -> _Passing:
    """The server's blocks, forward.

    Args:
      server: The server.
      arrived: What a device sent.
      adapter: The tensors to put in, by name, when the work begins.

    Raises:
      DivergedError: What comes out is not finite.
    """
    device = server.ledger.device(arrived.device)
    span = server.engine.span(device.cut, device.blocks, device.top)
    cost = server.costs.server(device, *arrived.h_BTD.shape[:2])

    def compute() -> tuple[Graph, Mapping[str, Tensor]]:
        put_in = adapter()
        graph = server.engine.through(span, arrived, put_in)
        server.engine.check_hidden(graph.output, arrived.device, arrived.round, arrived.step)
        return graph, put_in

    graph, put_in = await server.machine.run(
        compute,
        like=lambda: (Graph(arrived.h_BTD, torch.empty_like(arrived.h_BTD)), dict[str, Tensor]()),
        what="forward",
        flops=cost.forward_flops,
        round=arrived.round,
        step=arrived.step,
        peer=arrived.device,
    )
    return _Passing(arrived, graph, span, put_in)


async def back_half(
    server: Server, passing: _Passing, returned: HiddenGradients, moves: Callable[[], None]
) -> Tensor | None:
    """The server's blocks, backward, and what is done with the adapter's gradients then.

    Returns:
      The gradient of the loss by the activations (B, T, D); None where nothing below the cut trains.

    Raises:
      DivergedError: The device's loss or a gradient is not finite.
    """
    arrived, span = passing.arrived, passing.span

    def compute() -> Tensor | None:
        server.engine.check_finite(returned.loss, arrived.device, arrived.round, arrived.step)
        graph, grad_BTD = passing.graph, None
        if graph.output.requires_grad:  # something trains, in these blocks or below them
            grad_BTD = graph.back(returned.grad_BTD.to(graph.output.device))
            server.engine.check_gradients(passing.adapter, grad_BTD, arrived.device, arrived.round, arrived.step)
        moves()
        return grad_BTD

    cost = server.costs.server(server.ledger.device(arrived.device), *arrived.h_BTD.shape[:2])
    return await server.machine.run(
        compute,
        like=lambda: torch.empty_like(arrived.h_BTD) if span.trains_below else None,
        what="step",
        flops=cost.backward_flops,
        round=arrived.round,
        step=arrived.step,
        peer=arrived.device,
    )


def graph_bytes(device: DevicePlan, costs: Costs, num_tokens: int) -> int:
    """Bytes that the server keeps of a step between its halves, and while it is at one of them."""
    step, nothing = (costs.server(device, samples, num_tokens).memory_bytes for samples in (device.batch_size, 0))
    return step - nothing


def _hidden(server: Server, passing: _Passing) -> Hidden:
    arrived = passing.arrived
    return Hidden(server.run, arrived.round, arrived.step, arrived.device, passing.graph.output.detach())


def _answer(server: Server, passing: _Passing, returned: HiddenGradients, grad_BTD: Tensor | None) -> Gradients:
    """The answer that ends a step; it counts from now on, with the loss that the device has found."""
    arrived = passing.arrived
    server.ledger.trained(arrived, returned.loss)
    return Gradients(server.run, arrived.round, arrived.step, arrived.device, grad_BTD, returned.loss)
