"""Who joins a round."""

from __future__ import annotations

from typing import Any

from cutlayer.policies.plan import Known
from cutlayer.policies.select import everyone
from cutlayer.types import DevicePlan, History, RoundPlan
from playground import FlatCosts, fleet_of


def known_of(num_devices: int) -> Known:
    costs: Any = FlatCosts(3)
    return Known(fleet_of(num_devices), costs, History(), num_tokens=10, batch_size=5, local_steps=7)


def test_everyone_joins_with_the_runs_batch_and_steps() -> None:
    plan = everyone()(RoundPlan(2), known_of(3))
    assert plan.round == 2
    assert plan.devices == tuple(DevicePlan(f"device-{i}", 0, batch_size=5, local_steps=7) for i in range(3))


def test_it_starts_from_nobody() -> None:
    plan = everyone()(RoundPlan(2, (DevicePlan("somebody else"),)), known_of(1))
    assert [device.device for device in plan.devices] == ["device-0"]
