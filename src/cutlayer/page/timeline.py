"""The time of a whole run in bounded room: for each machine a strip of cells, and the newest events as bars.

A cell says which part of its time a machine computed, and which it sent and received. Cells are as long as a run of
`MOST_CELLS` of them needs, so they grow with the run. A bar is one event; where there are too many, the oldest go, and
what they said is in the strips.

Shapes: M machines, L lanes (work, transfer), C cells.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from cutlayer.report.activities import COMPUTE, NETWORK, SERVER, WAIT
from cutlayer.report.gantt import COLOURS

if TYPE_CHECKING:  # torch takes seconds, and a page or a table of a run needs none of it
    from cutlayer.types import Event


KINDS = (*COLOURS, "other")
"""Kinds of bars, by number."""
NUMBERS = {kind: number for number, kind in enumerate(KINDS)}
LANES = {**dict.fromkeys(COMPUTE, 0), **dict.fromkeys(NETWORK, 1)}
"""Strips of a machine by what it does: 0 for work, 1 for transfers."""
MOST_CELLS = 512
MOST_BARS, MOST_NEW_BARS = 24_000, 1_500
"""Bars that are kept, and that a page is sent at once: a fleet that does more in a moment is seen in the strips."""
MOST_SECONDS = 1e12
"""Seconds of a run, at most: an event that ends later is of a line that was damaged."""
FIRST_CELL_SECONDS = 2.0**-20
LEVELS = "0123456789abcdefghijklmnopqrstuvwxyz"
"""Letters that say how full a cell is, from none to all."""
LETTERS, FULL = np.frombuffer(LEVELS.encode("ascii"), np.uint8), len(LEVELS) - 1
Bar = tuple[int, int, float, float, int, int, int, int]
"""(machine, kind, start and end in seconds, round, step, peer, bytes); -1 where there is no step or peer."""


class Timeline:
    """The events of machines, as far as a page can show them.

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
        self._bars: deque[Event] = deque()
        self._news: deque[Event] = deque()
        self._unsent = 0.0  # the latest end of a bar that was left out of the news
        self._changed: int | None = 0  # the first cell that has changed since somebody asked
        for name in (SERVER, *devices):
            self.number(name)

    def number(self, name: str) -> int:
        """The number of a machine; a new name gets the next one."""
        if name not in self._numbers:
            self._numbers[name] = len(self.names)
            self.names.append(name)
            if len(self.names) > len(self._cells_MLC):
                self._cells_MLC = np.concatenate([self._cells_MLC, np.zeros_like(self._cells_MLC)])
        return self._numbers[name]

    def add(self, events: Iterable[Event]) -> None:
        """Takes events; one at a time that cannot be is left out.

        Many at once cost little more than a few: a fleet of a thousand devices tells thousands in a moment.
        """
        taken = [e for e in events if e.what != WAIT and 0 <= e.start_seconds <= e.end_seconds < MOST_SECONDS]
        if not taken:
            return
        self.end_seconds = max(self.end_seconds, max(event.end_seconds for event in taken))
        while self.end_seconds > MOST_CELLS * self.cell_seconds:
            self._double()
        for name in dict.fromkeys(chain.from_iterable((event.who, event.peer or event.who) for event in taken)):
            self.number(name)
        self._fill([event for event in taken if event.what in LANES])
        self.bars_from = _drop_oldest(self._bars, taken, MOST_BARS, self.bars_from)
        self._unsent = _drop_oldest(self._news, taken, MOST_NEW_BARS, self._unsent)

    def _fill(self, events: Sequence[Event]) -> None:
        """Adds their time to the cells that they are in."""
        if not events:
            return
        size, count, numbers = self.cell_seconds, len(events), self._numbers
        starts_E = np.fromiter((event.start_seconds for event in events), np.float64, count)
        ends_E = np.fromiter((event.end_seconds for event in events), np.float64, count)
        strips_E = np.fromiter((2 * numbers[event.who] + LANES[event.what] for event in events), np.int64, count)
        firsts_E = (starts_E / size).astype(np.int64)
        lasts_E = np.minimum((ends_E / size).astype(np.int64), MOST_CELLS - 1)
        firsts_E = np.minimum(firsts_E, lasts_E)
        begin, width = int(firsts_E.min()), int(lasts_E.max() - firsts_E.min()) + 1
        if self._changed is None or begin < self._changed:
            self._changed = begin
        shape = (len(self.names), 2, width)
        heads_E = strips_E * width + firsts_E - begin
        tails_E = heads_E + lasts_E - firsts_E
        # Part of the first cell, less what of the last is behind the end; whole cells are added from the second on.
        count = len(self.names) * 2 * width
        parts = np.bincount(heads_E, (firsts_E + 1) * size - starts_E, minlength=count)
        parts = parts + np.bincount(tails_E, ends_E - (lasts_E + 1) * size, minlength=count)
        gained_MLC = parts.astype(np.float64, copy=False).reshape(shape)
        if width > 1:
            begun = np.bincount(heads_E, minlength=count) - np.bincount(tails_E, minlength=count)
            gained_MLC[:, :, 1:] += np.cumsum(begun.reshape(shape), axis=2)[:, :, :-1] * size
        cells_MLC = self._cells_MLC[: len(self.names), :, begin : begin + width]
        np.maximum(cells_MLC + gained_MLC, 0.0, out=cells_MLC)  # a difference of large times may be just below none

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
        """A piece with what has changed since this was last asked; None where nothing has."""
        bars, changed, since = self._news, self._changed, max(self.bars_from, self._unsent)
        if changed is None and not bars:
            return None
        self._news, self._changed, self._unsent = deque(), None, 0.0
        return self._piece(0 if changed is None else changed, bars, since, cells=changed is not None)

    def _bar(self, event: Event) -> Bar:
        machine, kind = self._numbers[event.who], NUMBERS.get(event.what, len(KINDS) - 1)
        peer, step = -1 if event.peer is None else self._numbers[event.peer], -1 if event.step is None else event.step
        start, end = round(event.start_seconds, 9), round(event.end_seconds, 9)
        return machine, kind, start, end, event.round, step, peer, event.num_bytes

    def _piece(self, first: int, bars: Iterable[Event], since: float, *, cells: bool = True) -> dict[str, Any]:
        return {
            "names": self.names,
            "cell": self.cell_seconds,
            "end": self.end_seconds,
            "from": since,
            "first": first,
            "strips": self._strips(first) if cells else [],
            "bars": [self._bar(event) for event in bars],
        }

    def _strips(self, first: int) -> list[list[str]]:
        """Two strips for each machine, from a cell on; what is missing at the end is empty."""
        used = min(int(self.end_seconds / self.cell_seconds) + 1, MOST_CELLS)
        cells_MLC = self._cells_MLC[: len(self.names), :, first:used]
        levels_MLC = np.minimum(np.rint(cells_MLC * (FULL / self.cell_seconds)), FULL).astype(np.uint8)
        np.maximum(levels_MLC, cells_MLC > 0, out=levels_MLC)  # what was something is not nothing
        text, width = LETTERS[levels_MLC].tobytes().decode("ascii"), used - first
        lanes = [text[place : place + width].rstrip("0") for place in range(0, len(text), width)] if width > 0 else []
        return [list(pair) for pair in zip(lanes[::2], lanes[1::2], strict=True)] or [["", ""] for _ in self.names]


def _drop_oldest(kept: deque[Event], events: Sequence[Event], most: int, dropped: float) -> float:
    """Puts events behind those that are kept, and drops the oldest of more than `most`: the latest end of a dropped."""
    kept.extend(events)
    while len(kept) > most:
        dropped = max(dropped, kept.popleft().end_seconds)
    return dropped
