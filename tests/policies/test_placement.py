"""Placement: the weakest blocks first, against all ways on small swarms; moves that are worth it, and no others."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cutlayer.policies.placement import Holder, place, rebalance, throughputs_of, window

BLOCKS = range(2, 8)


def of(holders: list[Holder]) -> dict[str, Holder]:
    return {holder.name: holder for holder in holders}


@given(st.lists(st.integers(0, 3), min_size=1, max_size=7), st.data())
def test_a_window_is_least_of_all_in_the_order_of_a_dictionary(values: list[int], data: st.DataObject) -> None:
    length = data.draw(st.integers(1, len(values)))
    start = window([float(value) for value in values], length)
    chosen = sorted(values[start : start + length])
    assert all(chosen <= sorted(values[at : at + length]) for at in range(len(values) - length + 1))


def test_whoever_joins_strengthens_what_is_weakest() -> None:
    holders = [Holder("a", 4, 1.0), Holder("b", 4, 1.0), Holder("c", 2, 1.0)]
    held = place(holders, BLOCKS)
    assert held == {"a": (2, 6), "b": (4, 8), "c": (2, 4)}
    assert throughputs_of(held, of(holders), BLOCKS).tolist() == [2, 2, 2, 2, 1, 1]


def test_those_who_cannot_move_are_there_first_and_stay() -> None:
    holders = [Holder("a", 3, 1.0), Holder("fixed", 4, 1.0, (0, 4))]
    held = place(holders, BLOCKS)
    assert held == {"a": (4, 7), "fixed": (0, 4)}, "of blocks 2 to 7, 2 and 3 are held"
    assert rebalance(held, holders, BLOCKS, 1.0)["fixed"] == (0, 4)


def test_a_longer_span_than_is_wanted_holds_what_is_wanted() -> None:
    assert place([Holder("a", 30, 1.0)], BLOCKS) == {"a": (2, 8)}


def test_nobody_moves_where_it_gains_too_little() -> None:
    holders = [Holder(name, 3, speed) for name, speed in (("a", 1.0), ("b", 1.0), ("c", 1.0))]
    held = {"a": (2, 5), "b": (5, 8), "c": (2, 5)}
    assert rebalance(held, holders, BLOCKS, 0.75) == held, "the least is 1 wherever c is"


def test_a_gap_is_closed_by_one_of_those_who_are_not_needed() -> None:
    holders = [Holder(name, 3, 1.0) for name in "abc"]
    held = rebalance({"a": (2, 5), "b": (2, 5), "c": (2, 5)}, holders, BLOCKS, 0.75)
    assert sorted(held.values()) == [(2, 5), (2, 5), (5, 8)]


def test_who_alone_holds_a_block_stays_and_another_moves() -> None:
    """`a` and `b` could move too, if `b` and `c` then closed the gap; until they have, a block would be nobody's."""
    holders = [Holder("a", 1, 1.0), Holder("b", 2, 2.0), Holder("c", 1, 2.0)]
    held = {"a": (2, 3), "b": (0, 2), "c": (0, 1)}
    assert rebalance(held, holders, range(3), 0.75) == held | {"c": (2, 3)}


def test_quality_decides_what_gain_is_enough() -> None:
    """The weakest block passes 2 and could pass 3 if `mover` went there: two thirds."""
    holders = [Holder("low", 3, 2.0, (2, 5)), Holder("high", 3, 2.0, (5, 8)), Holder("mover", 6, 1.0)]
    assert rebalance({"low": (2, 5), "high": (5, 8), "mover": (2, 8)}, holders, BLOCKS, 0.75)["mover"] == (2, 8)
    holders[2] = Holder("mover", 3, 1.0)
    strong = [*holders[:1], Holder("high", 3, 1.0, (5, 8)), Holder("mover", 3, 1.0)]
    held = {"low": (2, 5), "high": (5, 8), "mover": (2, 5)}  # 3 and 1; 2 and 2 is possible: one half
    assert rebalance(held, strong, BLOCKS, 0.49)["mover"] == (2, 5)
    assert rebalance(held, strong, BLOCKS, 0.51)["mover"] == (5, 8)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 4)), min_size=1, max_size=6), st.floats(0, 1))
def test_no_move_takes_a_block_from_everybody_or_slows_the_swarm(made: list[tuple[int, int]], quality: float) -> None:
    holders = [Holder(f"m{at}", length, float(speed)) for at, (length, speed) in enumerate(made)]
    before = place(holders, BLOCKS)
    after = rebalance(before, holders, BLOCKS, quality)
    assert after.keys() == before.keys()
    least = [float(throughputs_of(held, of(holders), BLOCKS).min()) for held in (before, after)]
    assert (least[1] > 0) >= (least[0] > 0)
    for name, (first, end) in after.items():
        assert BLOCKS.start <= first < end <= BLOCKS.stop
        assert end - first == min(of(holders)[name].length, len(BLOCKS))


def test_greedy_placement_is_close_to_the_best_of_all() -> None:
    """The paper says 90 to 100 % of the optimum; on forty small swarms the mean is within that, the worst is not."""
    shares = []
    for seed in range(40):
        random = np.random.default_rng(seed)
        holders = [Holder(f"m{at}", int(random.integers(2, 5)), float(random.integers(1, 5))) for at in range(4)]
        places = [range(BLOCKS.start, BLOCKS.stop - holder.length + 1) for holder in holders]
        best = 0.0
        for starts in product(*places):
            held = {h.name: (start, start + h.length) for h, start in zip(holders, starts, strict=True)}
            best = max(best, float(throughputs_of(held, of(holders), BLOCKS).min()))
        mine = rebalance(place(holders, BLOCKS), holders, BLOCKS, 0.75)
        if best:
            shares.append(float(throughputs_of(mine, of(holders), BLOCKS).min()) / best)
    assert np.mean(shares) == pytest.approx(0.95, abs=0.05)
    assert max(shares) == 1.0
