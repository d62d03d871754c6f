"""Deadlines and batches within a budget: the bound, its minimum, and what holds of every solution."""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from cutlayer.errors import ConfigError
from cutlayer.policies.cut import whole_model
from cutlayer.policies.deadline_plan import MOST_MISSED, Bound, batches, deadlines_and_batches, solved
from cutlayer.policies.deadlines import Pace, layer_deadline, pace_of
from cutlayer.policies.layerwise import Reach
from cutlayer.policies.plan import Situation
from cutlayer.policies.select import everyone
from cutlayer.testing.playground import FlatCosts, fleet_of, planned
from cutlayer.testing.tiny import BLOCKS
from cutlayer.types import History, RoundPlan

PACE = Pace(way=0.2, fixed=0.0, crossing=0.0, forward=0.06, block=0.01, blocks=6)
PACES = (PACE, replace(PACE, forward=0.12, block=0.02), replace(PACE, forward=0.03, block=0.005, way=0.4))
BOUND = Bound(total=200.0, rounds=20, local_steps=1, paces=PACES, noise_ratio=29.0, eta=0.5, rho=0.3, rates="inverse")
VARIANTS = [
    BOUND,
    replace(BOUND, noise_ratio=0.0),
    replace(BOUND, noise_ratio=1e4),
    replace(BOUND, local_steps=3),
    replace(BOUND, rates="constant", rho=0.0),
    replace(BOUND, rates="constant"),
    replace(BOUND, eta=0.0),
    replace(BOUND, rounds=1, total=5.0),
    replace(BOUND, paces=PACES[:1]),
    replace(BOUND, paces=PACES * 10),
    replace(BOUND, total=20 * 1.0),
    replace(BOUND, rounds=60, total=900.0),
]


def nobody(bound: Bound, deadlines_R: np.ndarray, m: float) -> np.ndarray:
    """The chance that nobody gets to each block in a round, by drawing exponential times."""
    rng, pace = np.random.default_rng(0), bound.paces[0]
    ahead = pace.ahead
    assert ahead == int(ahead)
    layers = rng.exponential(m, size=(20_000, len(bound.paces), int(ahead) + pace.blocks)).cumsum(-1)
    ends = layers[..., int(ahead) :].min(1)  # of whoever is first at each block
    return np.array([(ends > deadline / bound.local_steps).mean(0) for deadline in deadlines_R])


# ------------------------------------------------------------------ the bound


def test_the_bound_by_hand() -> None:
    """Three rounds: a_t of rates 0.5, 0.25 and 0.5 / 3, and layers whose chances are drawn."""
    bound = replace(BOUND, rounds=3, total=30.0)
    deadlines_R, m = np.array([11.0, 10.0, 9.0]), 0.75
    rates = [0.5, 0.25, 0.5 / 3]
    weights = [
        rates[0] ** 2 * (1 - 0.3 * rates[1]) * (1 - 0.3 * rates[2]),
        rates[1] ** 2 * (1 - 0.3 * rates[2]),
        rates[2] ** 2,
    ]
    missed = nobody(bound, deadlines_R, m)
    noise = 29.0**2 / 9 * sum(pace.block for pace in PACES) / m
    layers = 4 * 3 / 2 * ((1 + missed) / (1 - 2 * missed)).sum(1)
    expected = (np.array(weights) / np.mean(weights) * (noise + layers)).sum()
    value, _, _ = bound.at(deadlines_R, m)
    assert value == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize("m", [0.3, 0.7, 1.2])
