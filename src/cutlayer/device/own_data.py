"""A device's own data: its file read and tokenised as the run says, and the batches that it trains on.

The same rows in the same order give the same batches as in the simulated run (`tests/device/test_own_data.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from cutlayer.data.batches import Batches
from cutlayer.data.held_out import Held, parted
from cutlayer.data.source import Columns, load_tables
from cutlayer.data.tasks import Classification, Samples, task_from
from cutlayer.reading import TaskKind


@dataclass(frozen=True, slots=True)
class DataSpec:
    """The server's description of the data that it has never seen.

    Attributes:
      task: what is learnt.
      columns: which column plays which part.
      labels: class names in the order of their ids; empty for causal LM.
      max_length: tokens at which a text is cut off.
      pad_id: the token id that pads.
      batch_size: samples per batch.
      seed: of the order of the batches (`data/batches.py stream_seed`).
      hold_out: share of the rows that are held out.
      hold_out_seed: the run's `data.seed`, by which they are drawn.
      template: of chats: its text, or `plain`; None where there are none, or for the tokenizer's own.
      system: the system turn of chats that have none.
    """

    task: TaskKind
    columns: Columns
    labels: tuple[str, ...]
    max_length: int
    pad_id: int
    batch_size: int
    seed: int
    hold_out: float = 0.0
    hold_out_seed: int = 0
    template: str | None = None
    system: str | None = None


@dataclass(frozen=True)
class OwnData:
    """A device's tokenised samples."""

    samples: Samples
    spec: DataSpec
    columns: Columns
    """Those that were read: as the run names them, or as they were found."""

    @cached_property
    def _parted(self) -> tuple[list[int], list[int]]:
        return parted(self.samples, range(len(self.samples)), self.spec.hold_out, self.spec.hold_out_seed)

    @property
    def num_samples(self) -> int:
        """Samples to train on."""
        return len(self._parted[0])

    @property
    def label_counts(self) -> tuple[int, ...]:
        """Samples of each class, of those to train on; empty for causal LM."""
        if self.samples.classes is None:
            return ()
        classes = np.array(self.samples.classes)[self._parted[0]]
        return tuple(np.bincount(classes, minlength=len(self.spec.labels)).tolist())

    @property
    def held_out(self) -> Held:
        """The rows that are held out."""
        return Held(self.samples, self._parted[1], self.spec.pad_id)

    def batches(self) -> Batches:
        """The stream of all samples to train on, from its beginning."""
        return Batches(
            self.samples,
            self._parted[0],
            batch_size=self.spec.batch_size,
            seed=self.spec.seed,
            pad_id=self.spec.pad_id,
        )


def read_own_data(data: str, spec: DataSpec, tokenizer: Any) -> OwnData:
    """Reads and tokenises the device's data.

    Args:
      data: Whatever `data/source.py` reads; of a folder, its `train.*`.
      spec: What the run says of it.
      tokenizer: The model's.

    Raises:
      DataError: It cannot be read, lacks a column, or a label is none of the run's; names the file and the row.
      ConfigError: `spec` contradicts itself.
    """
    task = task_from(spec.task, spec.columns, spec.max_length, spec.template, spec.system)
    rows, where = load_tables(data).train, f"data {data}"
    if isinstance(task, Classification):
        return OwnData(task.named(spec.labels).encode(rows, tokenizer, where), spec, spec.columns)
    task = task.settled(rows, tokenizer, where)
    columns = Columns(text=task.text, prompt=task.prompt, answer=task.answer, messages=task.messages)
    return OwnData(task.encode(rows, tokenizer, where), spec, columns)
