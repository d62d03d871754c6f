"""The bucket gives what its rate says, never less than two frames, and nothing back for a clock that goes backwards."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutlayer.errors import Refused
from cutlayer.gate.allowance import Allowance


def accepted(allowance: Allowance, arrivals: list[tuple[int, float]]) -> list[bool]:
    """Which of (bytes, seconds) are let through."""
    result = []
    for num_bytes, now in arrivals:
        try:
            allowance.spend(num_bytes, now)
        except Refused:
            result.append(False)
        else:
            result.append(True)
    return result


def small() -> Allowance:
    """Two messages and ten bytes a second, three messages at once."""
    return Allowance(0, 100.0, messages_per_second=2, messages_at_once=3, bytes_per_second=10)


def test_messages_are_counted() -> None:
    arrivals = [(0, 100.0)] * 4 + [(0, 100.4), (0, 100.5), (0, 100.5), (0, 200.0)]
    assert accepted(small(), arrivals) == [True, True, True, False, False, True, False, True]


def test_the_reason_is_flood() -> None:
    with pytest.raises(Refused, match="got more") as error:
        small().spend(11, 100.0)
    assert error.value.reason == "flood"


def test_bytes_are_counted() -> None:
    assert accepted(small(), [(6, 100.0), (6, 100.0), (6, 100.2)]) == [True, False, True]


def test_it_holds_no_more_than_at_once() -> None:
    assert accepted(small(), [(0, 1000.0)] * 4) == [True, True, True, False]


def test_two_frames_of_the_plan_always_fit() -> None:
    allowance = Allowance(10**12, 0.0)
    assert accepted(allowance, [(10**12, 0.0)] * 3) == [True, True, False]


def test_a_clock_that_goes_back_gives_nothing() -> None:
    assert accepted(small(), [(0, 100.0)] * 3 + [(0, 0.0), (0, 100.0), (0, 100.5)]) == [True] * 3 + [False] * 2 + [True]


@given(st.lists(st.tuples(st.integers(0, 12), st.floats(0, 3)), max_size=60))
def test_never_more_than_at_once_plus_the_rate(steps: list[tuple[int, float]]) -> None:
    allowance, now, arrivals = small(), 100.0, []
    for num_bytes, wait in steps:
        now += wait
        arrivals.append((num_bytes, now))
    through = [arrival for arrival, ok in zip(arrivals, accepted(allowance, arrivals), strict=True) if ok]
    assert len(through) <= 3 + 2 * (now - 100.0) + 1e-6
    assert sum(num_bytes for num_bytes, _ in through) <= 10 + 10 * (now - 100.0) + 1e-6
