"""Who joins a round."""

from __future__ import annotations

from cutlayer.policies.plan import Known
from cutlayer.policies.select import everyone
from cutlayer.types import DevicePlan, History, RoundPlan
from playground import FlatCosts, fleet_of


def test_everyone_joins_with_the_runs_batch_and_steps() -> None:
    known = Known(fleet_of(3), FlatCosts(3), History(), num_tokens=10, batch_size=5, local_steps=7)
    plan = everyone()(RoundPlan(2), known)
    assert plan.round == 2
    assert plan.devices == tuple(DevicePlan(f"device-{i}", 0, batch_size=5, local_steps=7) for i in range(3))


def test_it_starts_from_nobody() -> None:
    known = Known(fleet_of(1), FlatCosts(3), History(), num_tokens=10, batch_size=5, local_steps=7)
    plan = everyone()(RoundPlan(2, (DevicePlan("somebody else"),)), known)
    assert [device.device for device in plan.devices] == ["device-0"]
