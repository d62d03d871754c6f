"""Numbers by round in bounded room: against the plain list of all of them."""

from __future__ import annotations

import pytest

from cutlayer.page.thinned import Thinned


@pytest.mark.parametrize("rounds", [1, 5, 8, 9, 33, 1000])
def test_the_spans_are_those_of_the_whole_list(rounds: int) -> None:
    thinned, values = Thinned(8), [float((7 * n) % 11) for n in range(rounds)]
    for round, value in enumerate(values):
        thinned.add(round, [round + 1], value)
    spans = list(thinned)
    assert len(spans) <= 8
    length = 1
    while -(-rounds // length) > 8:
        length *= 2
    pieces = [values[at : at + length] for at in range(0, rounds, length)]
    assert [(s.low, s.high, s.mean) for s in spans] == [(min(p), max(p), sum(p) / len(p)) for p in pieces]
    assert [s.xs[0] for s in spans] == [min(at + length, rounds) for at in range(0, rounds, length)]


def test_rounds_without_a_number_leave_a_gap_that_is_kept() -> None:
    thinned = Thinned(4)
    for round in (0, 1, 90, 91, 92, 93):
        thinned.add(round, [round], float(round))
    assert [span.xs[0] for span in thinned] == [1, 91, 93]
