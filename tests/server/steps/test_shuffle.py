"""The shuffle buffer: every sample leaves once, drawn uniformly, and a window of one batch changes nothing."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from cutlayer.server.steps.shuffle import ShuffleBuffer


def emptied(arrivals: list[list[int]], window: int, batch_size: int, seed: int = 0) -> list[list[int]]:
    buffer = ShuffleBuffer[int](window, batch_size, (seed,))
    batches = [batch for samples in arrivals for batch in buffer.put(samples)]
    return [*batches, *buffer.drain()]


@given(
    sizes=st.lists(st.integers(1, 6), max_size=8),
    window=st.integers(1, 20),
    batch_size=st.integers(1, 7),
)
def test_every_sample_leaves_once_in_full_batches(sizes: list[int], window: int, batch_size: int) -> None:
    numbers = iter(range(1000))
    arrivals = [[next(numbers) for _ in range(size)] for size in sizes]
    batches = emptied(arrivals, window, batch_size)
    assert Counter(sample for batch in batches for sample in batch) == Counter(range(sum(sizes)))
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert all(batch == sorted(batch) for batch in batches), "within a batch, the order of arrival"


def test_a_window_of_one_batch_changes_nothing() -> None:
    arrivals = [[4, 1], [3, 2], [0, 5]]
    assert emptied(arrivals, 2, 2) == arrivals
    assert emptied(arrivals, 1, 2) == arrivals


def test_a_batch_is_given_as_soon_as_the_window_is_full() -> None:
    buffer = ShuffleBuffer[int](5, 2, (0,))
    assert list(buffer.put([1, 2, 3, 4])) == []
    [batch] = buffer.put([5])
    assert len(batch) == 2
    assert [len(batch) for batch in buffer.put([6, 7, 8])] == [2]
    assert [len(batch) for batch in buffer.drain()] == [2, 2]


def test_the_draw_is_uniform_and_seeded() -> None:
    """The first sample has no better chance: each of six is in the first batch of two a third of the time."""
    first = Counter(sample for seed in range(3000) for sample in emptied([[*range(6)]], 6, 2, seed)[0])
    assert all(abs(count - 1000) < 120 for count in first.values())
    assert len(first) == 6
    assert emptied([[*range(9)]], 9, 2, 1) == emptied([[*range(9)]], 9, 2, 1)
