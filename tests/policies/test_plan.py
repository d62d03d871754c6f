"""Planners compose: each sees the plan that the one before it made."""

from __future__ import annotations

from typing import Any

import pytest

from cutlayer.policies.plan import Situation, make_plan
from cutlayer.testing.playground import FlatCosts, fleet_of
from cutlayer.types import Cost, DevicePlan, History, RoundPlan


def situation_of(num_devices: int = 2) -> Situation:
    costs: Any = FlatCosts(3)
    return Situation(fleet_of(num_devices), costs, History(), num_tokens=10, batch_size=4, local_steps=2)


def test_planners_run_in_order_from_an_empty_plan() -> None:
    seen = []

    def joins(plan: RoundPlan, situation: Situation) -> RoundPlan:
        seen.append(plan)
        return RoundPlan(plan.round, (DevicePlan("device-0"),))

    def cuts(plan: RoundPlan, situation: Situation) -> RoundPlan:
        seen.append(plan)
        return plan.with_each(lambda device: DevicePlan(device.device, cut=2))

    plan = make_plan((joins, cuts), 7, situation_of())
    assert seen == [RoundPlan(7), RoundPlan(7, (DevicePlan("device-0"),))]
    assert plan == RoundPlan(7, (DevicePlan("device-0", cut=2),))


def test_no_planner_is_no_device() -> None:
    assert make_plan((), 3, situation_of()) == RoundPlan(3)


def test_what_is_known_of_a_device() -> None:
    situation = situation_of(3)
    assert situation.profile("device-2") is situation.fleet.devices[2]
    with pytest.raises(StopIteration):
        situation.profile("nobody")


def test_memory_is_that_of_the_largest_batch() -> None:
    asked: list[tuple[int, int, int]] = []

    class Counting(FlatCosts):
        def device(self, plan: DevicePlan, num_samples: int, num_tokens: int) -> Cost:
            asked.append((plan.cut, num_samples, num_tokens))
            return super().device(plan, num_samples, num_tokens)

    costs: Any = Counting(3)
    situation = Situation(fleet_of(1), costs, History(), num_tokens=10, batch_size=4, local_steps=2)
    assert situation.device_bytes(DevicePlan("device-0", cut=2, batch_size=5)) == 3 * 2**20
    assert asked == [(2, 5, 10)]
