"""Rows that are held out are a device's own, the same wherever it runs, and never trained on."""

from __future__ import annotations

import numpy as np
import pytest

from cutlayer.data.batches import Batches
from cutlayer.data.held_out import Held, parted
from cutlayer.data.tasks import Ragged, Samples


def samples(texts: list[list[int]]) -> Samples:
    """A sample of each of these, all of one class."""
    number = np.arange(len(texts))
    ones = np.ones(len(texts), np.int64)
    return Samples(Ragged.of(texts), None, np.zeros(len(texts), np.int64), ones, number, 0, 16)


TEXTS = [[number, number // 3, *range(number % 5)] for number in range(40)]


@pytest.mark.parametrize(
    ("share", "rows", "held"), [(0.0, 40, 0), (0.1, 40, 4), (0.01, 40, 1), (0.9, 40, 36), (0.99, 3, 2), (0.5, 1, 0)]
)
def test_a_share_of_the_rows_and_always_some_to_train_on(share: float, rows: int, held: int) -> None:
    train, out = parted(samples(TEXTS), range(rows), share, seed=0)
    assert (len(train), len(out)) == (rows - held, held)
    assert sorted(train + out) == list(range(rows))
    assert train == sorted(train)
    assert out == sorted(out)


def test_which_rows_is_a_matter_of_the_seed_and_of_each_text() -> None:
    """Not of their order, of other devices' rows or of where a device's are among all."""
    _, out = parted(samples(TEXTS), range(40), 0.25, seed=3)
    backwards = samples(TEXTS[::-1])
    assert [TEXTS[row] for row in out] == [TEXTS[39 - row] for row in parted(backwards, range(40), 0.25, seed=3)[1]][
        ::-1
    ]
    own = list(range(5, 25))  # of a simulated device, whose file has these rows and no other
    train, out = parted(samples(TEXTS), own, 0.25, seed=3)
    assert parted(samples(TEXTS[5:25]), range(20), 0.25, seed=3) == ([r - 5 for r in train], [r - 5 for r in out])
    assert parted(samples(TEXTS), own, 0.25, seed=4)[1] != out


def test_no_batch_holds_a_row_that_is_held_out() -> None:
    all_of_them = samples(TEXTS)
    train, out = parted(all_of_them, range(40), 0.2, seed=0)
    stream = Batches(all_of_them, train, batch_size=4, seed=1, pad_id=0)
    trained = {row for _ in range(40) for row in stream.next().indices}
    held = [row for batch in Held(all_of_them, out, 0).batches(3) for row in batch.indices]
    assert trained == set(train)
    assert sorted(held) == out
    assert list(all_of_them.lengths[held]) == sorted(all_of_them.lengths[out])
