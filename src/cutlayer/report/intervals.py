"""Sets of time as sorted, disjoint intervals, and their exact length.

Lengths are sums of end points through `math.fsum`, which rounds once, at the very end: the parts of a round
add up to the round however many bars it has.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

Interval = tuple[float, float]


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """The same time as sorted intervals that neither overlap nor touch. Empty ones vanish."""
    merged: list[Interval] = []
    for start, end in sorted(intervals):
        if end <= start:
            continue
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def length(intervals: Iterable[Interval]) -> float:
    """Total seconds of disjoint intervals, correctly rounded."""
    return math.fsum(point for start, end in intervals for point in (end, -start))


def uncovered(window: list[Interval], covered: list[Interval]) -> float:
    """Seconds of `window` that are not in `covered`, correctly rounded. `covered` lies within `window`."""
    ends = (point for start, end in window for point in (end, -start))
    return math.fsum([*ends, *(point for start, end in covered for point in (start, -end))])
