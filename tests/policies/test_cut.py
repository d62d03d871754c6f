"""Cuts by memory: the most that fits, and an error that says what would."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutlayer.errors import BudgetError, ConfigError
from cutlayer.fleet.profile import Fleet
from cutlayer.policies.cut import cut_at, cut_by_capacity, cut_by_memory
from cutlayer.policies.plan import Situation
from cutlayer.testing.playground import fleet_of
from cutlayer.types import Cost, DevicePlan, History, RoundPlan

MIB = 2**20
BLOCKS = 6


@dataclass
class Linear:
    """2 MiB of embeddings, 3 MiB per block, half a MiB per sample and block."""

    num_blocks: int = BLOCKS

    def device(self, plan: DevicePlan, num_samples: int, num_tokens: int) -> Cost:  # noqa: ARG002
        assert 0 <= plan.cut <= BLOCKS
        return Cost(1.0, 1.0, 2 * MIB + 3 * MIB * plan.cut + plan.cut * num_samples * MIB // 2)

    def server(self, plan: DevicePlan, num_samples: int, num_tokens: int) -> Cost:
        raise NotImplementedError("cuts look at the device's side alone")


def need(cut: int, batch: int = 2) -> int:
    return Linear().device(DevicePlan("somebody", cut), batch, 1).memory_bytes


def known_with(memory: list[int], max_blocks: list[int | None] | None = None) -> Situation:
    fleet: Fleet = fleet_of(len(memory))
    limits = max_blocks or [None] * len(memory)
    devices = tuple(
        device.model_copy(update={"memory_bytes": bytes_, "max_blocks": limit})
        for device, bytes_, limit in zip(fleet.devices, memory, limits, strict=True)
    )
    fleet = fleet.model_copy(update={"devices": devices})
    return Situation(fleet, Linear(), History(), num_tokens=1, batch_size=2, local_steps=1)


def plan_for(situation: Situation) -> RoundPlan:
    return RoundPlan(0, tuple(DevicePlan(device.name, batch_size=2) for device in situation.fleet.devices))


def cuts(plan: RoundPlan) -> list[int]:
    return [device.cut for device in plan.devices]


def message(error: pytest.ExceptionInfo[Exception]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_each_device_gets_the_most_blocks_that_fit() -> None:
    situation = known_with([need(1), need(3) - 1, need(3), need(6), 100 * need(6)])
    assert cuts(cut_by_memory()(plan_for(situation), situation)) == [1, 2, 3, 6, 6]


@given(memory=st.integers(need(1), need(BLOCKS) + MIB))
def test_one_more_block_would_not_fit(memory: int) -> None:
    situation = known_with([memory])
    (cut,) = cuts(cut_by_memory()(plan_for(situation), situation))
    assert need(cut) <= memory
    assert cut == BLOCKS or need(cut + 1) > memory


def test_an_owner_lends_at_most_max_blocks() -> None:
    situation = known_with([need(6), need(6), need(2), need(6)], [2, 99, 4, 6])
    assert cuts(cut_by_memory()(plan_for(situation), situation)) == [2, 6, 2, 6]


def test_the_rest_of_the_plan_stays() -> None:
    situation = known_with([need(2)])
    before = RoundPlan(4, (DevicePlan("device-0", batch_size=2, local_steps=9),))
    after = cut_by_memory()(before, situation)
    assert after == RoundPlan(4, (DevicePlan("device-0", 2, 2, 9),))
    assert before.devices[0].cut == 0, "a planner changes nothing that it is given"


def test_a_device_too_small_for_one_block_is_an_error() -> None:
    situation = known_with([need(6), need(1) - 1])
    with pytest.raises(BudgetError) as error:
        cut_by_memory()(plan_for(situation), situation)
    assert (error.value.device, error.value.need_bytes, error.value.have_bytes) == ("device-1", need(1), need(1) - 1)
    text = message(error)
    assert "device device-1: expected room for the embeddings and blocks [0, 1), 6 MiB at batch size 2" in text
    assert text.endswith("Batch size 1 would fit.")


@pytest.mark.parametrize(
    ("memory", "batch", "advice"),
    [
        (need(1, 4), 10, "Batch size 2 would fit."),  # halved until it fits: 5, 2
        (need(1, 1), 10, "Batch size 1 would fit."),
        (need(1, 1) - 1, 10, "Only the embeddings (cut 0) would fit: set method.least=0, or leave the device out."),
        (need(0), 10, "Only the embeddings (cut 0) would fit: set method.least=0, or leave the device out."),
        (need(0) - 1, 10, "Not even the embeddings would fit: leave the device out."),
    ],
)
def test_the_error_says_what_would_fit(memory: int, batch: int, advice: str) -> None:
    situation = known_with([memory])
    plan = RoundPlan(0, (DevicePlan("device-0", batch_size=batch),))
    with pytest.raises(BudgetError) as error:
        cut_by_memory()(plan, situation)
    assert message(error).endswith(advice)


def test_least_is_the_fewest_blocks() -> None:
    situation = known_with([need(2)])
    with pytest.raises(BudgetError) as error:
        cut_by_memory(least=3)(plan_for(situation), situation)
    assert "blocks [0, 3)" in message(error)
    assert message(error).endswith("A cut of 2 would fit.")
    assert cuts(cut_by_memory(least=2)(plan_for(situation), situation)) == [2]
    small = known_with([need(0)])
    assert cuts(cut_by_memory(least=0)(plan_for(small), small)) == [0]
    nothing = known_with([need(0) - 1])
    with pytest.raises(BudgetError, match="Not even the embeddings"):
        cut_by_memory(least=0)(plan_for(nothing), nothing)


@pytest.mark.parametrize("least", [-1, BLOCKS + 1])
def test_least_is_a_cut_of_the_model(least: int) -> None:
    situation = known_with([need(6)])
    with pytest.raises(ConfigError, match=rf"method\.least: expected 0 to {BLOCKS}, .*got {least}\. "):
        cut_by_memory(least=least)(plan_for(situation), situation)


def test_an_owner_who_lends_less_than_the_least_is_an_error() -> None:
    """Never a silent 0."""
    situation = known_with([need(6)], [0])
    with pytest.raises(ConfigError, match=r"device device-0: .*max_blocks.*got 0\. "):
        cut_by_memory()(plan_for(situation), situation)
    assert cuts(cut_by_memory(least=0)(plan_for(situation), situation)) == [0]


# ------------------------------------------------------------------ the same cut for all


@pytest.mark.parametrize("cut", range(BLOCKS + 1))
def test_one_cut_for_all(cut: int) -> None:
    situation = known_with([need(6), need(6)], [1, None])
    assert cuts(cut_at(cut)(plan_for(situation), situation)) == [cut, cut]


@pytest.mark.parametrize("cut", [-1, BLOCKS + 1])
def test_a_cut_outside_the_model(cut: int) -> None:
    situation = known_with([need(6)])
    with pytest.raises(ConfigError, match=rf"method\.cut: expected 0 to {BLOCKS}, .*got {cut}\. "):
        cut_at(cut)(plan_for(situation), situation)


@pytest.mark.parametrize("planner", [cut_at, lambda cut: cut_by_memory(least=cut)])
def test_a_cut_that_does_not_fit(planner: Callable[[int], Callable[[RoundPlan, Situation], RoundPlan]]) -> None:
    situation = known_with([need(6), need(4) - 1])
    with pytest.raises(BudgetError) as error:
        planner(4)(plan_for(situation), situation)
    assert (error.value.device, error.value.need_bytes, error.value.have_bytes) == ("device-1", need(4), need(4) - 1)
    assert message(error).endswith("A cut of 3 would fit.")


# ------------------------------------------------------------------ by speed and memory, where devices only run forward


@dataclass
class Forward(Linear):
    """Ten FLOPs per block and sample; activations are held only where something trains."""

    def device(self, plan: DevicePlan, num_samples: int, num_tokens: int) -> Cost:  # noqa: ARG002
        trains = not plan.ranks or any(plan.ranks[: plan.cut])
        held = plan.cut * num_samples * MIB // 2 if trains else 0
        return Cost(10.0 * plan.cut * num_samples, 0.0, 2 * MIB + 3 * MIB * plan.cut + held)


def frozen_need(cut: int) -> int:
    return 2 * MIB + 3 * MIB * cut


def fleet_at(speeds: list[float], memory: list[int] | None = None, limits: list[int | None] | None = None) -> Situation:
    situation = known_with(memory or [100 * MIB] * len(speeds), limits)
    devices = tuple(
        device.model_copy(update={"flops_per_second": speed})
        for device, speed in zip(situation.fleet.devices, speeds, strict=True)
    )
    return replace(situation, fleet=situation.fleet.model_copy(update={"devices": devices}), costs=Forward())


def test_blocks_in_proportion_to_speed() -> None:
    """The fastest holds the deepest; every other what it runs in the same time, and never less than the least."""
    situation = fleet_at([4.0, 8.0, 2.0, 1.0, 7.9])
    assert cuts(cut_by_capacity(deepest=4)(plan_for(situation), situation)) == [2, 4, 1, 1, 3]
    assert cuts(cut_by_capacity(deepest=4, least=2)(plan_for(situation), situation)) == [2, 4, 2, 2, 3]
    assert cuts(cut_by_capacity(deepest=0, least=0)(plan_for(situation), situation)) == [0] * 5


def test_memory_and_the_owner_limit_too() -> None:
    situation = fleet_at(
        [8.0] * 4, [frozen_need(4), frozen_need(3), frozen_need(4) - 1, 100 * MIB], [None, None, None, 2]
    )
    assert cuts(cut_by_capacity(deepest=4)(plan_for(situation), situation)) == [4, 3, 3, 2]


def test_a_third_of_the_model_is_the_deepest() -> None:
    situation = fleet_at([8.0])
    assert cuts(cut_by_capacity()(plan_for(situation), situation)) == [BLOCKS // 3]


def test_a_frozen_device_needs_no_memory_to_train() -> None:
    situation = fleet_at([8.0], [frozen_need(2)])
    assert cuts(cut_at(2, trains=False)(plan_for(situation), situation)) == [2]
    with pytest.raises(BudgetError):
        cut_at(2)(plan_for(situation), situation)


def test_a_frozen_device_that_holds_too_little_is_an_error() -> None:
    situation = fleet_at([8.0], [frozen_need(1) - 1])
    with pytest.raises(BudgetError, match="device device-0: expected room"):
        cut_by_capacity()(plan_for(situation), situation)


@pytest.mark.parametrize(("deepest", "least"), [(BLOCKS + 1, 1), (-1, 0), (2, 3), (2, -1)])
def test_the_deepest_and_the_least_are_cuts_of_the_model(deepest: int, least: int) -> None:
    situation = fleet_at([8.0])
    with pytest.raises(ConfigError, match=r"method\.(deepest|least): expected 0 to "):
        cut_by_capacity(deepest=deepest, least=least)(plan_for(situation), situation)


def test_an_owner_who_lends_less_than_the_least_of_the_frozen() -> None:
    situation = fleet_at([8.0], limits=[0])
    with pytest.raises(ConfigError, match=r"device device-0: .*max_blocks.*got 0\. "):
        cut_by_capacity()(plan_for(situation), situation)
