"""Server steps in two halves: what is kept between them, and what of one that nobody finishes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bases import open_base
from cutlayer.errors import DivergedError
from cutlayer.fleet.clock import run_virtual
from cutlayer.methods.table import build_method
from cutlayer.model.base import Base
from cutlayer.policies.delay import Delay
from cutlayer.policies.order import fifo, strict_ratio
from cutlayer.server.owners import one_for_all, one_per_device
from cutlayer.server.steps.accumulated import accumulated
from cutlayer.server.steps.halves import accumulated_in_halves, back_half, forward_half, graph_bytes, in_halves
from cutlayer.server.steps.one_at_a_time import one_device_at_a_time
from cutlayer.testing.playground import FlatCosts, LeavingLink, fleet_of, play, streams_for
from cutlayer.testing.tiny import random_batch
from cutlayer.types import Cost, DevicePlan, RoundPlan
from cutlayer.wire.link import Link
from cutlayer.wire.messages import HiddenGradients
from ends import activations_for, rehearsing, server_for

ModelMaker = Callable[[str, str], Path]
BATCH = random_batch("classification", seed=0)


@pytest.fixture(scope="module")
def bert(tiny_model: ModelMaker) -> Base:
    return open_base(tiny_model("bert", "classification"), "classification")


class Growing(FlatCosts):
    """A step takes a MiB of each block, and one of each sample more."""

    def server(self, plan: DevicePlan, num_samples: int, num_tokens: int) -> Cost:
        cost = super().server(plan, num_samples, num_tokens)
        return replace(cost, memory_bytes=cost.memory_bytes + num_samples * 2**20)


def plan_of(*cuts: int, delay: int = 0, top: int = 3) -> RoundPlan:
    devices = (DevicePlan(f"device-{i}", cut, 4, 2, top=top) for i, cut in enumerate(cuts))
    return RoundPlan(0, tuple(device.having(Delay(delay)) if delay else device for device in devices))


def test_memory_is_of_all_graphs_that_are_kept() -> None:
    costs, plan = Growing(3), plan_of(1, 1, 2)
    graph = 4 * 2**20
    assert [graph_bytes(device, costs, 10) for device in plan.devices] == [graph] * 3
    one, shared = in_halves(fifo()), in_halves(fifo(), owner=one_for_all)
    queue = 3 * costs.activation_bytes(4, 10)
    assert one.server_bytes(plan, costs, 10) == 3 * 2**20 + 3 * graph + 12288 * (2 + 1) + queue
    assert shared.server_bytes(plan, costs, 10) == 3 * 2**20 + graph + queue
    late = one.server_bytes(plan_of(1, 1, 2, delay=2), costs, 10)
    assert late == 3 * 2**20 + 9 * graph + 5 * 4096 * (2 + 1) + queue
    copies = in_halves(fifo(), copies=True).server_bytes(plan, costs, 10)
    assert copies - one.server_bytes(plan, costs, 10) == 5 * 2**20
    assert one.server_bytes(plan_of(3, 3), costs, 10) == 0, "nobody who trains alone is served"


def test_who_owns_and_who_waits() -> None:
    assert in_halves(fifo()).owner is one_per_device
    for halved, whole in (
        (in_halves(fifo()), one_device_at_a_time(fifo())),
        (in_halves(strict_ratio()), one_device_at_a_time(strict_ratio())),
        (accumulated_in_halves(), accumulated()),
    ):
        assert (halved.owner, halved.together) == (whole.owner, whole.together)
        assert halved.state() == whole.state()


def test_two_halves_are_one_step(bert: Base) -> None:
    """The gradient by the activations, and that of the adapter, of a loss that the device computes."""
    server = server_for(bert, fleet_of(1))
    server.begin(plan_of(1), one_per_device)
    arrived = replace(activations_for(bert, BATCH, 1), labels=None)
    trainable, done = server.adapters.trainable("device-0"), list[str]()

    async def program() -> torch.Tensor | None:
        passing = await forward_half(server, arrived, lambda: trainable.parameters)
        tail = bert.tail_part(3)
        tail.use(bert.initial_adapter(0))
        leaf = passing.graph.output.detach().requires_grad_()
        loss = tail.loss(leaf, arrived.mask_BT, BATCH.labels)
        loss.backward()
        assert leaf.grad is not None
        returned = HiddenGradients("run", 0, 0, "device-0", leaf.grad, float(loss.detach()))
        return await back_half(server, passing, returned, lambda: done.append("moved"))

    grad = run_virtual(program())
    whole = bert.server_part(1)
    whole.use(bert.initial_adapter(0))
    h_BTD = arrived.h_BTD.detach().requires_grad_()
    whole.loss(h_BTD, arrived.mask_BT, BATCH.labels).backward()
    assert grad is not None
    assert h_BTD.grad is not None
    assert torch.equal(grad, h_BTD.grad)
    assert done == ["moved"]
    assert all(parameter.grad is not None for parameter in trainable.parameters.values())


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_moves_nothing(loss: float, bert: Base) -> None:
    """Though the gradients that come with it are finite."""
    server = server_for(bert, fleet_of(1))
    server.begin(plan_of(1), one_per_device)
    arrived = replace(activations_for(bert, BATCH, 1), labels=None)
    trainable, done = server.adapters.trainable("device-0"), list[str]()

    async def program() -> None:
        passing = await forward_half(server, arrived, lambda: trainable.parameters)
        returned = HiddenGradients("run", 0, 0, "device-0", torch.ones_like(passing.graph.output), loss)
        await back_half(server, passing, returned, lambda: done.append("moved"))

    with pytest.raises(DivergedError, match="device device-0, round 0, step 0: expected a finite loss"):
        run_virtual(program())
    assert done == []


def test_a_rehearsal_returns_what_halves_would_be_like(bert: Base) -> None:
    server = server_for(bert, fleet_of(1))
    server.begin(plan_of(1), one_per_device)
    arrived = replace(activations_for(bert, BATCH, 1), labels=None)
    returned = HiddenGradients("run", 0, 0, "device-0", torch.empty_like(arrived.h_BTD), 0.0)

    async def program() -> tuple[torch.Size, torch.Size]:
        with rehearsing(server):
            passing = await forward_half(server, arrived, dict)
            grad = await back_half(server, passing, returned, lambda: None)
        assert grad is not None
        return passing.graph.output.shape, grad.shape

    assert run_virtual(program()) == (arrived.h_BTD.shape,) * 2


@pytest.mark.parametrize("name", ["memsfl", "splitlora", "hsfl", "sl"])
@pytest.mark.parametrize("after", [1, 2, 3])
def test_who_leaves_between_the_halves_holds_up_nobody(name: str, after: int, bert: Base) -> None:
    """Its step is nobody's; the others take all of theirs."""

    def leaving(device: str, link: Link) -> Link:
        return LeavingLink(link, device, round=0, after=after) if device == "device-1" else link

    fleet = fleet_of(3)
    method = build_method(name, {"labels": "device", "cut": 1}, 0)
    streams = streams_for(fleet, "classification", steps=6)
    run = play(bert, method, fleet, streams, rounds=2, local_steps=2, link_of=leaving)
    steps = {device: [r.steps for r in run.logbook.history.of(device)] for device in streams}
    assert steps["device-0"] == steps["device-2"] == [2, 2]
    assert steps["device-1"][0] == 0