@pytest.mark.parametrize(
    "bound", [BOUND, replace(BOUND, local_steps=3), replace(BOUND, paces=PACES * 10)], ids=range(3)
)
def test_its_slopes_are_its_differences(bound: Bound, m: float) -> None:
    m = m / bound.local_steps
    deadlines_R = np.linspace(12.0, 8.0, bound.rounds)
    value, by_deadlines_R, by_m = bound.at(deadlines_R, m)
    step = 1e-5
    for t in (0, 7, 19):
        aside = deadlines_R + step * (np.arange(bound.rounds) == t)
        assert (bound.at(aside, m)[0] - value) / step == pytest.approx(by_deadlines_R[t], rel=1e-3, abs=1e-6 * value)
    assert (bound.at(deadlines_R, m + 1e-7)[0] - value) / 1e-7 == pytest.approx(by_m, rel=1e-3)


# ------------------------------------------------------------------ solutions


@pytest.mark.parametrize("bound", VARIANTS, ids=range(len(VARIANTS)))
def test_the_budget_is_kept_and_nobody_is_missed_too_often(bound: Bound) -> None:
    schedule = solved(bound)
    deadlines_R = np.array(schedule.deadlines)
    assert len(deadlines_R) == bound.rounds
    assert deadlines_R.sum() <= bound.total * (1 + 1e-9)
    if bound.noise_ratio:
        assert deadlines_R.sum() == pytest.approx(bound.total, rel=1e-3), "time that is there is used"
    assert deadlines_R.min() >= bound.least_seconds * (1 - 1e-9)
    within = deadlines_R.min() / (bound.local_steps * schedule.block_seconds)
    assert within >= bound.least_layers * (1 - 1e-9)
    assert MOST_MISSED < 0.5


def test_the_chance_that_nobody_gets_down_is_below_a_half() -> None:
    """As drawn, where batches are as large as they may be."""
    bound = replace(BOUND, noise_ratio=1e4)
    schedule = solved(bound)
    missed = nobody(bound, np.array(schedule.deadlines), schedule.block_seconds)
    assert 0.3 < missed[:, -1].max() < 0.47


@pytest.mark.parametrize("bound", VARIANTS[:7], ids=range(7))
def test_no_other_plan_within_the_budget_is_better(bound: Bound) -> None:
    """Plans near and far, 300 of them, are tried."""
    schedule, rng = solved(bound), np.random.default_rng(1)
    best, _, _ = bound.at(np.array(schedule.deadlines), schedule.block_seconds)
    for spread in np.geomspace(1e-3, 1.0, 300):
        deadlines_R = np.array(schedule.deadlines) * np.exp(spread * rng.standard_normal(bound.rounds))
        deadlines_R *= bound.total / deadlines_R.sum()
        m = schedule.block_seconds * float(np.exp(spread * rng.standard_normal()))
        if deadlines_R.min() >= max(bound.least_seconds, bound.local_steps * bound.least_layers * m):
            assert bound.at(deadlines_R, m)[0] >= best * (1 - 1e-6)


def test_deadlines_decay_as_rates_do() -> None:
    inverse, constant = solved(BOUND).deadlines, solved(replace(BOUND, rates="constant", rho=0.0)).deadlines
    assert all(later < earlier for earlier, later in pairwise(inverse))
    assert constant == pytest.approx([10.0] * 20, rel=1e-3)


def test_noise_makes_batches_larger() -> None:
    found = [solved(replace(BOUND, noise_ratio=noise)).block_seconds for noise in (0.0, 29.0, 100.0, 1e4)]
    assert found == sorted(found)
    assert found[0] < 0.9 * found[1] < 0.9 * found[2]


# ------------------------------------------------------------------ batches


def test_equal_speeds_have_equal_batches_and_all_get_as_far() -> None:
    """Blocks that a device does in the first round, what comes first among them: as many on every one."""
    schedule = solved(BOUND)
    paces = {str(index): pace for index, pace in enumerate((*PACES, PACE))}
    sizes = batches(schedule, paces, 1)
    assert sizes["0"] == sizes["3"]
    assert len(set(sizes.values())) == 3
    expected = schedule.deadlines[0] / schedule.block_seconds
    for name, pace in paces.items():
        done = (schedule.deadlines[0] - pace.way) / (sizes[name] * pace.block)
        assert done == pytest.approx(expected, rel=0.5 / sizes[name] + 1e-9), "but for rounding to whole samples"


