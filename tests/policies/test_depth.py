"""How many of the last blocks each device trains."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cutlayer.errors import ConfigError
from cutlayer.fleet.profile import Fleet
from cutlayer.policies.depth import KEEP, Capacity, best_depths, depth_by_time, measured
from cutlayer.policies.plan import Situation
from cutlayer.policies.ranks import arithmetic_ranks
from cutlayer.policies.select import everyone
from cutlayer.testing.playground import FlatCosts, fleet_of
from cutlayer.types import History, RoundPlan, StepRecord

BLOCKS, STEPS = 4, 3
RANKS = (5, 6, 7, 8)


def record(device: str, capacity: Capacity, depth: int, *, round: int = 0, num_bytes: int = 1000) -> StepRecord:
    """The record that a device of exactly this capacity measures."""
    forward, backward = STEPS * capacity.forward_seconds, STEPS * depth * capacity.backward_seconds
    return StepRecord(
        round=round,
        device=device,
        steps=STEPS,
        samples=8,
        weight=8,
        loss=1.0,
        busy_seconds=forward + backward,
        network_seconds=9.0,
        waiting_seconds=9.0,
        bytes_up=num_bytes,
        bytes_down=7,
        backward_seconds=backward,
        upload_seconds=num_bytes * capacity.upload_seconds,
        ranks=(0,) * (BLOCKS - depth) + RANKS[BLOCKS - depth :],
    )


def situation_of(fleet: Fleet, *records: StepRecord) -> Situation:
    costs: Any = FlatCosts(BLOCKS)
    return Situation(fleet, costs, History(list(records)), num_tokens=8, batch_size=2, local_steps=STEPS, rank=8)


def depths(situation: Situation, **options: Any) -> dict[str, int]:
    plan = depth_by_time(**options)(arithmetic_ranks(5, 1)(everyone()(RoundPlan(0), situation), situation), situation)
    assert plan.ranks == RANKS
    for device in plan.devices:
        depth = sum(rank > 0 for rank in device.ranks)
        assert device.ranks == (0,) * (BLOCKS - depth) + RANKS[BLOCKS - depth :], "the tail of the one list"
        assert (device.cut, device.head, device.local_steps) == (BLOCKS, True, STEPS)
    return {device.device: sum(rank > 0 for rank in device.ranks) for device in plan.devices}


# ------------------------------------------------------------------ what was measured


@pytest.mark.parametrize("depth", range(1, BLOCKS + 1))
def test_a_planted_capacity_is_recovered_at_any_depth(depth: int) -> None:
    planted = Capacity(0.25, 0.5, 0.001)
    found = measured(History([record("a", planted, depth, num_bytes=300 * depth)]))["a"]
    assert (found.forward_seconds, found.backward_seconds) == pytest.approx((0.25, 0.5))
    assert found.upload_seconds == pytest.approx(0.001)


def test_a_capacity_that_changes_is_followed_slowly() -> None:
    fast, slow = Capacity(1.0, 1.0, 1.0), Capacity(3.0, 5.0, 9.0)
    found = measured(History([record("a", fast, 4), record("a", slow, 2, round=1)]))["a"]
    expected = [KEEP * 1 + (1 - KEEP) * new for new in (3, 5, 9)]
    assert [found.forward_seconds, found.backward_seconds, found.upload_seconds] == pytest.approx(expected)


def test_what_measured_nothing_is_left_out() -> None:
    whole = record("a", Capacity(1, 1, 1), 2)
    useless = [replace(whole, steps=0), replace(whole, bytes_up=0), replace(whole, ranks=())]
    assert measured(History(useless)) == {}
    assert measured(History([*useless, whole])) == measured(History([whole]))


# ------------------------------------------------------------------ the planner


def test_before_anything_is_measured_everyone_trains_everything() -> None:
    assert depths(situation_of(fleet_of(3))) == {f"device-{index}": BLOCKS for index in range(3)}


def test_speed_counts_as_measured_and_not_as_declared() -> None:
    """The fleet declares device-1 to be eight times as fast; it measured itself eight times as slow."""
    fleet = fleet_of(2)
    assert fleet.devices[1].flops_per_second > fleet.devices[0].flops_per_second
    fast, slow = Capacity(0.1, 1.0, 0.0), Capacity(0.1, 8.0, 0.0)
    situation = situation_of(fleet, record("device-0", fast, BLOCKS), record("device-1", slow, BLOCKS))
    assert depths(situation) == {"device-0": 4, "device-1": 1}


def test_a_slow_link_makes_a_shallow_device() -> None:
    quick, slow = Capacity(0.1, 0.1, 1e-6), Capacity(0.1, 0.1, 1e-3)
    situation = situation_of(fleet_of(2), record("device-0", quick, BLOCKS), record("device-1", slow, BLOCKS))
    assert depths(situation) == {"device-0": 4, "device-1": 1}


def test_equal_devices_train_everything() -> None:
    capacity = Capacity(1.0, 0.5, 1e-4)
    situation = situation_of(fleet_of(3), *(record(f"device-{index}", capacity, 2) for index in range(3)))
    assert set(depths(situation).values()) == {BLOCKS}


def test_the_fewest_blocks_are_respected() -> None:
    situation = situation_of(
        fleet_of(2), record("device-0", Capacity(0.1, 1.0, 0), 4), record("device-1", Capacity(0.1, 99.0, 0), 4)
    )
    assert [depths(situation, least=least)["device-1"] for least in range(1, 5)] == [1, 2, 3, 4]


def test_a_device_that_was_never_measured_counts_as_the_mean_of_the_others() -> None:
    fast, slow, between = Capacity(1.0, 1.0, 0.0), Capacity(1.0, 7.0, 0.0), Capacity(1.0, 4.0, 0.0)
    two = [record("device-0", fast, 4), record("device-1", slow, 4)]
    assert depths(situation_of(fleet_of(3), *two)) == depths(
        situation_of(fleet_of(3), *two, record("device-2", between, 4))
    )


def test_no_depth_that_the_memory_does_not_hold() -> None:
    class Hungry(FlatCosts):
        def device(self, plan, num_samples, num_tokens):  # type: ignore[no-untyped-def]
            return replace(
                super().device(plan, num_samples, num_tokens), memory_bytes=2**20 * sum(rank > 0 for rank in plan.ranks)
            )

    small = fleet_of(2).devices[0].model_copy(update={"memory_bytes": 2 * 2**20})
    fleet = fleet_of(2).model_copy(update={"devices": (small, fleet_of(2).devices[1])})
    slow, fast = Capacity(1.0, 0.9, 0.0), Capacity(1.0, 0.5, 0.0)
    for records in [(), [record("device-0", slow, 1), record("device-1", fast, 1)]]:
        situation = replace(situation_of(fleet, *records), costs=Hungry(BLOCKS))  # type: ignore[arg-type]
        assert depths(situation) == {"device-0": 2, "device-1": 4}


@pytest.mark.parametrize(
    ("options", "says"), [({"least": 0}, "least"), ({"waiting": 0}, "waiting"), ({"waiting": 2}, "w")]
)
def test_options_that_make_no_sense(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=f"method.{says}.*expected"):
        depth_by_time(**options)


def test_more_blocks_than_there_are() -> None:
    with pytest.raises(ConfigError, match=r"method\.least: expected at most 4, the model's blocks, got 5"):
        depths(situation_of(fleet_of(1)), least=5)


# ------------------------------------------------------------------ the greedy configuration


def times_of(seed: int, devices: int = 5, columns: int = 4) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.uniform(0.5, 3, (devices, 1)) + rng.uniform(0.1, 5, (devices, 1)) * np.arange(1, columns + 1)


def ranks_per_second(seconds: np.ndarray, trained: np.ndarray, chosen: list[int]) -> float:
    return float(trained[chosen].sum() / end_of(seconds, chosen))


def end_of(seconds: np.ndarray, chosen: list[int]) -> float:
    return float(max(row[column] for row, column in zip(seconds, chosen, strict=True)))


TRAINED = np.array([8, 15, 21, 26])


@pytest.mark.parametrize("seed", range(20))
def test_no_choice_of_depths_trains_more_ranks_per_second(seed: int) -> None:
    """Checked against all 4 ** 5 of them."""
    seconds = times_of(seed)
    best = max(ranks_per_second(seconds, TRAINED, list(c)) for c in itertools.product(range(4), repeat=5))
    assert ranks_per_second(seconds, TRAINED, best_depths(seconds, TRAINED)) == pytest.approx(best)


@pytest.mark.parametrize("seed", range(20))
def test_properties_of_the_choice(seed: int) -> None:
    seconds = times_of(seed)
    chosen = best_depths(seconds, TRAINED)
    end, least_end = end_of(seconds, chosen), seconds[:, 0].max()
    # beyond the slowest device's least time only for a better round
    within = [int((row <= least_end).sum()) - 1 for row in seconds]
    assert end <= least_end or ranks_per_second(seconds, TRAINED, chosen) > ranks_per_second(seconds, TRAINED, within)
    # nobody who could do one more block within the round does without it
    for row, column in zip(seconds, chosen, strict=True):
        assert column == 3 or row[column + 1] > end
    # a device that is faster at every depth is never shallower
    for (one, c1), (other, c2) in itertools.permutations(zip(seconds, chosen, strict=True), 2):
        if (one <= other).all():
            assert c1 >= c2
    # the order of devices does not matter, nor does the unit of time
    assert best_depths(seconds[::-1], TRAINED) == chosen[::-1]
    assert best_depths(8 * seconds, TRAINED) == chosen


def test_waiting_is_limited_where_it_can_be() -> None:
    """Three more ranks for a little more of the quick device's waiting: taken, unless it may not wait so long."""
    seconds, trained = np.array([[1.0, 1.5, 2.0], [4.0, 4.1, 4.2]]), np.array([1, 2, 3])
    assert best_depths(seconds, trained) == [2, 2]  # it waits 2.2 of 4.2 s: 0.26 on average
    assert best_depths(seconds, trained, waiting=0.27) == [2, 2]
    assert best_depths(seconds, trained, waiting=0.255) == [2, 0]  # 2 of 4 s: 0.25
    assert best_depths(seconds, trained, waiting=0.01) == [2, 0]  # nothing keeps to that: the least


def test_a_depth_that_a_device_cannot_hold_is_never_chosen() -> None:
    seconds = np.array([[1.0, np.inf, np.inf], [1.0, 1.1, 1.2]])
    assert best_depths(seconds, np.array([1, 2, 3])) == [0, 2]
    assert best_depths(np.array([[1.0], [2.0]]), np.array([5])) == [0, 0]
