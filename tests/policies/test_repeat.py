"""Activations that are kept repeat: a clause says so, and what would stand against it is refused elsewhere."""

from __future__ import annotations

from cutlayer.policies.plan import Situation
from cutlayer.policies.repeat import Repeat, activations_repeat
from cutlayer.testing.playground import FlatCosts, fleet_of
from cutlayer.types import DevicePlan, History, RoundPlan


def test_a_frozen_device_repeats() -> None:
    plan = RoundPlan(0, (DevicePlan("device-0", cut=1, ranks=(0, 8, 8)),))
    repeating = plan.with_each(lambda device: device.having(Repeat()))
    assert activations_repeat()(plan, Situation(fleet_of(1), FlatCosts(3), History(), 8, 4, 1)) == repeating
