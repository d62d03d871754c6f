from fractions import Fraction
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from cutlayer.report.intervals import Interval, length, uncovered, union

moments = st.floats(min_value=0, max_value=1e6, allow_nan=False)
intervals = st.lists(st.tuples(moments, moments).map(lambda pair: (min(pair), max(pair))), max_size=12)


def seconds_inside(chosen: list[Interval]) -> Fraction:
    """Length of the union, the slow way: cut the line at every end point and ask each piece."""
    points = sorted({Fraction(point) for interval in chosen for point in interval})
    return sum(
        (
            right - left
            for left, right in pairwise(points)
            if any(start <= left and right <= end for start, end in chosen)
        ),
        Fraction(0),
    )


@given(intervals)
def test_the_length_of_a_union_is_exact(chosen: list[Interval]) -> None:
    assert length(union(chosen)) == float(seconds_inside(chosen))


@given(intervals)
def test_a_union_is_sorted_and_disjoint(chosen: list[Interval]) -> None:
    merged = union(chosen)
    points = [point for interval in merged for point in interval]
    assert points == sorted(set(points))


def test_intervals_that_touch_become_one_and_empty_ones_vanish() -> None:
    assert union([(1.0, 2.0), (0.0, 1.0), (5.0, 5.0)]) == [(0.0, 2.0)]


@given(intervals, intervals)
def test_covered_and_uncovered_make_the_whole(window: list[Interval], covered: list[Interval]) -> None:
    whole = union([*window, *covered])
    rest = seconds_inside(whole) - seconds_inside(covered)
    assert uncovered(whole, union(covered)) == float(rest)
