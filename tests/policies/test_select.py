"""The devices that join a round."""

from __future__ import annotations

from typing import Any

import pytest

from cutlayer.errors import ConfigError
from cutlayer.policies.plan import Situation, make_plan
from cutlayer.policies.select import everyone, in_random_order, random_fraction
from cutlayer.testing.playground import FlatCosts, fleet_of
from cutlayer.types import DevicePlan, History, RoundPlan


def situation_of(num_devices: int, seed: int = 0) -> Situation:
    costs: Any = FlatCosts(3)
    return Situation(fleet_of(num_devices), costs, History(), num_tokens=10, batch_size=5, local_steps=7, seed=seed)


def names(plan: RoundPlan) -> list[str]:
    return [device.device for device in plan.devices]


def test_everyone_joins_with_the_runs_batch_and_steps() -> None:
    plan = everyone()(RoundPlan(2), situation_of(3))
    assert plan.round == 2
    assert plan.devices == tuple(DevicePlan(f"device-{i}", 0, batch_size=5, local_steps=7) for i in range(3))


def test_it_starts_from_nobody() -> None:
    plan = everyone()(RoundPlan(2, (DevicePlan("somebody else"),)), situation_of(1))
    assert [device.device for device in plan.devices] == ["device-0"]


@pytest.mark.parametrize(("fraction", "number"), [(1.0, 10), (0.5, 5), (0.29, 3), (0.1, 1), (0.001, 1)])
def test_a_fraction_of_the_devices_in_the_fleets_order(fraction: float, number: int) -> None:
    situation = situation_of(10)
    for round in range(5):
        plan = make_plan((everyone(), random_fraction(fraction)), round, situation)
        assert len(plan.devices) == number
        assert [device for device in everyone()(RoundPlan(round), situation).devices if device in plan.devices] == list(
            plan.devices
        )


def test_a_fraction_is_drawn_by_seed_and_round_and_everyone_has_a_turn() -> None:
    def drawn(seed: int) -> list[list[str]]:
        planners = (everyone(), random_fraction(0.3))
        return [names(make_plan(planners, round, situation_of(10, seed))) for round in range(40)]

    rounds = drawn(0)
    assert rounds == drawn(0)
    assert rounds != drawn(1)
    assert rounds[0] != rounds[1]
    turns = [sum(f"device-{i}" in chosen for chosen in rounds) for i in range(10)]
    assert sum(turns) == 3 * 40
    assert min(turns) >= 4
    assert max(turns) <= 22


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.5, float("nan")])
def test_no_such_fraction(fraction: float) -> None:
    with pytest.raises(ConfigError, match=r"method.fraction: expected above 0 and at most 1, got .*\. Change"):
        random_fraction(fraction)


def test_a_random_order_has_everyone_once_and_is_drawn_by_seed_and_round() -> None:
    planners = (everyone(), in_random_order())
    orders = [names(make_plan(planners, round, situation_of(6))) for round in range(5)]
    assert all(sorted(order) == [f"device-{i}" for i in range(6)] for order in orders)
    assert len({tuple(order) for order in orders}) == 5
    assert orders == [names(make_plan(planners, round, situation_of(6))) for round in range(5)]
    assert orders[0] != names(make_plan(planners, 0, situation_of(6, seed=1)))


def test_the_draws_of_two_planners_are_their_own() -> None:
    situation = situation_of(3)
    one, other = situation.random(0, "one").random(), situation.random(0, "other").random()
    assert one != other
    assert situation.random(0, "one").random() == one
