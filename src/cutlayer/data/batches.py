"""Batches from samples: texts of like length together, every sample once per epoch, resumable anywhere.

Shapes: N samples, B batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray

from cutlayer.data.tasks import MASKED, Ragged, Samples
from cutlayer.errors import CheckpointError, DataError
from cutlayer.reading import TaskKind
from cutlayer.state import State
from cutlayer.types import Batch

POOL_BATCHES = 32
"""Number of batches that are sorted by length together: more saves padding, fewer mixes better."""


def stream_seed(seed: int, index: int) -> int:
    """The seed of the batches of the device at this place in the fleet, in a run with this seed."""
    return seed * 100_003 + index


class Batches:
    """An endless stream of batches over the samples of one device.

    An epoch is a fresh seeded permutation, sorted by length within pools of `POOL_BATCHES` batches, cut into
    batches, and the batches shuffled; what does not fill a batch comes last. Its order is a function of `seed`
    and the epoch's number alone, so a place in the stream is two numbers.

    Args:
      samples: The tokenised set, shared by all devices.
      rows: The samples of this device, as positions in `samples`.
      batch_size: Samples per batch.
      seed: At least 0; devices need different ones.
      pad_id: The token id to pad with.
      pad_to_multiple_of: T is rounded up to this, but never above the samples' `max_length`.

    Raises:
      DataError: there are no rows.
    """

    def __init__(
        self,
        samples: Samples,
        rows: Sequence[int],
        *,
        batch_size: int,
        seed: int,
        pad_id: int,
        pad_to_multiple_of: int = 8,
    ) -> None:
        if len(rows) == 0:
            raise DataError("batches: expected at least one sample, got none. Spread the data over fewer devices.")
        self._samples, self._rows = samples, np.asarray(rows, np.int64)
        self._batch_size, self._seed = batch_size, seed
        self._pad_id, self._multiple = pad_id, pad_to_multiple_of
        self._lengths = samples.lengths
        self._epoch, self._position, self._order = 0, 0, self._order_of(epoch=0)

    def next(self, batch_size: int | None = None) -> Batch:
        """The next batch. Another `batch_size` than the usual one walks on through the same order of samples."""
        end = self._position + (batch_size or self._batch_size)
        batch = _build(self._samples, self._order[self._position : end], self._pad_id, self._multiple)
        if end < len(self._order):
            self._position = end
        else:
            self._epoch, self._position, self._order = self._epoch + 1, 0, self._order_of(self._epoch + 1)
        return batch

    def state(self) -> State:
        """The place in the stream: the epoch, and how many samples of it were given out."""
        return State({"epoch": self._epoch, "position": self._position})

    def load(self, state: State) -> None:
        """Goes to the place that `state` gave, in a stream built with the same arguments.

        Raises:
          CheckpointError: the state is not a place in this stream.
        """
        epoch, position = state.facts.get("epoch", -1), state.facts.get("position", -1)
        if epoch < 0 or not 0 <= position < len(self._rows):
            raise CheckpointError(
                f"batches: expected a place in a stream of {len(self._rows)} samples, got {dict(state.facts)}. "
                "Resume with the data that the run was started with."
            )
        self._epoch, self._position, self._order = epoch, position, self._order_of(epoch)

    def _order_of(self, epoch: int) -> NDArray[np.int64]:
        rng = np.random.default_rng(np.random.SeedSequence([self._seed, epoch]))
        return _shuffled(self._rows, self._lengths, self._batch_size, rng)


def parts_of(batch: Batch, sizes: Sequence[int]) -> list[Batch]:
    """The batch in parts of so many samples, each padded as the batch is."""
    if len(sizes) == 1:
        return [batch]
    types, ends = batch.token_type_ids_BT, list(accumulate(sizes))
    rows = [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]
    return [
        Batch(
            input_ids_BT=batch.input_ids_BT[part],
            attention_mask_BT=batch.attention_mask_BT[part],
            labels=batch.labels[part],
            token_type_ids_BT=None if types is None else types[part],
            indices=batch.indices[part],
            weight=_weight_of(batch.labels[part]),
        )
        for part in rows
    ]


def random_tokens(task: TaskKind, vocabulary: int, num_tokens: int, samples: int = 4) -> Batch:
    """Texts that mean nothing, always the same: enough to see whether a model runs.

    Args:
      task: What they are labelled for: with their own tokens, or with the first class.
      vocabulary: Number of tokens that the model knows.
      num_tokens: Of each text.
      samples: How many texts.

    Example:
      >>> random_tokens("causal-lm", vocabulary=50, num_tokens=8).input_ids_BT.shape
      torch.Size([4, 8])
    """
    generator = torch.Generator().manual_seed(0)
    ids_BT = torch.randint(vocabulary, (samples, num_tokens), generator=generator)
    labels = ids_BT if task == "causal-lm" else torch.zeros(samples, dtype=torch.int64)
    return Batch(ids_BT, torch.ones_like(ids_BT), labels, None, tuple(range(samples)), _weight_of(labels))


def _weight_of(labels: torch.Tensor) -> int:
    """The weight of samples in a loss: one each, or the tokens that are predicted (the first of a text is not)."""
    return len(labels) if labels.dim() == 1 else int((labels[:, 1:] != MASKED).sum())


def evaluation_batches(
    samples: Samples, batch_size: int, pad_id: int, pad_to_multiple_of: int = 8, *, rows: Sequence[int] | None = None
) -> Iterator[Batch]:
    """The whole set once, or these rows of it, shortest samples first."""
    chosen = np.arange(len(samples)) if rows is None else np.asarray(rows, np.int64)
    order = chosen[np.argsort(samples.lengths[chosen], kind="stable")]
    for start in range(0, len(order), batch_size):
        yield _build(samples, order[start : start + batch_size], pad_id, pad_to_multiple_of)


def _shuffled(
    rows: NDArray[np.int64], lengths: NDArray[np.int64], batch_size: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """One epoch's order: a permutation of `rows` in which each `batch_size` in succession are of like length."""
    order = rng.permutation(rows)
    pool_size = POOL_BATCHES * batch_size
    for start in range(0, len(order), pool_size):
        pool = order[start : start + pool_size]
        order[start : start + pool_size] = pool[np.argsort(lengths[pool], kind="stable")]
    num_full = len(order) // batch_size * batch_size
    full = order[:num_full].reshape(-1, batch_size)
    return np.concatenate([rng.permutation(full).ravel(), order[num_full:]])


def _build(samples: Samples, rows: NDArray[np.int64], pad_id: int, multiple: int) -> Batch:
    lengths_B = samples.input_ids.offsets[rows + 1] - samples.input_ids.offsets[rows]
    num_tokens = min(-(-int(lengths_B.max()) // multiple) * multiple, samples.max_length)

    def padded(ids: Ragged, fill: int) -> torch.Tensor:
        return torch.from_numpy(ids.padded(rows, num_tokens, fill))

    labels, types = samples.labels, samples.token_type_ids
    return Batch(
        input_ids_BT=padded(samples.input_ids, pad_id),
        attention_mask_BT=torch.from_numpy((np.arange(num_tokens) < lengths_B[:, None]).astype(np.int64)),
        labels=padded(labels, MASKED) if isinstance(labels, Ragged) else torch.from_numpy(labels[rows]),
        token_type_ids_BT=None if types is None else padded(types, 0),
        indices=tuple(rows.tolist()),
        weight=int(samples.weights[rows].sum()),
    )
