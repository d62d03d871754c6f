"""Devices whose part of a round is poison: as few as must be left out, the same ones whenever it is asked."""

from __future__ import annotations

from collections.abc import Collection
from itertools import combinations
from typing import Any

import pytest

from cutlayer.server.found_out import found_out

NORMS = {"a": 1.0, "b": 1.5, "c": 900.0, "d": 1.2, "e": 800.0}


def rows(norms: dict[str, float]) -> list[dict[str, Any]]:
    middle = sorted(norms.values())[(len(norms) - 1) // 2]
    return [{"device": name, "norm": norm, "times": norm / middle} for name, norm in norms.items()]


def anybody(_device: str) -> bool:
    return True


class Round:
    """A round in which the parts of some are poison: by and by, of those that show only further on."""

    def __init__(self, *poison: str, by_and_by: Collection[str] = ()) -> None:
        self.poison, self.tried = set(poison), list[tuple[str, ...]]()
        self.later = self.poison | set(by_and_by)

    def sound(self, without: Collection[str], times: float) -> bool:
        if times == 1:
            self.tried.append(tuple(without))
        return (self.poison if times == 1 else self.later) <= set(without)


@pytest.mark.parametrize("poison", [p for count in (1, 2, 3, 4) for p in combinations("abcde", count)])
def test_exactly_those_are_left_out(poison: tuple[str, ...]) -> None:
    assert set(found_out(rows(NORMS), Round(*poison).sound, anybody)) == set(poison)


@pytest.mark.parametrize("now", ["", "c", "e"])
@pytest.mark.parametrize("later", ["c", "e", "ce"])
def test_poison_that_shows_only_further_on(now: str, later: str) -> None:
    """So it may be on rows that nobody has tried; beside what shows at once, and instead of it."""
    round = Round(*now, by_and_by=later)
    assert set(found_out(rows(NORMS), round.sound, anybody)) == {*now, *later}


def test_a_rate_that_leaves_no_room_hides_nobody() -> None:
    """With everybody's part the model breaks further on: that is nobody's fault, and what breaks it now still is."""
    assert found_out(rows(NORMS), Round("c", by_and_by=NORMS).sound, anybody) == ["c"]
    assert found_out(rows(NORMS), Round(by_and_by=NORMS).sound, anybody) == []


def test_who_is_alone_may_be_to_blame() -> None:
    alone = rows({"a": 1.0})
    assert found_out(alone, Round("a").sound, anybody) == ["a"]
    assert found_out(alone, Round().sound, anybody) == []
    assert found_out(alone, Round("a").sound, lambda _: False) == []


def test_the_furthest_is_tried_first_and_nobody_is_left_out_of_a_sound_round() -> None:
    round = Round("c")
    assert found_out(rows({"a": 1.0, "b": 1.0, "c": 90.0}), round.sound, anybody) == ["c"]
    assert round.tried == [(), ("c",)]
    assert found_out(rows({"a": 1.0, "b": 1.0, "c": 90.0}), Round().sound, anybody) == []


def test_nothing_is_tried_where_nobody_moved_far_or_nobody_may_be_refused() -> None:
    round = Round("c")
    assert found_out(rows({"a": 1.0, "b": 1.0, "c": 2.9}), round.sound, anybody) == []
    assert found_out(rows({"a": 1.0, "b": 1.0, "c": 90.0}), round.sound, lambda _: False) == []
    assert not round.tried


def test_if_everybody_is_to_blame_nobody_is() -> None:
    assert found_out(rows({"a": 1.0, "b": 1.0, "c": 90.0}), Round("a", "b", "c").sound, anybody) == []


def test_who_cannot_be_refused_stays() -> None:
    norms = {"a": 1.0, "b": 80.0, "c": 90.0, "d": 1.0}
    assert found_out(rows(norms), Round("b").sound, "b".__eq__) == ["b"]
    assert found_out(rows(norms), Round("c").sound, "b".__eq__) == []
