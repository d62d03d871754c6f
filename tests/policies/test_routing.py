"""Routes: who is asked how often, who is left out and for how long."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutlayer.policies.routing import BAN_SECONDS, LONGEST_WAIT_SECONDS, Hop, Router, wait_seconds

HELD = {"short": (0, 1), "long": (0, 3), "upper": (2, 6)}


def router(held: dict[str, tuple[int, int]] = HELD, seed: int = 0) -> Router:
    return Router(held, np.random.default_rng(seed))


def test_a_long_span_is_chosen_in_proportion_to_how_far_it_reaches() -> None:
    one = router()
    drawn = Counter(hop.span for _ in range(4000) if (hop := one.hop(0, 6, 0.0)))
    assert drawn["long"] / drawn.total() == pytest.approx(3 / 4, abs=0.03)
    drawn = Counter(hop.span for _ in range(4000) if (hop := one.hop(2, 6, 0.0)))
    assert drawn["long"] / drawn.total() == pytest.approx(1 / 5, abs=0.03)


def test_a_hop_ends_where_its_span_or_what_is_wanted_ends() -> None:
    assert router().hop(1, 6, 0.0) == Hop("long", 1, 3)
    assert router().hop(1, 2, 0.0) == Hop("long", 1, 2)
    assert router().hop(3, 5, 0.0) == Hop("upper", 3, 5)
    assert router().hop(6, 8, 0.0) is None, "nobody holds block 6"


def test_who_fails_is_banned_twice_as_long_each_time_until_it_answers() -> None:
    one, now = router(), 100.0
    for times in range(4):
        one.failed("upper", now)
        until = now + BAN_SECONDS * 2**times
        assert one.banned("upper", until - 1e-6)
        assert not one.banned("upper", until)
        assert one.free_at(3) == until
        assert one.hop(3, 6, until - 1e-6) is None
        assert one.hop(3, 6, until) == Hop("upper", 3, 6)
        now = until
    one.answered("upper")
    one.failed("upper", now)
    assert one.free_at(3) == now + BAN_SECONDS


def test_a_block_is_free_with_the_first_of_those_who_hold_it() -> None:
    one = router()
    one.failed("long", 0.0)
    one.failed("upper", 4.0)
    assert one.free_at(2) == BAN_SECONDS
    assert one.free_at(0) < 0, "short was never banned"
    assert one.free_at(9) == float("inf")


def test_the_same_seed_draws_the_same_way() -> None:
    assert [router(seed=3).hop(0, 6, 0.0) for _ in range(3)] == [router(seed=3).hop(0, 6, 0.0) for _ in range(3)]


def test_waits_grow_to_a_minute() -> None:
    waits = [wait_seconds(failures) for failures in range(1, 30)]
    assert waits[:4] == [0.0, 1.0, 2.0, 4.0]
    assert waits == sorted(waits)
    assert waits[-1] == LONGEST_WAIT_SECONDS


@given(st.integers(0, 5), st.integers(0, 2**32))
def test_every_hop_is_within_what_its_machine_holds(at: int, seed: int) -> None:
    hop = router(seed=seed).hop(at, 6, 0.0)
    assert hop is not None
    first, end = HELD[hop.span]
    assert first <= hop.first == at < hop.end <= end
