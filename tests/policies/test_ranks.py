"""Which LoRA rank each block has on each device."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from cutlayer.errors import ConfigError
from cutlayer.policies.plan import Situation
from cutlayer.policies.ranks import arithmetic_ranks, ranks_above_deepest_cut, ranks_by_budget, uniform_ranks
from cutlayer.testing.playground import FlatCosts, fleet_of
from cutlayer.types import DevicePlan, History, RoundPlan

SITUATION = Situation(fleet_of(2), FlatCosts(4), History(), num_tokens=8, batch_size=2, local_steps=1, rank=6)
PLAN = RoundPlan(0, (DevicePlan("device-0", cut=1), DevicePlan("device-1", cut=3)))


def test_one_rank_everywhere() -> None:
    plan = uniform_ranks(5)(PLAN, SITUATION)
    assert plan.ranks == (5, 5, 5, 5)
    assert [device.ranks for device in plan.devices] == [(5, 5, 5, 5)] * 2
    assert [device.cut for device in plan.devices] == [1, 3]


def test_a_rank_below_one() -> None:
    with pytest.raises(ConfigError, match=r"method.rank: expected at least 1, got 0"):
        uniform_ranks(0)


def test_blocks_that_some_device_holds_have_no_adapter() -> None:
    plan = ranks_above_deepest_cut()(PLAN, SITUATION)
    assert plan.ranks == (0, 0, 0, 6)
    assert all(device.ranks == plan.ranks and device.blocks == {3} for device in plan.devices)


@pytest.mark.parametrize(
    ("first", "step", "ranks"),
    [
        (17, 1, (17, 18, 19, 20)),
        (2, 3, (2, 5, 8, 11)),
        (9, -2, (9, 7, 5, 3)),
        (None, 0, (6, 6, 6, 6)),
        (None, 1, (4, 5, 6, 7)),
        (None, 2, (3, 5, 7, 9)),
        (None, 3, (1, 4, 7, 10)),
        (None, 9, (1, 4, 8, 11)),
        (None, -9, (11, 8, 4, 1)),
    ],
)
def test_ranks_that_rise(first: int | None, step: int, ranks: tuple[int, ...]) -> None:
    plan = arithmetic_ranks(first, step)(PLAN, SITUATION)
    assert plan.ranks == ranks
    assert [device.ranks for device in plan.devices] == [ranks] * 2


def test_the_list_of_the_re_implementation() -> None:
    """12 layers, 17 to 28, is what a run of rank 23 has by default."""
    situation = Situation(fleet_of(1), FlatCosts(12), History(), num_tokens=8, batch_size=2, local_steps=1, rank=23)
    assert arithmetic_ranks()(PLAN, situation).ranks == tuple(range(17, 29))


@pytest.mark.parametrize("rank", [1, 2, 8, 15, 16, 40])
@pytest.mark.parametrize("blocks", [1, 2, 7, 30, 31, 126])
def test_the_mean_is_the_runs_rank_on_any_number_of_blocks(blocks: int, rank: int) -> None:
    """SmolLM2 has 30 blocks: rank 8 was 1 to 30 there, nearly twice the parameters that were asked for."""
    situation = Situation(
        fleet_of(1), FlatCosts(blocks), History(), num_tokens=8, batch_size=2, local_steps=1, rank=rank
    )
    ranks = arithmetic_ranks()(PLAN, situation).ranks
    assert len(ranks) == blocks
    assert rank - 0.5 <= sum(ranks) / blocks <= rank
    assert min(ranks) >= 1
    assert list(ranks) == sorted(ranks)
    rises = {high - low for low, high in pairwise(ranks)}
    assert rises <= {0, 1}, "as evenly as whole numbers are"


@pytest.mark.parametrize(("first", "step"), [(0, 1), (5, -2)])
def test_ranks_that_fall_below_one(first: int | None, step: int) -> None:
    with pytest.raises(ConfigError, match=r"method\.first, method\.step: expected ranks of at least 1 on all 4 blocks"):
        arithmetic_ranks(first, step)(PLAN, SITUATION)


# ------------------------------------------------------------------ by budget


def ranks_of(resource: str, shares: list[float], *, rank: int = 8, lowest: int = 1) -> list[int]:
    """The ranks of a fleet whose devices have these shares of the best one's resource."""
    field = {"speed": "flops_per_second", "memory": "memory_bytes", "uplink": "up_bits_per_second"}[resource]
    fleet = fleet_of(len(shares))
    devices = tuple(
        device.model_copy(update={field: 2**20 * share}) for device, share in zip(fleet.devices, shares, strict=True)
    )
    situation = replace(SITUATION, fleet=fleet.model_copy(update={"devices": devices}), rank=rank)
    plan = RoundPlan(0, tuple(DevicePlan(device.name) for device in devices))
    result = ranks_by_budget(resource, lowest=lowest)(plan, situation)
    assert result.ranks == (rank,) * 4
    assert all(len(set(device.ranks)) == 1 and len(device.ranks) == 4 for device in result.devices)
    return [device.ranks[0] for device in result.devices]


@pytest.mark.parametrize("resource", ["speed", "memory", "uplink"])
def test_half_the_resource_is_half_the_rank(resource: str) -> None:
    assert ranks_of(resource, [1.0, 0.999, 0.5, 0.499, 0.25, 0.125, 0.001]) == [8, 4, 4, 2, 2, 1, 1]


def test_ranks_that_are_no_power_of_two_and_a_lowest_one() -> None:
    assert ranks_of("speed", [1.0, 0.5, 0.25, 0.1], rank=6) == [6, 3, 1, 1]
    assert ranks_of("speed", [1.0, 0.5, 0.25, 0.1], rank=6, lowest=2) == [6, 3, 2, 2]
    assert ranks_of("speed", [1.0, 0.5, 0.1], lowest=8) == [8, 8, 8]


def test_equal_devices_have_the_full_rank() -> None:
    assert ranks_of("memory", [0.3, 0.3]) == [8, 8]


def test_a_rank_is_by_the_fleet_and_not_by_the_cohort() -> None:
    plan = RoundPlan(3, (DevicePlan("device-0", cut=1),))
    assert ranks_by_budget("speed")(plan, SITUATION).devices[0].ranks == (1,) * 4, "device-1 is three times as fast"


def test_a_resource_that_is_none() -> None:
    with pytest.raises(ConfigError, match=r"method.by: expected one of speed, memory, uplink, got 'price'"):
        ranks_by_budget("price")


@pytest.mark.parametrize("lowest", [0, 7])
def test_a_lowest_rank_out_of_range(lowest: int) -> None:
    with pytest.raises(ConfigError, match=rf"method.lowest: expected 1 to 6, which is lora.rank, got {lowest}"):
        ranks_by_budget(lowest=lowest)(PLAN, SITUATION)
