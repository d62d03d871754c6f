"""Rows that a device holds out of its own: never trained on, and judged where they are.

Which rows is decided by the run's seed and each row's own tokens, not by its place or by the device: a simulated
device and a real one hold out the same, rows that are added leave most others where they are, and copies of one text
go together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cutlayer.data.batches import evaluation_batches
from cutlayer.data.tasks import Samples
from cutlayer.types import Batch


@dataclass(frozen=True, slots=True)
class Held:
    """The rows that a device holds out.

    Attributes:
      samples: the tokenised set.
      rows: positions in it, in their order.
      pad_id: the token id that pads.
    """

    samples: Samples
    rows: Sequence[int]
    pad_id: int

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """All of them once, shortest first."""
        return evaluation_batches(self.samples, batch_size, self.pad_id, rows=self.rows)


def parted(samples: Samples, rows: Sequence[int], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Rows to train on and rows that are held out, both in their order.

    Args:
      samples: The tokenised set.
      rows: The device's, as positions in it.
      share: Of them, that is held out; at least one row, but for 0 and where there is no other.
      seed: The run's.
    """
    number = 0 if share == 0 else min(max(1, round(share * len(rows))), len(rows) - 1)
    if number < 1:
        return list(rows), []
    drawn = sorted(range(len(rows)), key=lambda place: (_number(samples, rows[place], seed), place))
    held = set(drawn[:number])
    both = [[row for place, row in enumerate(rows) if (place in held) is out] for out in (False, True)]
    return both[0], both[1]


def _number(samples: Samples, row: int, seed: int) -> bytes:
    """The digest by which a row is drawn: as good as a random number, and its own."""
    ids = samples.input_ids
    tokens = ids.flat[ids.offsets[row] : ids.offsets[row + 1]].astype("<i4").tobytes()
    return hashlib.blake2b(tokens, digest_size=16, key=f"held out {seed}".encode()).digest()
