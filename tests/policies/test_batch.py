"""Batch sizes by measured speed, by labels, by the server's ingress."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cutlayer.errors import ConfigError
from cutlayer.policies.batch import (
    fill_ingress,
    fixed,
    ingress_samples,
    regulate_kl,
    seconds_per_sample,
    speed_proportional,
)
from cutlayer.policies.label_mix import label_distributions, label_kl
from cutlayer.policies.plan import Planner, Situation, make_plan
from cutlayer.policies.select import everyone
from cutlayer.testing.playground import FlatCosts, fleet_of
from cutlayer.types import History, RoundPlan, StepRecord


def measured(device: int, seconds: float, *, round: int = 0, samples: int = 8, sending: float = 0.0) -> StepRecord:
    """A round in which a sample took so many seconds of compute, and so many of sending."""
    return StepRecord(
        round=round,
        device=f"device-{device}",
        steps=2,
        samples=samples,
        weight=samples,
        loss=1.0,
        busy_seconds=seconds * samples,
        network_seconds=sending * samples + 100.0,  # the adapters', too
        waiting_seconds=1000.0,
        bytes_up=1,
        bytes_down=1,
        step_network_seconds=sending * samples,
    )


def situation_of(num_devices: int, *records: StepRecord, **changes: Any) -> Situation:
    costs: Any = FlatCosts(3)
    settings: dict[str, Any] = {"num_tokens": 10, "batch_size": 4, "local_steps": 2} | changes
    return Situation(fleet_of(num_devices), costs, History(list(records)), **settings)


def sizes(planner: Planner, situation: Situation, *start: int) -> list[int]:
    plan = make_plan((everyone(),), 1, situation)
    if start:
        devices = tuple(replace(d, batch_size=size) for d, size in zip(plan.devices, start, strict=True))
        plan = replace(plan, devices=devices)
    return [device.batch_size for device in planner(plan, situation).devices]


def test_the_same_for_everyone() -> None:
    assert sizes(fixed(), situation_of(3), 7, 8, 9) == [4, 4, 4]
    assert sizes(fixed(6), situation_of(3)) == [6, 6, 6]
    with pytest.raises(ConfigError, match=r"method.d_max: expected at least 1, or null, got 0"):
        fixed(0)


def test_the_moving_average_of_what_was_measured() -> None:
    records = [measured(0, 1.0), measured(1, 9.0), measured(0, 2.0, round=1, samples=3), measured(0, 4.0, sending=1.0)]
    averages = seconds_per_sample(History(records), alpha=0.8)
    assert averages == pytest.approx({"device-0": 0.8 * (0.8 * 1.0 + 0.2 * 2.0) + 0.2 * 5.0, "device-1": 9.0})


def test_a_round_without_samples_measures_nothing() -> None:
    assert seconds_per_sample(History([replace(measured(0, 1.0), samples=0)]), alpha=0.8) == {}


def test_the_fastest_gets_the_most_and_the_others_in_proportion() -> None:
    situation = situation_of(4, measured(0, 0.5, sending=0.5), measured(1, 0.7), measured(2, 1.4), measured(3, 700.0))
    assert sizes(speed_proportional(64), situation) == [int(64 * 0.7), 64, 32, 1]
    assert sizes(speed_proportional(), situation) == [2, 4, 2, 1], "without a number: the run's batch size"


@pytest.mark.parametrize("seconds", [0.1, 0.3, 1 / 3, 0.7, 1.1, 123.456])
def test_the_fastest_gets_all_of_it_whatever_the_rounding(seconds: float) -> None:
    for d_max in range(1, 100):
        assert sizes(speed_proportional(d_max), situation_of(1, measured(0, seconds))) == [d_max]


def test_before_anything_is_measured_everyone_has_the_runs_batch() -> None:
    assert sizes(speed_proportional(64), situation_of(3)) == [4, 4, 4]
    assert sizes(speed_proportional(2), situation_of(3)) == [2, 2, 2]
    assert sizes(speed_proportional(64), situation_of(3, measured(1, 1.0))) == [4, 64, 4], "and who was not measured"


def test_alpha_is_how_much_of_the_old_stays() -> None:
    situation = situation_of(2, measured(0, 1.0), measured(1, 1.0), measured(1, 2.0, round=1))
    assert sizes(speed_proportional(60, alpha=1.0), situation) == [60, 60]
    assert sizes(speed_proportional(60, alpha=0.0), situation) == [60, 30]


COUNTS = {"device-0": (9, 0, 1), "device-1": (0, 8, 2), "device-2": (5, 0, 5)}


def kl_of(situation: Situation, chosen: list[int]) -> float:
    shares_NC = label_distributions(situation, list(COUNTS))
    return float(label_kl(np.array([chosen], float), shares_NC, shares_NC.mean(axis=0))[0])


def test_sizes_are_lowered_until_the_labels_are_near_enough() -> None:
    situation = situation_of(3, label_counts=COUNTS)
    start, loose, tight = [30, 10, 20], 0.05, 0.01
    assert kl_of(situation, start) > loose
    before = start
    for most in (loose, tight):
        lowered = sizes(regulate_kl(most), situation, *start)
        assert kl_of(situation, lowered) <= most
        assert all(low <= high for low, high in zip(lowered, start, strict=True))
        assert sum(lowered) < sum(before), "the nearer, the fewer"
        before = lowered
    assert sizes(regulate_kl(10.0), situation, *start) == start, "near enough already"
    assert sizes(regulate_kl(None), situation, *start) == start
    assert sizes(regulate_kl(0.0, slack=0.0), situation, *start) == start


def test_one_sample_less_is_the_best_one() -> None:
    situation = situation_of(3, label_counts=COUNTS)
    start = [30, 10, 20]
    options = [[29, 10, 20], [30, 9, 20], [30, 10, 19]]
    best = min(options, key=lambda option: kl_of(situation, option))
    just_below = kl_of(situation, start) - 1e-9
    assert sizes(regulate_kl(just_below), situation, *start) == best


def test_nobody_waits_for_more_than_the_slack_and_nobody_is_left_without() -> None:
    situation = situation_of(3, label_counts=COUNTS)
    for slack in (0.2, 0.5, 1.0):
        lowered = sizes(regulate_kl(0.0, slack=slack), situation, 31, 1, 20)
        assert all(low >= max(1, (1 - slack) * high) for low, high in zip(lowered, (31, 1, 20), strict=True))
        assert lowered != [31, 1, 20]


def test_the_fleets_labels_are_those_of_all_whoever_is_in_the_plan() -> None:
    situation = situation_of(3, label_counts=COUNTS)
    plan = make_plan((everyone(),), 0, situation)
    two = RoundPlan(0, tuple(replace(d, batch_size=40) for d in plan.devices[:2]))
    lowered = [device.batch_size for device in regulate_kl(0.0)(two, situation).devices]
    shares_NC = label_distributions(situation, list(COUNTS))
    tried = [[a, b] for a in range(20, 41) for b in range(20, 41)]
    kls = label_kl(np.array(tried, float), shares_NC[:2], shares_NC.mean(axis=0))
    reached = kls[tried.index(lowered)]
    assert reached == pytest.approx(kls.min(), abs=1e-3), "greedy comes near the best of all"


@pytest.mark.parametrize("max_kl", [-0.1, float("nan")])
def test_no_such_distance(max_kl: float) -> None:
    with pytest.raises(ConfigError, match=r"method.max_kl: expected at least 0, or null"):
        regulate_kl(max_kl)


def test_what_the_server_takes_in_within_a_second() -> None:
    situation = situation_of(2)
    assert ingress_samples(5.12, situation) == pytest.approx(5.12e6 / 8 / (4 * 10 * 16))  # 1000 samples of 640 bytes


def test_sizes_grow_together_until_the_budget_or_the_largest_is_full() -> None:
    mbit_per_sample = 4 * 10 * 16 * 8 / 1e6
    situation = situation_of(3)
    assert sizes(fill_ingress(40 * mbit_per_sample, 64), situation, 10, 4, 6) == [20, 8, 12]
    assert sizes(fill_ingress(41 * mbit_per_sample, 64), situation, 10, 4, 6) == [20, 8, 12], "never above the budget"
    assert sizes(fill_ingress(400 * mbit_per_sample, 15), situation, 10, 4, 6) == [15, 6, 9], "never above d_max"
    assert sizes(fill_ingress(400 * mbit_per_sample), situation, 2, 1, 1) == [4, 2, 2], "which is the run's batch size"
    assert sizes(fill_ingress(10 * mbit_per_sample, 64), situation, 10, 4, 6) == [10, 4, 6], "and none is lowered"
    assert sizes(fill_ingress(None, 64), situation, 10, 4, 6) == [10, 4, 6]
