"""Ratios in closed form: in time where they can be, no more than that, and the cost model's opinion of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutlayer.errors import ConfigError
from cutlayer.policies.cut import whole_model
from cutlayer.policies.deadline_prune import full_seconds, pruned_in_time, ratio_in_time
from cutlayer.policies.plan import Situation
from cutlayer.policies.prune import Prune
from cutlayer.policies.select import everyone
from cutlayer.testing.playground import FlatCosts, fleet_of, planned
from cutlayer.types import DevicePlan, History, RoundPlan


def ratios(plan: RoundPlan) -> list[float]:
    return [clause.ratio if (clause := device.clause(Prune)) else 0.0 for device in plan.devices]


def plan_of(threshold: float | None, most: float = 0.7) -> RoundPlan:
    return planned(everyone(), whole_model(), pruned_in_time(threshold, most))


@given(st.floats(0.01, 1e4), st.floats(0.01, 1e4), st.floats(0, 0.99))
def test_the_least_ratio_that_is_in_time(seconds: float, threshold: float, most: float) -> None:
    ratio = ratio_in_time(seconds, threshold, most)
    assert 0 <= ratio <= most
    if ratio < most:
        assert (1 - ratio) * seconds <= threshold * (1 + 1e-9)
    if ratio > 0:
        assert (1 - ratio) * seconds >= threshold * (1 - 1e-9), "less would do"


def test_seconds_by_hand() -> None:
    """Two steps of 4 x 10 tokens through three blocks, forward and back, at 1 GFLOP/s; 12 KiB at 1 Mbit/s."""
    situation = Situation(fleet_of(1), FlatCosts(3), History(), 10, 4, 2)  # type: ignore[arg-type]
    device = DevicePlan("device-0", cut=3, batch_size=4, local_steps=2, top=3)
    assert full_seconds(device, situation) == pytest.approx(2 * 2 * 3.1e6 * 40 / 1e9 + 8 * 3 * 4096 / 1e6)
    assert full_seconds(replace(device, local_steps=4), situation) > full_seconds(device, situation)


def test_slow_devices_prune_and_quick_ones_do_not() -> None:
    slow, middle, quick = ratios(plan_of(None))
    assert slow > 0 == middle == quick, "the threshold is the median"
    tight = ratios(plan_of(0.05))
    assert tight[0] == 0.7, "no more than the most"
    assert all(one >= other for one, other in zip(tight, (slow, middle, quick), strict=True))
    assert ratios(plan_of(1e9)) == [0.0, 0.0, 0.0]


def test_nothing_is_planned_where_nothing_may_be_pruned() -> None:
    assert all(device.clauses == () for device in plan_of(0.05, most=0.0).devices)
    assert all(clause.score is False for device in plan_of(0.05).devices for clause in device.clauses)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("threshold", "most", "match"),
    [
        (0.0, 0.5, "method.threshold: expected seconds above 0, got 0.0"),
        (float("nan"), 0.5, "method.threshold"),
        (1.0, 1.0, "method.prune: expected a share from 0 to below 1, got 1.0"),
        (1.0, -0.1, "method.prune"),
    ],
)
def test_what_cannot_be_is_refused(threshold: float, most: float, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        pruned_in_time(threshold, most)
