"""A table whose names and numbers are whole at any width: what has no room goes below, or is said to be missing.

Every table of the commands, of the live displays and of the benchmarks is one of these. The first column says what a
row is about. It is never cut and never left out; of the others those that matter most come first, and what does not fit
beside them

    is shown below, the names once more     of a few rows
    is left out, and named in a line        of many
    is left out                             on a display that is drawn again and again

Columns of prose are broken between words before another column has to go. Where not even one column fits beside the
names, a row is turned: its name on a line, and below it a line for each of its cells. A pipe is as wide as it needs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

GAP = 2
"""Columns of the terminal between two of the table, and around all of them."""
FEW_ROWS = 12
"""Rows up to which a table is shown in several parts, the names in each, rather than without some columns."""
PROSE_COLUMNS = 28
"""Room that prose is given at least, where it has so much to say."""

Justify = Literal["left", "right"]


@dataclass(frozen=True, slots=True)
class Column:
    """One column.

    Attributes:
      heading: What stands above it.
      justify: Numbers are to the right.
      prose: Whether its cells may be broken between words.
      style: Of its cells.
    """

    heading: str
    justify: Justify = "left"
    prose: bool = False
    style: str = ""


@dataclass(frozen=True, slots=True)
class _Row:
    cells: tuple[Text, ...]
    style: str
    after_line: bool


class Listing:
    """A table, filled row by row.

    Args:
      words: Headings of columns of words; the first says what a row is about.
      numbers: Headings of columns of numbers, which follow.
      title: A line above it.
      prose: Which headings are of columns that may be broken between words.
      most: Headings in the order of their importance; those that are not named follow, from left to right.
      drawn_again: Whether it is part of a display that must not change its height: then it says nothing of what is left
        out, and has no line above.
      headed: Whether headings are shown.

    Example:
      >>> from rich.console import Console
      >>> shown = Listing("device", numbers=["cut", "step"], most=["step"])
      >>> shown.add_row("a-raspberry-pi", "12", "1.5 s")
      >>> Console(width=16, color_system=None).print(shown)  # too narrow for a column beside the name
      a-raspberry-pi
        cut: 12
        step: 1.5 s
    """

    def __init__(
        self,
        *words: str,
        numbers: Sequence[str] = (),
        title: str = "",
        prose: Collection[str] = (),
        most: Sequence[str] = (),
        drawn_again: bool = False,
        headed: bool = True,
    ) -> None:
        self.title, self._most, self._drawn_again, self._headed = title, tuple(most), drawn_again, headed
        self._columns: list[Column] = [Column(heading, prose=heading in prose) for heading in words]
        self._columns += [Column(heading, "right") for heading in numbers]
        self._rows: list[_Row] = []
        self._line_next = False

    @property
    def headings(self) -> list[str]:
        """The headings of all columns, from left to right."""
        return [column.heading for column in self._columns]

    @property
    def cells(self) -> list[list[str]]:
        """The cells of all rows, from top to bottom."""
        return [[cell.plain for cell in row.cells] for row in self._rows]

    def add_column(self, heading: str, *, justify: Justify = "left", prose: bool = False, style: str = "") -> None:
        """Adds a column, to the right of the others and before there are rows."""
        self._columns.append(Column(heading, justify, prose, style))

    def add_row(self, *cells: str | Text, style: str = "") -> None:
        """Adds a row; cells that are not given are empty."""
        filled = [*cells, *[""] * (len(self._columns) - len(cells))]
        texts = tuple(Text(cell) if isinstance(cell, str) else cell for cell in filled)
        self._rows.append(_Row(texts, style, self._line_next))
        self._line_next = False

    def add_section(self) -> None:
        """Draws a line before the next row."""
        self._line_next = bool(self._rows)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        whole = _taken([self._width(index) for index in range(len(self._columns))])
        return Measurement(min(whole, options.max_width), min(whole, options.max_width))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self.title:
            yield Text(self.title, style="bold", overflow="fold")
        parts, left_out = self._arranged(options.max_width)
        if not parts:
            yield from self._turned()
            return
        for part in parts:
            yield self._drawn(part)
        if left_out and not self._drawn_again:
            names = ", ".join(self.headings[index] for index in left_out)
            yield Text(f"not shown here: {names}. A wider terminal shows more, and a pipe all.", style="dim")

    # ------------------------------------------------------------------ what fits

    def _arranged(self, room: int) -> tuple[list[list[int]], list[int]]:
        """The columns of each part, and those that are in none; no part where nothing fits beside the names."""
        numbers = range(len(self._columns))
        left, least = sorted(numbers[1:], key=self._rank), [self._least(index) for index in numbers]
        parts: list[list[int]] = []
        while left or not parts:
            part = _fitting(left, least, room)
            if len(part) == 1 and left and not self._drawn_again:
                return [], []
            parts.append(sorted(part))
            left = [index for index in left if index not in part]
            if self._drawn_again or len(self._rows) > FEW_ROWS:
                break
        return parts, sorted(left)

    def _rank(self, index: int) -> tuple[int, int]:
        heading = self._columns[index].heading
        return (self._most.index(heading) if heading in self._most else len(self._most), index)

    def _width(self, index: int) -> int:
        """The width of a column with every cell on a line."""
        own = [row.cells[index].cell_len for row in self._rows]
        return max([Text(self._columns[index].heading).cell_len * self._headed, *own])

    def _least(self, index: int) -> int:
        """The least that a column can do with."""
        width, column = self._width(index), self._columns[index]
        if not column.prose:
            return width
        texts = [column.heading, *(row.cells[index].plain for row in self._rows)]
        return max([min(width, PROSE_COLUMNS), *(Text(word).cell_len for text in texts for word in text.split())])

    # ------------------------------------------------------------------ drawing

    def _drawn(self, part: Sequence[int]) -> Table:
        table = Table(
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            padding=(0, 1, 0, 0),
            header_style="bold",
            show_edge=not self._drawn_again,
            show_header=self._headed,
        )
        for index in part:
            column = self._columns[index]
            table.add_column(
                Text(column.heading),
                justify=column.justify,
                style=column.style,
                no_wrap=not column.prose,
                min_width=self._least(index),
            )
        for row in self._rows:
            if row.after_line:
                table.add_section()
            table.add_row(*(row.cells[index] for index in part), style=row.style)
        return table

    def _turned(self) -> Iterator[RenderableType]:
        """Every row as lines of its own."""
        for row in self._rows:
            name, *cells = row.cells
            yield Text.assemble((name.plain, "bold"), overflow="fold")
            for column, cell in zip(self._columns[1:], cells, strict=True):
                yield Text(f"  {column.heading}: {cell.plain}", overflow="fold")


def _fitting(wanted: Sequence[int], least: Sequence[int], room: int) -> list[int]:
    """The names, and those of the wanted columns for which there is room beside them."""
    part = [0]
    for index in wanted:
        if _taken([least[other] for other in (*part, index)]) <= room:
            part.append(index)
    return part


def _taken(widths: Sequence[int]) -> int:
    """The columns of the terminal that a table takes."""
    return sum(widths) + GAP * len(widths)