def test_nobody_has_no_sample() -> None:
    sizes = batches(solved(BOUND), {"slow": replace(PACE, block=100.0), "far": replace(PACE, way=1e3)}, 1)
    assert sizes == {"slow": 1, "far": 1}


# ------------------------------------------------------------------ the planner

SITUATION = Situation(fleet_of(3), FlatCosts(BLOCKS), History(), num_tokens=10, batch_size=4, local_steps=2, rounds=8)


def plan_of(round: int = 0, budget: float | None = 40.0, **options: Any) -> RoundPlan:
    planner = deadlines_and_batches(budget, **options)
    return planned(everyone(), whole_model(), planner, round=round, rounds=8)


def test_the_plans_of_a_run_keep_the_budget() -> None:
    plans = [plan_of(round) for round in range(8)]
    deadlines = [plan.deadline_seconds for plan in plans]
    assert sum(deadlines) == pytest.approx(40.0, rel=1e-3)  # type: ignore[arg-type]
    assert sum(deadlines) <= 40.0 * (1 + 1e-9)  # type: ignore[arg-type]
    assert len({tuple(device.batch_size for device in plan.devices) for plan in plans}) == 1
    for plan in plans:
        for device in plan.devices:
            clause = device.clause(Reach)
            assert clause is not None
            assert plan.deadline_seconds is not None
            assert clause.seconds == pytest.approx(plan.deadline_seconds - pace_of(device, SITUATION, 3).way)


def test_all_devices_are_as_likely_to_reach_a_block() -> None:
    """But for rounding, and for what the network takes of the later rounds."""
    odds = np.array([device.clause(Reach).odds for device in plan_of(budget=400.0).devices])  # type: ignore[union-attr]
    assert np.ptp(odds, axis=0).max() < 0.05


def test_without_a_budget_it_is_that_of_salf() -> None:
    plans = [plan_of(round, None) for round in range(8)]
    one = planned(everyone(), whole_model(), layer_deadline(), rounds=8).deadline_seconds
    assert one is not None
    assert sum(plan.deadline_seconds or 0 for plan in plans) == pytest.approx(8 * one, rel=1e-3)


def test_no_batch_is_larger_than_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device holds a MiB for each sample here."""
    monkeypatch.setattr(Situation, "device_bytes", lambda _self, device: 2**20 * device.batch_size)
    small = fleet_of(3)
    small = small.model_copy(
        update={"devices": tuple(device.model_copy(update={"memory_bytes": 5 * 2**20}) for device in small.devices)}
    )
    plan = planned(everyone(), whole_model(), deadlines_and_batches(400.0), rounds=8, fleet=small)
    assert [device.batch_size for device in plan.devices] == [5, 5, 5]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"budget": 0.0}, r"^method\.budget: expected above 0 s, got 0\.0\."),
        (
            {"budget": 2.0},
            r"^method\.budget: expected at least \d\.\d+ s for 8 rounds, .* got 2 s\. Raise method\.budget",
        ),
        ({"noise": -1.0}, r"^method\.noise: expected at least 0, got -1\.0\. Change method\.noise\.$"),
        ({"noise": float("inf")}, r"^method\.noise: expected at least 0, got inf\."),
        ({"eta": 4.0}, r"^method\.eta: expected below 1 / method\.rho \(3\.33\), got 4\.0\."),
        ({"rho": float("nan")}, r"^method\.rho: expected at least 0, got nan\."),
        ({"rates": "cosine"}, r"^method\.rates: expected one of inverse, constant, got 'cosine'\."),
    ],
)
def test_what_cannot_be(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        plan_of(**options)


def test_a_library_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(ConfigError, match=r"method adel: expected scipy to be installed.*cutlayer\[deadlines\]"):
        solved(replace(BOUND, total=201.0))
