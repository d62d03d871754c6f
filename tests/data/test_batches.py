"""Batches: every sample once an epoch, resumable anywhere, padded as little as the lengths allow."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cutlayer.data.batches import POOL_BATCHES, Batches, evaluation_batches, parts_of
from cutlayer.data.tasks import Ragged, Samples
from cutlayer.errors import CheckpointError, DataError
from cutlayer.state import State
from cutlayer.testing.tiny import random_batch

PAD = 99


def samples_of(lengths: list[int], *, causal: bool = False, max_length: int = 512) -> Samples:
    """Sample n holds the tokens n, n, n, ..., so that a batch shows whose it is; of a causal one, token 0 is masked."""
    num_samples = len(lengths)
    ids = Ragged.of([[row] * length for row, length in enumerate(lengths)])
    return Samples(
        input_ids=ids,
        token_type_ids=None if causal else Ragged.of([[1] * length for length in lengths]),
        labels=Ragged.of([[-100] + [row] * (n - 1) for row, n in enumerate(lengths)])
        if causal
        else np.arange(num_samples) % 3,
        weights=np.array(lengths) - 1 if causal else np.ones(num_samples, np.int64),
        rows=np.arange(num_samples),
        num_dropped=0,
        max_length=max_length,
    )


def stream(lengths: list[int], batch_size: int = 4, seed: int = 0, rows: list[int] | None = None) -> Batches:
    wanted = list(range(len(lengths))) if rows is None else rows
    return Batches(samples_of(lengths), wanted, batch_size=batch_size, seed=seed, pad_id=PAD)


@settings(deadline=None)
@given(
    num_samples=st.integers(1, 300),
    batch_size=st.integers(1, 9),
    seed=st.integers(0, 2**40),
    sizes=st.lists(st.one_of(st.none(), st.integers(1, 20)), min_size=1, max_size=5),
)
def test_every_row_once_per_epoch_whatever_sizes_are_asked_for(
    num_samples: int, batch_size: int, seed: int, sizes: list[int | None]
) -> None:
    rows = list(range(0, 2 * num_samples, 2))  # a device has some of the samples
    batches = stream([1 + row % 7 for row in range(2 * num_samples)], batch_size, seed, rows)
    for epoch in range(2):
        given_out: list[int] = []
        for turn in range(1000):
            assert batches.state().facts["epoch"] == epoch
            given_out += batches.next(sizes[turn % len(sizes)]).indices
            if batches.state().facts["epoch"] > epoch:
                break
        assert sorted(given_out) == rows


def test_full_batches_first_and_the_rest_last() -> None:
    batches = stream([5] * 11, batch_size=4)
    assert [batches.next().num_samples for _ in range(6)] == [4, 4, 3, 4, 4, 3]


def test_another_size_walks_on_through_the_same_order() -> None:
    lengths = [1 + row % 9 for row in range(60)]
    usual, other = stream(lengths), stream(lengths)
    order = [row for _ in range(15) for row in usual.next().indices]
    walked = [row for size in (1, 7, 16, None, 3) for row in other.next(size).indices]
    assert walked == order[:31]


@settings(deadline=None)
@given(st.integers(0, 40), st.integers(1, 20))
def test_resumed_anywhere_is_never_stopped(num_before: int, num_after: int) -> None:
    lengths = [1 + row % 11 for row in range(37)]
    never_stopped, resumed = stream(lengths), stream(lengths)
    for _ in range(num_before):
        never_stopped.next()
    resumed.load(State(json.loads(json.dumps(never_stopped.state().facts))))
    for _ in range(num_after):
        one, other = never_stopped.next(), resumed.next()
        assert one.indices == other.indices
        assert torch.equal(one.input_ids_BT, other.input_ids_BT)


@pytest.mark.parametrize(
    "state", [{}, {"epoch": 0}, {"epoch": -1, "position": 0}, {"epoch": 0, "position": 8}, {"epoch": 0, "position": -1}]
)
def test_a_place_in_another_stream(state: dict[str, int]) -> None:
    with pytest.raises(CheckpointError, match="expected a place in a stream of 8 samples"):
        stream([5] * 8).load(State(state))


def test_epochs_and_seeds_differ_and_the_same_seed_does_not() -> None:
    def epochs(seed: int) -> list[list[int]]:
        batches = stream([5] * 40, seed=seed)
        return [[row for _ in range(10) for row in batches.next().indices] for _ in range(2)]

    first, second = epochs(0)
    assert epochs(0) == [first, second]
    assert first != second
    assert first not in epochs(1)
    assert second not in epochs(1)


def test_texts_of_like_length_share_a_batch_and_batches_are_shuffled() -> None:
    lengths = np.random.default_rng(0).integers(1, 100, size=8 * POOL_BATCHES).tolist()
    batches = stream(lengths, batch_size=8)
    spans = [[lengths[row] for row in batches.next().indices] for _ in range(POOL_BATCHES)]
    assert max(max(span) - min(span) for span in spans) < 15
    tops = [max(span) for span in spans]
    assert any(a > b for a, b in pairwise(tops))
    assert any(a < b for a, b in pairwise(tops))


def test_pools_let_neighbours_in_length_be_apart() -> None:
    """Sorted as a whole, each batch of the first epoch would hold four lengths in succession."""
    lengths = [1 + row for row in range(3 * 4 * POOL_BATCHES)]
    batches = stream(lengths, batch_size=4)
    spans = [max(rows) - min(rows) for rows in (batches.next().indices for _ in range(POOL_BATCHES))]
    assert np.mean(spans) > 6


def test_a_classification_batch() -> None:
    batch = Batches(samples_of([3, 10]), [1, 0], batch_size=2, seed=0, pad_id=PAD).next()
    assert batch.indices == (0, 1)
    assert batch.input_ids_BT.tolist() == [[0] * 3 + [PAD] * 13, [1] * 10 + [PAD] * 6]
    assert batch.attention_mask_BT.tolist() == [[1] * 3 + [0] * 13, [1] * 10 + [0] * 6]
    assert batch.token_type_ids_BT is not None
    assert batch.token_type_ids_BT.tolist() == [[1] * 3 + [0] * 13, [1] * 10 + [0] * 6]
    assert batch.labels.tolist() == [0, 1]
    assert batch.weight == 2
    tensors = (batch.input_ids_BT, batch.attention_mask_BT, batch.token_type_ids_BT, batch.labels)
    assert {tensor.dtype for tensor in tensors} == {torch.int64}


def test_a_causal_batch() -> None:
    batch = Batches(samples_of([2, 4], causal=True), [0, 1], batch_size=2, seed=0, pad_id=PAD).next()
    assert batch.labels.tolist() == [[-100, 0] + [-100] * 6, [-100, 1, 1, 1] + [-100] * 4]
    assert batch.token_type_ids_BT is None
    assert batch.weight == 4
    assert batch.weight == int((batch.labels[:, 1:] != -100).sum())


@pytest.mark.parametrize(
    ("longest", "multiple", "max_length", "num_tokens"),
    [(8, 8, 512, 8), (9, 8, 512, 16), (9, 1, 512, 9), (10, 8, 12, 12), (10, 64, 512, 64)],
)
def test_the_padded_length(longest: int, multiple: int, max_length: int, num_tokens: int) -> None:
    samples = samples_of([longest, 1], max_length=max_length)
    batches = Batches(samples, [0, 1], batch_size=2, seed=0, pad_id=PAD, pad_to_multiple_of=multiple)
    assert batches.next().num_tokens == num_tokens


def test_no_rows() -> None:
    with pytest.raises(DataError, match="expected at least one sample, got none"):
        stream([5], rows=[])


def test_evaluation_sees_everything_once_and_short_texts_first() -> None:
    lengths = np.random.default_rng(0).integers(1, 100, size=50).tolist()
    batches = list(evaluation_batches(samples_of(lengths), batch_size=8, pad_id=PAD))
    order = [row for batch in batches for row in batch.indices]
    assert sorted(order) == list(range(50))
    assert [lengths[row] for row in order] == sorted(lengths)
    assert [batch.num_samples for batch in batches] == [8] * 6 + [2]


@pytest.mark.parametrize("task", ["classification", "causal-lm"])
def test_the_parts_of_a_batch_are_the_batch(task: str) -> None:
    """Every row once and in its order, padded as it was; they weigh what it weighs."""
    batch = random_batch(task, samples=5, token_types=True)
    parts = parts_of(batch, [2, 2, 1])
    for field in ("input_ids_BT", "attention_mask_BT", "labels", "token_type_ids_BT"):
        assert torch.equal(torch.cat([getattr(part, field) for part in parts]), getattr(batch, field))
    assert sum((part.indices for part in parts), ()) == batch.indices
    assert [part.num_samples for part in parts] == [2, 2, 1]
    assert sum(part.weight for part in parts) == batch.weight
    if task == "classification":
        assert [part.weight for part in parts] == [2, 2, 1]
    else:
        assert len({part.weight / part.num_samples for part in parts}) > 1


def test_one_part_is_the_batch_itself() -> None:
    batch = random_batch("causal-lm")
    assert parts_of(batch, [4]) == [batch]
    assert parts_of(replace(batch, token_type_ids_BT=None), [1, 3])[0].token_type_ids_BT is None
