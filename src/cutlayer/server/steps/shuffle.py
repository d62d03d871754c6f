"""A window of samples from which mixed batches are drawn: what makes unequal data look alike."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

import numpy as np

T = TypeVar("T")


class ShuffleBuffer(Generic[T]):
    """Holds samples until there are `window` of them; then batches are drawn uniformly, without replacement.

    Within a batch samples keep the order in which they came, so a window of one batch changes nothing.

    Args:
      window: Samples that it gathers before it gives any; below `batch_size` it counts as that.
      batch_size: Samples in a batch.
      seed: Of the draw.
    """

    def __init__(self, window: int, batch_size: int, seed: tuple[int, ...]) -> None:
        self._window, self._batch_size = max(window, batch_size), batch_size
        self._rng = np.random.default_rng(seed)
        self._samples: list[T] = []

    def put(self, samples: Iterable[T]) -> Iterator[list[T]]:
        """Takes samples in; gives the batches that can be drawn now."""
        self._samples.extend(samples)
        while len(self._samples) >= self._window:
            yield self._draw()

    def drain(self) -> Iterator[list[T]]:
        """Gives what is left, the last batch as small as it comes: every sample leaves exactly once."""
        while self._samples:
            yield self._draw()

    def _draw(self) -> list[T]:
        size = min(self._batch_size, len(self._samples))
        chosen = set(self._rng.choice(len(self._samples), size, replace=False).tolist())
        batch = [sample for index, sample in enumerate(self._samples) if index in chosen]
        self._samples = [sample for index, sample in enumerate(self._samples) if index not in chosen]
        return batch
