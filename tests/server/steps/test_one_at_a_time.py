"""One device at a time: every activation is answered, in the order's order, until the round is over."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from bases import open_base
from cutlayer.fleet.clock import now, run_virtual
from cutlayer.model.base import Base
from cutlayer.policies.order import fifo, longest_tail, random_order
from cutlayer.server.arrivals import Arrivals
from cutlayer.server.owners import one_for_all, one_per_device
from cutlayer.server.steps.one_at_a_time import a_copy_each, one_device_at_a_time
from cutlayer.state import State
from cutlayer.testing.playground import fleet_of
from cutlayer.testing.tiny import random_batch
from cutlayer.types import DevicePlan, Event, RoundPlan
from cutlayer.wire.messages import Gradients
from ends import activations_for, server_for

ModelMaker = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def bert(tiny_model: ModelMaker) -> Base:
    return open_base(tiny_model("bert", "classification"), "classification")


def test_each_is_answered_and_the_next_one_waits(bert: Base) -> None:
    events: list[Event] = []
    server, answered = server_for(bert, fleet_of(3), events), list[tuple[str, int, float]]()
    plan = RoundPlan(0, tuple(DevicePlan(f"device-{i}", i + 1, 4, local_steps=1) for i in range(3)))

    async def reply(gradients: Gradients) -> None:
        answered.append((gradients.device, gradients.step, now()))

    async def program() -> None:
        server.begin(plan, one_per_device)
        arrivals = Arrivals(plan, server.forecast, 10)
        for index in range(3):
            arrivals.put(activations_for(bert, random_batch("classification"), index + 1, device=f"device-{index}"))
        await one_device_at_a_time(longest_tail())(server, arrivals, reply)

    run_virtual(program())
    forecast = server.forecast
    tails = {device.device: forecast.step(device, 4, 12).tail for device in plan.devices}
    assert [name for name, _, _ in answered] == sorted(tails, key=lambda name: -tails[name])
    ends = [event.end_seconds for event in events]
    assert [time for _, _, time in answered] == ends
    assert [event.start_seconds for event in events] == [0.0, *ends[:-1]], "one base: one at a time"


def test_the_owner_and_the_orders_state_are_handed_on() -> None:
    assert one_device_at_a_time(fifo()).owner is one_per_device
    step = one_device_at_a_time(random_order(3), owner=one_for_all)
    assert step.owner is one_for_all
    state = step.state()
    assert state == State({"seed": 3, "num_picks": 0})
    step.load(State({**state.facts, "num_picks": 8}))
    assert step.state().facts["num_picks"] == 8


def test_a_copy_each_serves_in_the_order_of_arrival(bert: Base) -> None:
    server, answered = server_for(bert, fleet_of(3)), list[str]()
    plan = RoundPlan(0, tuple(DevicePlan(f"device-{i}", 1, 4, local_steps=1) for i in range(3)))
    step = a_copy_each()

    async def reply(gradients: Gradients) -> None:
        answered.append(gradients.device)

    async def program() -> None:
        server.begin(plan, step.owner)
        arrivals = Arrivals(plan, server.forecast, 10)
        for index in (2, 0, 1):
            arrivals.put(activations_for(bert, random_batch("classification"), 1, device=f"device-{index}"))
            await asyncio.sleep(1e-6)
        await step(server, arrivals, reply)

    run_virtual(program())
    assert answered == ["device-2", "device-0", "device-1"]
    assert set(server.adapters.owners) == {"device-0", "device-1", "device-2"}
    step.load(step.state())
