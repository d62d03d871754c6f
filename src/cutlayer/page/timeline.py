"""The time of a whole run in bounded room: for each machine a strip of cells, and the newest events as bars.

A cell says which part of its time a machine computed, and which it sent and received. Cells are as long as a run of
`MOST_CELLS` of them needs, so they grow with the run. A bar is one event; where there are too many, the oldest go, and
what they said is in the strips.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Sequence
from typing import Any

from cutlayer.report.activities import COMPUTE, NETWORK, SERVER, WAIT
from cutlayer.report.gantt import COLOURS
from cutlayer.types import Event

KINDS = (*COLOURS, "other")
"""Of bars, by number."""
NUMBERS = {kind: number for number, kind in enumerate(KINDS)}
LANES = {**dict.fromkeys(COMPUTE, 0), **dict.fromkeys(NETWORK, 1)}
"""Of a machine's two strips, by what it does."""
MOST_CELLS = 512
MOST_BARS = 24_000
FIRST_CELL_SECONDS = 2.0**-20
LEVELS = "0123456789abcdefghijklmnopqrstuvwxyz"
"""How full a cell is: a letter from none to all."""
Bar = tuple[int, int, float, float, int, int, int, int]
"""(machine, kind, start and end in seconds, round, step, peer, bytes); -1 where there is no step or peer."""


class Timeline:
    """What machines did, as far as a page can show it.

    Attributes:
      names: of machines, by number: the server is the first.
      cell_seconds: how long a cell is.
      end_seconds: the end of the last event.
      bars_from: seconds from which on every event is a bar.
    """

    def __init__(self, devices: Sequence[str] = ()) -> None:
        self.names: list[str] = []
        self.cell_seconds, self.end_seconds, self.bars_from = FIRST_CELL_SECONDS, 0.0, 0.0
        self._numbers: dict[str, int] = {}
        self._cells: list[tuple[array[float], array[float]]] = []  # seconds of work and of transfer, by machine
        self._bars: deque[Bar] = deque()
        self._news: list[Bar] = []
        self._changed: int | None = 0  # the first cell that has changed since somebody asked
        for name in (SERVER, *devices):
            self.number(name)

    def number(self, name: str) -> int:
        """Of a machine."""
        if name not in self._numbers:
            self._numbers[name] = len(self.names)
            self.names.append(name)
            self._cells.append((array("d"), array("d")))
        return self._numbers[name]

    def add(self, event: Event) -> None:
        """Takes an event."""
        if event.what == WAIT:
            return
        self.end_seconds = max(self.end_seconds, event.end_seconds)
        while self.end_seconds > MOST_CELLS * self.cell_seconds:
            self._double()
        machine = self.number(event.who)
        lane, kind = LANES.get(event.what), NUMBERS.get(event.what, len(KINDS) - 1)
        if lane is not None:
            self._fill(self._cells[machine][lane], event.start_seconds, event.end_seconds)
        peer = -1 if event.peer is None else self.number(event.peer)
        bar = (machine, kind, event.start_seconds, event.end_seconds, event.round)
        self._bars.append(whole := (*bar, -1 if event.step is None else event.step, peer, event.num_bytes))
        self._news.append(whole)
        if len(self._bars) > MOST_BARS:
            self.bars_from = max(self.bars_from, self._bars.popleft()[3])
        if len(self._news) > MOST_BARS:
            del self._news[: len(self._news) // 2]

    def _fill(self, cells: array[float], start: float, end: float) -> None:
        """Adds a stretch of time to the cells that it is in."""
        size = self.cell_seconds
        first, last = int(start / size), min(int(end / size), MOST_CELLS - 1)
        if len(cells) <= last:
            cells.extend([0.0] * (last + 1 - len(cells)))
        if self._changed is None or first < self._changed:
            self._changed = first
        if first == last:
            cells[first] += end - start
            return
        for place in range(first, last + 1):
            cells[place] += max(0.0, min(end, (place + 1) * size) - max(start, place * size))

    def _double(self) -> None:
        self.cell_seconds *= 2
        self._changed = 0
        for pair in self._cells:
            for cells in pair:
                if len(cells) % 2:
                    cells.append(0.0)
                cells[:] = array("d", map(sum, zip(cells[::2], cells[1::2], strict=True)))

    def whole(self) -> dict[str, Any]:
        """All of it, for a page that has nothing yet."""
        return self._piece(0, list(self._bars))

    def news(self) -> dict[str, Any] | None:
        """What has changed since this was last asked; None where nothing has."""
        bars, changed = self._news, self._changed
        if changed is None and not bars:
            return None
        self._news, self._changed = [], None
        return self._piece(0 if changed is None else changed, bars, cells=changed is not None)

    def _piece(self, first: int, bars: Sequence[Bar], *, cells: bool = True) -> dict[str, Any]:
        strips = [[self._strip(part, first) for part in pair] for pair in self._cells] if cells else []
        return {
            "names": self.names,
            "cell": self.cell_seconds,
            "end": self.end_seconds,
            "from": self.bars_from,
            "first": first,
            "strips": strips,
            "bars": [(a, b, round(start, 9), round(end, 9), *more) for a, b, start, end, *more in bars],
        }

    def _strip(self, cells: array[float], first: int) -> str:
        most = len(LEVELS) - 1
        return "".join(
            LEVELS[min(most, max(1, round(seconds / self.cell_seconds * most)))] if seconds > 0 else "0"
            for seconds in cells[first:]
        )
