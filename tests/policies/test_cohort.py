"""The genetic search against brute force, its budget, its turns, its seeds."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest

from cutlayer.errors import ConfigError
from cutlayer.policies.cohort import _priorities, _Search, kl_cohort
from cutlayer.policies.plan import Situation, make_plan
from cutlayer.policies.select import everyone
from cutlayer.testing.playground import FlatCosts, fleet_of
from cutlayer.types import DevicePlan, History, RoundPlan, StepRecord

MBIT_PER_SAMPLE = 4 * 10 * 16 * 8 / 1e6


def search_of(num_devices: int, number: int, *, budget: float = np.inf, seed: int = 0) -> _Search:
    rng = np.random.default_rng(seed)
    priority_N = rng.random(num_devices)
    return _Search(
        shares_NC=rng.dirichlet([0.2] * 4, size=num_devices),
        sizes_N=rng.integers(1, 17, size=num_devices).astype(float),
        priority_N=priority_N / priority_N.sum(),
        number=number,
        budget=budget,
        rng=np.random.default_rng(seed + 1000),
    )


def mask_of(chosen: tuple[int, ...], num_devices: int) -> np.ndarray:
    return np.isin(np.arange(num_devices), chosen)


NEAR = 0.01
"""Nats that a heuristic may miss the best by."""


@pytest.mark.parametrize(("num_devices", "number"), [(6, 3), (10, 4), (15, 5)])
def test_it_finds_what_brute_force_finds(num_devices: int, number: int) -> None:
    """The very best cohort is found by nearly all of twenty searches, and a good one by each."""
    masks_PN = np.stack([mask_of(chosen, num_devices) for chosen in combinations(range(num_devices), number)])
    searches = [search_of(num_devices, number, seed=seed) for seed in range(20)]
    missed = [search.scores(masks_PN).max() - search.scores(search.best()[None])[0] for search in searches]
    assert sum(miss < 1e-12 for miss in missed) >= 18
    assert max(missed) < NEAR
    usual = [search.scores(masks_PN).max() - np.median(search.scores(masks_PN)) for search in searches]
    assert min(usual) > 5 * NEAR, "most cohorts are far from it"


def test_it_finds_it_within_a_budget() -> None:
    """Among the cohorts to which nobody can be added."""
    every = (np.arange(2**12)[:, None] >> np.arange(12)) & 1 > 0
    for seed in range(10):
        search = search_of(12, 12, budget=40.0, seed=seed)
        load_P = every @ search.sizes_N
        room_PN = load_P[:, None] + search.sizes_N <= 40.0
        full = every[(load_P <= 40.0) & ~(room_PN & ~every).any(axis=1)]
        best = search.best()
        assert best.tolist() in full.tolist()
        assert search.scores(best[None])[0] > search.scores(full).max() - NEAR


def test_the_score_is_minus_the_kl_and_a_tenth_of_the_priority() -> None:
    search = _Search(
        shares_NC=np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]),
        sizes_N=np.array([2.0, 2.0, 7.0]),
        priority_N=np.array([0.2, 0.3, 0.5]),
        number=2,
        budget=np.inf,
        rng=np.random.default_rng(0),
    )
    masks_PN = np.array([[True, True, False], [True, False, False], [False, False, True]])
    assert search.scores(masks_PN).tolist() == pytest.approx([0.05, 0.02 - np.log(2), 0.05])


def situation_of(num_devices: int, classes: int = 3, seed: int = 0, history: History | None = None) -> Situation:
    """One class per device, in turn."""
    costs: Any = FlatCosts(3)
    counts = {f"device-{i}": tuple(10 * (label == i % classes) for label in range(classes)) for i in range(num_devices)}
    return Situation(fleet_of(num_devices), costs, history or History(), 10, 4, 2, seed=seed, label_counts=counts)


def cohort(situation: Situation, round: int = 0, **options: Any) -> list[int]:
    plan = make_plan((everyone(), kl_cohort(**options)), round, situation)
    return [int(device.device.removeprefix("device-")) for device in plan.devices]


def test_one_class_per_device_makes_a_cohort_of_all_classes() -> None:
    for seed in range(5):
        chosen = cohort(situation_of(12, seed=seed), fraction=0.25)
        assert sorted(index % 3 for index in chosen) == [0, 1, 2]
        assert chosen == sorted(chosen), "in the fleet's order"


def test_it_is_drawn_by_seed_and_round() -> None:
    situation = situation_of(30)
    rounds = [cohort(situation, round, fraction=0.1) for round in range(4)]
    assert rounds == [cohort(situation, round, fraction=0.1) for round in range(4)]
    assert len({tuple(chosen) for chosen in rounds}) > 1
    assert rounds[0] != cohort(situation_of(30, seed=1), fraction=0.1)


def took_part(device: int, round: int) -> StepRecord:
    return StepRecord(round, f"device-{device}", 1, 1, 1, 1.0, 1.0, 1.0, 0.0, 1, 1)


def test_everybody_has_a_turn() -> None:
    situation = situation_of(12)
    for round in range(4):
        situation.history.records.extend(took_part(device, round) for device in cohort(situation, round, fraction=0.25))
    assert sorted(int(record.device.removeprefix("device-")) for record in situation.history.records) == list(range(12))


def test_priority_falls_with_every_turn() -> None:
    turns = [took_part(0, 0), took_part(0, 1), took_part(0, 2), took_part(1, 0), took_part(2, 1)]
    plan = RoundPlan(3, tuple(DevicePlan(f"device-{i}") for i in range(3)))
    priorities = _priorities(plan, situation_of(3, history=History(turns)))
    assert priorities.tolist() == pytest.approx([(1 / 3) / (7 / 3), 1 / (7 / 3), 1 / (7 / 3)])


def test_the_budget_holds() -> None:
    situation = situation_of(12)
    for samples, number in ((8, 2), (12, 3), (15, 3), (1000, 12)):
        assert len(cohort(situation, ingress_mbit=samples * MBIT_PER_SAMPLE)) == number
    assert len(cohort(situation, ingress_mbit=12 * MBIT_PER_SAMPLE, fraction=0.2)) == 2


def test_a_budget_that_admits_nobody() -> None:
    with pytest.raises(
        ConfigError, match=r"method.ingress_mbit: expected room for a batch of 4 samples in a second, got"
    ):
        cohort(situation_of(3), ingress_mbit=3 * MBIT_PER_SAMPLE)


def test_a_device_too_large_for_the_budget_is_never_in() -> None:
    situation = situation_of(4)
    plan = make_plan((everyone(),), 0, situation)
    large = RoundPlan(0, (DevicePlan("device-0", batch_size=9), *plan.devices[1:]))
    chosen = kl_cohort(ingress_mbit=8 * MBIT_PER_SAMPLE)(large, situation)
    assert "device-0" not in [device.device for device in chosen.devices]


def test_everyone_without_a_budget_needs_no_labels() -> None:
    costs: Any = FlatCosts(3)
    situation = Situation(fleet_of(3), costs, History(), 10, 4, 2)
    assert cohort(situation) == [0, 1, 2]
    with pytest.raises(ConfigError, match="expected the class counts of every device"):
        cohort(situation, fraction=0.5)


@pytest.mark.parametrize("options", [{"fraction": 1.1}, {"ingress_mbit": 0.0}, {"ingress_mbit": -3.0}], ids=str)
def test_options_that_make_no_sense(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"method.{next(iter(options))}: expected above 0"):
        kl_cohort(**options)
