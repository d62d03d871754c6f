"""The merged step: the barrier, one batch out of many, each its rows back. The arithmetic: methods/test_mergesfl.py."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bases import open_base
from cutlayer.errors import DivergedError
from cutlayer.fleet.clock import now, run_virtual
from cutlayer.model.base import Base
from cutlayer.server.arrivals import Arrivals
from cutlayer.server.owners import SHARED
from cutlayer.server.server import Server
from cutlayer.server.steps.merged import dispatch, merge, merged
from cutlayer.state import State
from cutlayer.testing.playground import FlatCosts, fleet_of
from cutlayer.testing.tiny import random_batch
from cutlayer.types import DevicePlan, Event, RoundPlan
from cutlayer.wire.messages import Activations, Gradients
from ends import activations_for, server_for

ModelMaker = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def bert(tiny_model: ModelMaker) -> Base:
    return open_base(tiny_model("bert", "classification"), "classification")


def sent(base: Base, device: int, *, samples: int, tokens: int, cut: int = 1) -> Activations:
    batch = random_batch(base.settings.task, seed=device, samples=samples, tokens=tokens)
    return activations_for(base, batch, cut, device=f"device-{device}")


def plan_of(*cuts: int) -> RoundPlan:
    return RoundPlan(0, tuple(DevicePlan(f"device-{i}", cut, 4, local_steps=1) for i, cut in enumerate(cuts)))


def serve(server: Server, plan: RoundPlan, arriving: dict[float, Activations]) -> list[tuple[float, Gradients]]:
    """The answers and their times, if these arrive at these times."""
    answered: list[tuple[float, Gradients]] = []

    async def reply(gradients: Gradients) -> None:
        answered.append((now(), gradients))

    async def program() -> None:
        server.begin(plan, merged().owner)
        arrivals = Arrivals(plan, server.forecast, 10)
        for seconds, activations in arriving.items():
            asyncio.get_running_loop().call_later(seconds, arrivals.put, activations)
        await merged()(server, arrivals, reply)

    run_virtual(program())
    return answered


def test_nobody_is_answered_before_everybody_is_there(bert: Base) -> None:
    events: list[Event] = []
    server = server_for(bert, fleet_of(3), events)
    arriving = {3.0: 2, 1.0: 1, 2.0: 0}
    messages = {at: sent(bert, index, samples=2 + index, tokens=12 - index) for at, index in arriving.items()}
    answered = serve(server, plan_of(1, 1, 1), messages)
    [step] = events
    assert (step.start_seconds, step.peer) == (3.0, None)
    flops = FlatCosts(3).server(plan_of(1).devices[0], 2 + 3 + 4, 12)
    assert step.end_seconds == pytest.approx(3.0 + (flops.forward_flops + flops.backward_flops) / 3e10)
    assert [(at, answer.device) for at, answer in answered] == [(step.end_seconds, f"device-{i}") for i in range(3)]
    for _, answer in answered:
        assert answer.grad_BTD is not None
        index = int(answer.device[-1])
        assert answer.grad_BTD.shape == (2 + index, 12 - index, 16)
        assert answer.grad_BTD.is_contiguous()
    assert server.adapters.owners == (SHARED,)


def test_what_is_merged(tiny_model: ModelMaker) -> None:
    llama = open_base(tiny_model("llama", "causal-lm"), "causal-lm")
    arrived = [sent(llama, 0, samples=2, tokens=8), sent(llama, 1, samples=3, tokens=11)]
    whole = merge(arrived)
    assert whole.device == SHARED
    assert whole.h_BTD.shape == (5, 11, 16)
    assert whole.weight == sum(part.weight for part in arrived)
    assert int((whole.labels[:, 1:] != -100).sum()) == whole.weight
    assert not whole.mask_BT[:2, 8:].any()
    assert torch.equal(whole.mask_BT[2:], arrived[1].mask_BT)


def test_each_gets_its_rows_as_of_its_own_mean(bert: Base) -> None:
    arrived = [sent(bert, 0, samples=1, tokens=8), sent(bert, 1, samples=3, tokens=10)]
    grad_BTD = torch.randn(4, 10, 16)
    first, second = dispatch(grad_BTD, arrived)
    assert first is not None
    assert second is not None
    assert torch.equal(first, grad_BTD[:1, :8] * 4)
    assert torch.equal(second, grad_BTD[1:] * (4 / 3))
    [alone] = dispatch(grad_BTD[:1, :8], arrived[:1])
    assert alone is not None
    assert torch.equal(alone, grad_BTD[:1, :8]), "one device gets the gradient itself"


def test_frozen_devices_get_no_gradient(bert: Base) -> None:
    messages = {1.0 + i: sent(bert, i, samples=2, tokens=8, cut=0) for i in range(2)}
    answered = serve(server_for(bert, fleet_of(2)), plan_of(0, 0), messages)
    assert [answer.grad_BTD for _, answer in answered] == [None, None]


def test_a_merged_loss_that_is_not_finite(bert: Base) -> None:
    messages = {1.0 + i: sent(bert, i, samples=2, tokens=8) for i in range(2)}
    messages[2.0].h_BTD[0, 0, 0] = float("nan")
    server = server_for(bert, fleet_of(2))
    with pytest.raises(DivergedError) as error:
        serve(server, plan_of(1, 1), messages)
    assert str(error.value).startswith("all devices, round 0, step 0: expected a finite loss, got nan. Lower")
    assert server.ledger.take_tallies() == {}


def test_memory_is_one_model_and_the_merged_batch() -> None:
    costs: Any = FlatCosts(3)
    plan = RoundPlan(0, tuple(DevicePlan(f"device-{i}", 1, batch_size=2 + i) for i in range(3)))
    asked: list[int] = []

    class Noting(FlatCosts):
        def server(self, plan: DevicePlan, num_samples: int, num_tokens: int) -> Any:
            asked.append(num_samples)
            return super().server(plan, num_samples, num_tokens)

    noting: Any = Noting(3)
    need = merged().server_bytes(plan, noting, 10)
    assert asked == [9]
    assert need == costs.server(plan.devices[0], 9, 10).memory_bytes + costs.activation_bytes(9, 10)


def test_devices_of_fewer_steps_leave_the_others_to_go_on(bert: Base) -> None:
    server = server_for(bert, fleet_of(2))
    devices = plan_of(1, 1).devices
    plan = RoundPlan(0, (replace(devices[0], local_steps=2), devices[1]))
    one, other = sent(bert, 0, samples=2, tokens=8), sent(bert, 1, samples=2, tokens=8)
    answered = serve(server, plan, {1.0: one, 2.0: other, 9.0: replace(one, step=1)})
    assert [(answer.device, answer.step) for _, answer in answered] == [
        ("device-0", 0),
        ("device-1", 0),
        ("device-0", 1),
    ]


def test_it_carries_nothing() -> None:
    step = merged()
    assert step.state() == State()
    step.load(State())
