"""Which LoRA rank each block has on each device."""

from __future__ import annotations

import pytest

from cutlayer.errors import ConfigError
from cutlayer.policies.plan import Known
from cutlayer.policies.ranks import ranks_above_deepest_cut, uniform_ranks
from cutlayer.types import DevicePlan, History, RoundPlan
from playground import FlatCosts, fleet_of

KNOWN = Known(fleet_of(2), FlatCosts(4), History(), num_tokens=8, batch_size=2, local_steps=1, rank=6)
PLAN = RoundPlan(0, (DevicePlan("device-0", cut=1), DevicePlan("device-1", cut=3)))


def test_one_rank_everywhere() -> None:
    plan = uniform_ranks(5)(PLAN, KNOWN)
    assert plan.ranks == (5, 5, 5, 5)
    assert [device.ranks for device in plan.devices] == [(5, 5, 5, 5)] * 2
    assert [device.cut for device in plan.devices] == [1, 3]


def test_a_rank_below_one() -> None:
    with pytest.raises(ConfigError, match=r"method.rank: expected at least 1, got 0"):
        uniform_ranks(0)


def test_blocks_that_some_device_holds_have_no_adapter() -> None:
    plan = ranks_above_deepest_cut()(PLAN, KNOWN)
    assert plan.ranks == (0, 0, 0, 6)
    assert all(device.ranks == plan.ranks and device.blocks == {3} for device in plan.devices)
