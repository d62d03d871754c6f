"""The time of a whole run in bounded room: for each machine a strip of cells, and the newest events as bars.

A cell says which part of its time a machine computed, and which it sent and received. Cells are as long as a run of
`MOST_CELLS` of them needs, so they grow with the run. A bar is one event; where there are too many, the oldest go, and
what they said is in the strips.

Shapes: M machines, L lanes (work, transfer), C cells.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cutlayer.report.activities import COMPUTE, NETWORK, SERVER, WAIT
from cutlayer.report.gantt import COLOURS

if TYPE_CHECKING:  # torch takes seconds, and a page or a table of a run needs none of it
    from cutlayer.types import Event


KINDS = (*COLOURS, "other")
"""Of bars, by number."""
NUMBERS = {kind: number for number, kind in enumerate(KINDS)}
LANES = {**dict.fromkeys(COMPUTE, 0), **dict.fromkeys(NETWORK, 1)}
"""Of a machine's two strips, by what it does."""
MOST_CELLS = 512
MOST_BARS, MOST_NEW_BARS = 24_000, 3_000
"""That are kept, and that a page is sent at once: a fleet that does more in a moment is seen in the strips."""
MOST_SECONDS = 1e12
"""Later is a line that was damaged."""
FIRST_CELL_SECONDS = 2.0**-20
LEVELS = "0123456789abcdefghijklmnopqrstuvwxyz"
"""How full a cell is: a letter from none to all."""
LETTERS, FULL = np.frombuffer(LEVELS.encode("ascii"), np.uint8), len(LEVELS) - 1
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
        self._cells_MLC = np.zeros((16, 2, MOST_CELLS))  # seconds; more machines than there are
        self._bars: deque[Bar] = deque()
        self._news: deque[Bar] = deque()
        self._unsent = 0.0  # the latest end of a bar that was left out of the news
        self._changed: int | None = 0  # the first cell that has changed since somebody asked
        for name in (SERVER, *devices):
            self.number(name)

    def number(self, name: str) -> int:
        """Of a machine."""
        if name not in self._numbers:
            self._numbers[name] = len(self.names)
            self.names.append(name)
            if len(self.names) > len(self._cells_MLC):
                self._cells_MLC = np.concatenate([self._cells_MLC, np.zeros_like(self._cells_MLC)])
        return self._numbers[name]

    def add(self, event: Event) -> None:
        """Takes an event; one at a time that cannot be is left out."""
        if event.what == WAIT or not 0 <= event.start_seconds <= event.end_seconds < MOST_SECONDS:
            return
        self.end_seconds = max(self.end_seconds, event.end_seconds)
        while self.end_seconds > MOST_CELLS * self.cell_seconds:
            self._double()
        machine = self.number(event.who)
        lane, kind = LANES.get(event.what), NUMBERS.get(event.what, len(KINDS) - 1)
        if lane is not None:
            self._fill(machine, lane, event.start_seconds, event.end_seconds)
        peer = -1 if event.peer is None else self.number(event.peer)
        step, start, end = -1 if event.step is None else event.step, event.start_seconds, event.end_seconds
        bar = (machine, kind, start, end, event.round, step, peer, event.num_bytes)
        self._bars.append(bar)
        self._news.append(bar)
        if len(self._bars) > MOST_BARS:
            self.bars_from = max(self.bars_from, self._bars.popleft()[3])
        if len(self._news) > MOST_NEW_BARS:
            self._unsent = max(self._unsent, self._news.popleft()[3])

    def _fill(self, machine: int, lane: int, start: float, end: float) -> None:
        """Adds a stretch of time to the cells that it is in."""
        size = self.cell_seconds
        first, last = int(start / size), min(int(end / size), MOST_CELLS - 1)
        if self._changed is None or first < self._changed:
            self._changed = first
        if first >= last:
            self._cells_MLC[machine, lane, last] += end - start
            return
        cells_C = self._cells_MLC[machine, lane]
        cells_C[first] += (first + 1) * size - start
        cells_C[first + 1 : last] += size
        cells_C[last] += end - last * size

    def _double(self) -> None:
        self.cell_seconds *= 2
        self._changed = 0
        cells_MLC, half = self._cells_MLC, MOST_CELLS // 2
        cells_MLC[:, :, :half] = cells_MLC[:, :, ::2] + cells_MLC[:, :, 1::2]
        cells_MLC[:, :, half:] = 0

    def whole(self) -> dict[str, Any]:
        """All of it, for a page that has nothing yet."""
        return self._piece(0, self._bars, self.bars_from)

    def news(self) -> dict[str, Any] | None:
        """What has changed since this was last asked; None where nothing has."""
        bars, changed, since = self._news, self._changed, max(self.bars_from, self._unsent)
        if changed is None and not bars:
            return None
        self._news, self._changed, self._unsent = deque(), None, 0.0
        return self._piece(0 if changed is None else changed, bars, since, cells=changed is not None)

    def _piece(self, first: int, bars: Iterable[Bar], since: float, *, cells: bool = True) -> dict[str, Any]:
        return {
            "names": self.names,
            "cell": self.cell_seconds,
            "end": self.end_seconds,
            "from": since,
            "first": first,
            "strips": self._strips(first) if cells else [],
            "bars": [(a, b, round(start, 9), round(end, 9), *more) for a, b, start, end, *more in bars],
        }

    def _strips(self, first: int) -> list[list[str]]:
        """Two for each machine, from a cell on; what is missing at the end is empty."""
        used = min(int(self.end_seconds / self.cell_seconds) + 1, MOST_CELLS)
        filled_MLC = self._cells_MLC[: len(self.names), :, first:used] / self.cell_seconds
        levels_MLC = np.clip(np.rint(filled_MLC * FULL), 1, FULL).astype(np.uint8)
        letters_MLC = np.where(filled_MLC > 0, LETTERS[levels_MLC], LETTERS[0])
        return [[lane_C.tobytes().decode("ascii").rstrip("0") for lane_C in pair_LC] for pair_LC in letters_MLC]
