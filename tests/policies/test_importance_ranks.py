"""Ranks by importance: what rounds measured, how it is smoothed, when it decides, and what fits in memory."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cutlayer.errors import ConfigError
from cutlayer.policies.cut import cut_at
from cutlayer.policies.importance_ranks import (
    Weigh,
    decided,
    filled,
    ladder,
    measured,
    ranks_by_importance,
    smoothed,
    weighing,
)
from cutlayer.policies.select import everyone
from cutlayer.testing.playground import fleet_of, planned
from cutlayer.testing.tiny import BLOCKS
from cutlayer.types import Cost, DevicePlan, History, StepRecord
from importances import MODULES, RankCosts, record

# ------------------------------------------------------------------ what was measured


def test_a_round_is_the_mean_of_its_devices_by_what_they_trained() -> None:
    records = [record(0, weight=1, exact=[1.0, 4.0]), record(0, "device-1", 3, exact=[5.0, 0.0]), record(0, "gone")]
    assert measured(records, "exact") == (4.0, 1.0)
    assert measured(records, "proxy") == ()


def test_smoothing_by_hand() -> None:
    keep = 1 - math.exp(-(3.0 / 2.0) * 0.25)
    assert smoothed([2.0], [3.0], 0.25) == pytest.approx([keep * 2.0 + (1 - keep) * 3.0])
    assert smoothed([0.0], [3.0], 1.0) == (3.0,), "what was nothing does not stay nothing"


def test_between_probes_an_importance_moves_with_its_proxy() -> None:
    """Round 0 is probed; in round 1 the first module's proxy doubles, and the second's says nothing."""
    records = [record(0, exact=[1.0, 1.0], proxy=[0.1, 0.3]), record(1, proxy=[0.2, 0.0])]
    [first, second] = decided(History(records), rounds=10**9, threshold=0.0)  # so early, the past does not count
    assert (first, second) == pytest.approx((2.0, 1.0))


def test_nothing_is_decided_before_a_probe() -> None:
    assert decided(History([record(0, proxy=[1.0])]), 10, 0.1) == ()
    assert decided(History([]), 10, 0.1) == ()


@pytest.mark.parametrize(("threshold", "moves"), [(0.4, True), (0.6, False)])
def test_a_decision_stands_until_importance_has_moved_enough(threshold: float, moves: bool) -> None:
    """From (1, 1) to (2, 1): half of what there was."""
    records = [record(0, exact=[1.0, 1.0], proxy=[1.0, 1.0]), record(1, exact=[2.0, 1.0], proxy=[1.0, 1.0])]
    found = decided(History(records), rounds=10**9, threshold=threshold)
    assert found == pytest.approx((2.0, 1.0) if moves else (1.0, 1.0))


def test_small_moves_add_up_until_they_are_enough() -> None:
    """Measured from the last decision, not from the round before: a slow drift is noticed."""
    records = [record(round, exact=[1.0 + 0.03 * round, 1.0], proxy=[1.0, 1.0]) for round in range(12)]
    chosen = [decided(History(records[:end]), 10**9, 0.1) for end in range(1, 13)]
    assert len(set(chosen)) == 2
    assert chosen[-1][0] > 1.2


# ------------------------------------------------------------------ ranks within memory


@pytest.mark.parametrize(("lowest", "highest", "rungs"), [(1, 8, (1, 2, 4, 8)), (3, 16, (3, 6, 12, 16)), (4, 4, (4,))])
def test_ladders(lowest: int, highest: int, rungs: tuple[int, ...]) -> None:
    assert ladder(lowest, highest) == rungs


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.data())
def test_filling_stays_within_memory_and_wastes_no_rung(data: st.DataObject) -> None:
    number = data.draw(st.integers(1, 6))
    importance = data.draw(st.lists(st.floats(0.01, 10), min_size=number, max_size=number))
    each = data.draw(st.lists(st.integers(1, 50), min_size=number, max_size=number))
    free, rungs = data.draw(st.integers(0, 2000)), (1, 2, 4, 8, 16)
    ranks = filled(importance, rungs, each, free)
    used = sum((rank - 1) * size for rank, size in zip(ranks, each, strict=True))
    assert used <= free
    for rank, size in zip(ranks, each, strict=True):
        assert rank == rungs[-1] or used + rank * size > free, "the next rung is twice the rank"
    if len(set(each)) == 1:
        order = sorted(range(number), key=lambda place: -importance[place])
        assert all(ranks[one] >= ranks[other] for one, other in itertools.pairwise(order))


def test_a_matrix_that_matters_twice_as_much_has_twice_the_rank() -> None:
    assert filled([4.0, 2.0, 1.0], (1, 2, 4, 8, 16), [1, 1, 1], free_bytes=11) == (8, 4, 2)


def ranks_of(
    memory_kib: int, *, history: Sequence[StepRecord] = (), costs: type[RankCosts] = RankCosts, **options: Any
) -> dict[str, tuple[int, ...]]:
    fleet = fleet_of(2)
    devices = tuple(
        device.model_copy(update={"memory_bytes": 2**20 * 3 + 1024 * (memory_kib if index else 10**6)})
        for index, device in enumerate(fleet.devices)
    )
    plan = planned(
        everyone(),
        cut_at(2),
        ranks_by_importance(**options),
        fleet=fleet.model_copy(update={"devices": devices}),
        costs=costs(BLOCKS),
        history=History(list(history)),
        num_modules=MODULES,
        rounds=10**9,
    )
    assert plan.ranks == (8,) * BLOCKS
    return {device.device: device.ranks for device in plan.devices}


def test_ranks_are_those_that_fit_and_the_server_has_the_highest() -> None:
    """40 KiB for two blocks: at rank 1 they take 8, at rank 4 32, and the rest is enough for the small ones."""
    ranks = ranks_of(40)
    assert ranks["device-0"] == (8,) * MODULES
    assert ranks["device-1"] == (8, 4, 8, 4, 8, 8)
    assert ranks_of(8)["device-1"] == (1, 1, 1, 1, 8, 8)


class PagedCosts(RankCosts):
    """Memory that is taken page by page."""

    def device(self, plan: DevicePlan, num_samples: int, num_tokens: int) -> Cost:
        cost = super().device(plan, num_samples, num_tokens)
        return replace(cost, memory_bytes=-(-cost.memory_bytes // 4096) * 4096)


@pytest.mark.parametrize("memory_kib", range(18, 62, 4))
def test_what_is_rounded_up_fits_too_and_costs_at_most_a_rung(memory_kib: int) -> None:
    """Ranks that fit but for rounding lose the last that were added, not all of them."""
    ranks = ranks_of(memory_kib, costs=PagedCosts)["device-1"][:4]
    plan = DevicePlan("device-1", cut=2, ranks=(*ranks, 8, 8))
    used = PagedCosts(BLOCKS).device(plan, 1, 1).memory_bytes - 3 * 2**20
    assert used <= 1024 * memory_kib
    assert used >= 1024 * (memory_kib - 3 * 4 - 4), "the dearest rung that is left out, and a page"


def test_what_matters_more_has_the_memory() -> None:
    history = [record(0, exact=[8.0, 1.0, 1.0, 1.0, 1.0, 1.0], proxy=[1.0] * MODULES)]
    assert ranks_of(20, history=history)["device-1"] == (8, 2, 2, 1, 8, 8)


def test_equal_ranks_where_the_lowest_is_the_highest() -> None:
    assert ranks_of(10**6, lowest=8)["device-1"] == (8,) * MODULES


def test_the_servers_memory_bounds_its_ranks() -> None:
    fleet = fleet_of(1)
    server = fleet.server.model_copy(update={"memory_bytes": 2**20 + 1024 * 8})
    plan = planned(
        everyone(),
        cut_at(1),
        ranks_by_importance(),
        fleet=fleet.model_copy(update={"server": server}),
        costs=RankCosts(BLOCKS),
        num_modules=MODULES,
    )
    assert plan.devices[0].ranks == (8, 8, 1, 1, 1, 1)


def test_probes_come_every_so_many_rounds() -> None:
    clauses = [planned(everyone(), weighing(3), round=round).devices[0].clause(Weigh) for round in range(7)]
    assert [clause is not None and clause.exact for clause in clauses] == [True, False, False] * 2 + [True]


@pytest.mark.parametrize(
    ("build", "what"),
    [
        (lambda: weighing(0), "method.probe_every: expected at least 1"),
        (lambda: ranks_by_importance(threshold=-1.0), "method.threshold: expected at least 0"),
        (lambda: planned(everyone(), cut_at(1), ranks_by_importance(lowest=9)), "method.lowest: expected 1 to 8"),
        (lambda: planned(everyone(), cut_at(1), ranks_by_importance(lowest=0)), "method.lowest: expected 1 to 8"),
    ],
)
def test_numbers_out_of_range(build: Any, what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        build()
