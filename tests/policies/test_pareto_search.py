"""The three searches, on problems whose front is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cutlayer.errors import ConfigError
from cutlayer.policies.pareto_search import (
    SEARCHES,
    Floats,
    Ints,
    _dominates,
    _Nets,
    drawn,
    front,
    hypervolume,
    selected,
    span_of,
)

SIZES = np.array([[5, 3, 4], [6, 3, 4]])
"""Two devices; 4,320 plans."""
LARGE = np.full((6, 3), 5)


def objectives(choice_PK3: Ints) -> Floats:
    """The more the dearer, the less the slower; and one decision of which one level is the best for both."""
    first, second, third = choice_PK3[..., 0] + 0.0, choice_PK3[..., 1] + 0.0, choice_PK3[..., 2] + 0.0
    seconds = (10.0 / (1 + first) + (second - 1) ** 2 + 3.0 / (1 + third)).max(1)
    joules = (first**1.5 + (second - 1) ** 2 + third**2).sum(1)
    return np.stack([seconds, joules], axis=1)


def found(search: str, sizes: Ints, evaluations: int, seed: int = 0) -> Ints:
    return SEARCHES[search](objectives, sizes, evaluations, np.random.default_rng(seed))


def quality(search: str, sizes: Ints, evaluations: int, seed: int = 0) -> float:
    """The hypervolume that a search has found, as a part of that of all plans (of the large problem: of its bounds)."""
    ends = np.zeros_like(sizes), sizes - 1
    known = objectives(found("enumerate", sizes, 10**6) if sizes is SIZES else np.stack(ends))
    low, width = span_of(known)
    points = objectives(found(search, sizes, evaluations, seed))
    whole = hypervolume((known - low) / width, np.array([1.1, 1.1]))
    return hypervolume((points - low) / width, np.array([1.1, 1.1])) / whole


def by_hand(points: Floats) -> set[tuple[float, ...]]:
    def dominated(one: Floats) -> bool:
        return any((other <= one).all() and (other < one).any() for other in points)

    return {tuple(one) for one in points if not dominated(one)}


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=20))
def test_the_front_is_what_nothing_dominates(pairs: list[tuple[int, int]]) -> None:
    points = np.array(pairs, dtype=float)
    best = points[front(points)]
    assert {tuple(one) for one in best} == by_hand(points)
    assert len(best) == len(by_hand(points)), "equal points once"
    assert (np.diff(best[:, 0]) > 0).all()
    grid = np.array([(x, y) for x in range(8) for y in range(8)]) + 0.5  # cells below and left of the reference
    area = sum(1 for cell in grid if any((point <= cell).all() for point in points))
    assert hypervolume(points, np.array([8.0, 8.0])) == area


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=2, max_size=30), st.data())
def test_selection_takes_front_after_front(pairs: list[tuple[int, int]], data: st.DataObject) -> None:
    points = np.array(pairs, dtype=float)
    number = data.draw(st.integers(1, len(points)))
    kept = selected(points, number)
    assert len(set(kept.tolist())) == number
    for left in set(range(len(points))) - set(kept.tolist()):
        worse = [k for k in kept if (points[left] <= points[k]).all() and (points[left] < points[k]).any()]
        assert not worse, "one that dominates another is kept before it"


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("evaluations", [1, 63, 500])
def test_a_search_tries_as_many_as_it_may_and_no_more(search: str, evaluations: int) -> None:
    tried = found(search, LARGE, evaluations)
    assert tried.shape == (evaluations, *LARGE.shape)
    assert (tried >= 0).all()
    assert (tried < LARGE).all()


@pytest.mark.parametrize("search", SEARCHES)
def test_a_search_is_its_seeds(search: str) -> None:
    one, again, other = (found(search, LARGE, 300, seed) for seed in (3, 3, 4))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_all_of_them_where_that_is_possible() -> None:
    every = found("enumerate", SIZES, 4320)
    assert len(np.unique(every.reshape(len(every), -1), axis=0)) == 4320
    assert len(found("enumerate", SIZES, 4319)) == 4319
    assert np.array_equal(found("enumerate", SIZES, 10), drawn(SIZES, 10, np.random.default_rng(0)))


@pytest.mark.parametrize("search", ["nsga2", "gan"])
def test_a_front_against_enumeration(search: str) -> None:
    """A quarter of all plans suffices for nearly all of the front's area; no point is better than what there is."""
    assert 0.98 < quality(search, SIZES, 1024) <= 1 + 1e-12


@pytest.mark.parametrize("search", ["nsga2", "gan"])
def test_it_finds_more_than_draws_do(search: str) -> None:
    """The search tries 1024 of 5^18 plans."""
    assert quality(search, LARGE, 1024) > quality("enumerate", LARGE, 1024) + 0.02


def test_the_generator_is_taught_by_the_judge() -> None:
    """Proposals of the generator dominate what it is shown more often than draws do."""
    generator = np.random.default_rng(0)
    shown = drawn(LARGE, 128, generator)
    points, scaled = objectives(shown), torch.from_numpy(shown.reshape(128, -1) / 4).float()
    nets = _Nets(LARGE.size, 0)
    for _ in range(10):
        nets.learn(scaled, torch.from_numpy(_dominates(points)))
    proposed = np.rint(nets.propose(scaled).numpy() * 4).astype(np.intp).reshape(shown.shape)

    def better(one: Ints) -> float:
        found = objectives(one)
        return float(((found <= points).all(1) & (found < points).any(1)).mean())

    assert better(proposed) > 0.3 + better(drawn(LARGE, 128, generator))


def test_a_library_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pymoo.algorithms.moo.nsga2", None)
    with pytest.raises(
        ConfigError, match=r"method\.search: expected pymoo to be installed for nsga2.*cutlayer\[pareto\]"
    ):
        SEARCHES["nsga2"](objectives, SIZES, 64, np.random.default_rng(0))
