"""Round records as TensorBoard scalars.

The writer is opened by the first record, because importing tensorboard is slow, and it says "purge from this
round on": so a resumed run replaces the rounds that the killed one had written after its last checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class Scalars:
    """Scalars in `folder`, made when the first one is written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: SummaryWriter | None = None

    def add(self, row: Mapping[str, Any]) -> None:
        """Writes every number of `row` at step `row["round"]`, nested ones as `validation/accuracy`.

        The records per device stay in metrics.jsonl: a fleet of eighty would bury the curves.
        """
        writer = self._writer or self._open(row["round"])
        for tag, value in _numbers({key: row[key] for key in sorted(row) if key not in ("round", "devices")}):
            writer.add_scalar(tag, value, global_step=row["round"])
        writer.flush()  # a kill must not cost rounds that the resume will not repeat

    def _open(self, round: int) -> SummaryWriter:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self._folder), purge_step=round)
        return self._writer

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _numbers(row: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for key, value in row.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{key}", value
