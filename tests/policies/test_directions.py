"""Directions: what a plan says of them, and the seeds that both ends draw."""

from __future__ import annotations

import pytest

from cutlayer.errors import ConfigError
from cutlayer.policies.directions import Directions, along_directions, directions_of, step_seeds
from cutlayer.policies.plan import Situation
from cutlayer.testing.playground import FlatCosts, fleet_of
from cutlayer.types import DevicePlan, History, RoundPlan

SITUATION = Situation(fleet_of(2), FlatCosts(3), History(), num_tokens=10, batch_size=4, local_steps=2)


def test_every_device_looks_along_as_many() -> None:
    plan = RoundPlan(0, (DevicePlan("a", 1), DevicePlan("b", 2, ranks=(8, 8, 0))))
    planned = along_directions(4, 1e-3, 0.5, 2)(plan, SITUATION)
    assert [directions_of(device) for device in planned.devices] == [Directions(4, 1e-3, 0.5, 2)] * 2
    assert [(device.cut, device.ranks) for device in planned.devices] == [(1, ()), (2, (8, 8, 0))]


def test_a_plan_without_them_is_a_mistake_of_ours() -> None:
    with pytest.raises(AssertionError, match=r"along_directions\(\) is among the planners"):
        directions_of(DevicePlan("a"))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ((0, 1e-3, 1.0, 1), r"^method\.directions: expected at least 1, got 0\. Change method\.directions\.$"),
        ((2, 1e-3, 1.0, 0), r"^method\.at_once: expected at least 1, got 0\."),
        ((2, 0.0, 1.0, 1), r"^method\.mu: expected above 0, got 0\.0\."),
        ((2, -1.0, 1.0, 1), r"^method\.mu: expected above 0, got -1\.0\."),
        ((2, float("nan"), 1.0, 1), r"^method\.mu: expected above 0, got nan\."),
        ((2, 1e-3, 0.0, 1), r"^method\.scale: expected above 0, got 0\.0\."),
        ((2, 1e-3, 1.0, 3), r"^method\.at_once: expected at most method\.directions \(2\), got 3\."),
    ],
)
def test_numbers_out_of_their_range(options: tuple[int, float, float, int], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        along_directions(*options)


def test_no_two_steps_have_a_seed_in_common() -> None:
    seeds = [
        seed
        for run in range(2)
        for device in ("a", "b", "a/1")
        for round in range(3)
        for step in range(3)
        for seed in step_seeds(run, device, round, step, 3)
    ]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_seeds_are_the_same_on_both_ends_and_for_any_count() -> None:
    assert step_seeds(0, "pi", 3, 1, 2) == step_seeds(0, "pi", 3, 1, 4)[:2]
    assert step_seeds(0, "pi", 0, 0, 1) == (4867708014162852673,), "another version would walk elsewhere"
