"""Rows of a table, by column: all that tasks, spreading and shares need of a data set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cutlayer.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """A table.

    Attributes:
      columns: the cells of each column, all of one length; a null is None.
      class_names: of columns that hold numbers of classes, the names in the order of the numbers.
      chosen: which rows of `columns` there are, in this order; None for all of them.

    Example:
        >>> rows = Rows.of([{"text": "a"}, {"text": "b", "label": 1}])
        >>> rows.column_names, len(rows), rows.cells("label"), rows.select([1]).cells("text")
        (['text', 'label'], 2, [None, 1], ['b'])
    """

    columns: Mapping[str, Sequence[Any]]
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    chosen: NDArray[np.int64] | None = None

    @classmethod
    def of(cls, records: Iterable[Mapping[str, Any]]) -> Rows:
        """A row for each record; a column that a record lacks is null there."""
        columns: dict[str, list[Any]] = {}
        for row, record in enumerate(records):
            for name, cell in record.items():
                if name not in columns:
                    columns[name] = [None] * row
                columns[name].append(cell)
            for column in columns.values():
                if len(column) == row:
                    column.append(None)
        return cls(columns)

    @classmethod
    def of_dataset(cls, dataset: Dataset) -> Rows:
        """The rows of a Hugging Face data set, each column read when it is asked for."""
        plain = dataset.with_format(None)
        named = {name: getattr(feature, "names", None) for name, feature in dataset.features.items()}
        return cls(
            {name: plain[name] for name in dataset.column_names},
            {name: tuple(names) for name, names in named.items() if names},
        )

    def __len__(self) -> int:
        if self.chosen is not None:
            return len(self.chosen)
        return len(next(iter(self.columns.values()), ()))

    @property
    def column_names(self) -> list[str]:
        """The columns, in the order of the file."""
        return list(self.columns)

    def cells(self, column: str) -> list[Any]:
        """The cells of a column."""
        cells: list[Any] = self.columns[column][:]  # type: ignore[assignment]  # one read of a data set's column
        return cells if self.chosen is None else [cells[row] for row in self.chosen.tolist()]

    def number(self, row: int) -> int:
        """The number of a row in the file that it came from, from 0."""
        return row if self.chosen is None else int(self.chosen[row])

    def select(self, rows: Sequence[int] | NDArray[np.int64]) -> Rows:
        """These rows, in this order."""
        chosen = np.asarray(rows, np.int64)
        return Rows(self.columns, self.class_names, chosen if self.chosen is None else self.chosen[chosen])


def joined(tables: Sequence[Rows], names: Sequence[str]) -> Rows:
    """The rows of several tables, one after the other.

    Args:
      tables: With the same columns.
      names: What they are called in errors.

    Raises:
      DataError: One has other columns, or other names of classes.
    """
    first = tables[0]
    for name, table in zip(names, tables, strict=True):
        if set(table.column_names) != set(first.column_names) or table.class_names != first.class_names:
            raise DataError(
                f"data {name}: expected the columns and classes of {names[0]} ({', '.join(first.column_names)}), got "
                f"{', '.join(table.column_names)}. Put together what belongs together."
            )
    return Rows(_Joined(tables), first.class_names, np.arange(sum(map(len, tables))))


class _Joined(Mapping[str, Sequence[Any]]):
    """The columns of several tables, put together when they are asked for."""

    def __init__(self, tables: Sequence[Rows]) -> None:
        self._tables = tables

    def __getitem__(self, name: str) -> Sequence[Any]:
        return [cell for table in self._tables for cell in table.cells(name)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tables[0].columns)

    def __len__(self) -> int:
        return len(self._tables[0].columns)
