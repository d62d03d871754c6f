"""The events of a run in the Trace Event Format, which Perfetto (ui.perfetto.dev) and chrome://tracing open.

Each machine is a process of the trace with a lane for work, one for uploads and one for downloads, and more of a kind
where two things of it overlap; the rounds are a process of their own. Where the server's work says for which device it
is, an arrow leads from that device's upload to it and on to the download that answers. Times are microseconds since the
run began, of the clock that the run had: a virtual one in simulation.

The format is Google's "Trace Event Format": a list of objects with name, ph, ts, pid and tid; ph is X for a bar (with
dur), M for the name of a process or lane, s, t and f for the beginning, middle and end of an arrow (with id).
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cutlayer.report.activities import COMPUTE
from cutlayer.report.gantt import row_order

if TYPE_CHECKING:  # torch takes seconds, and a page or a table of a run needs none of it
    from cutlayer.types import Event


ROUNDS = 1
"""The process of the rounds; machines follow."""
SORTED_AT_ONCE = 50_000
"""Events of a round are put in the order of time so many at once: more would have to be held in memory."""
LANES = {"upload": "up", "download": "down"}
"""Lanes of the transfers, by `Event.what`."""

Entry = dict[str, Any]


def write_trace(file: Path, events: Iterable[Event], about: Mapping[str, str], order: Sequence[str] = ()) -> int:
    """Writes a trace, entry by entry; a name that ends in .gz is compressed, and opened as it is.

    Args:
      file: To write; it is there whole or not at all.
      events: Of the run, as they were recorded.
      about: Facts that the trace carries beside its entries.
      order: Device names from top to bottom; others follow as people count.

    Returns:
      How many events there were.
    """
    temporary = file.with_name(f".{file.name}.tmp")
    trace, count = Trace(order), 0
    try:
        with _opened(temporary, compressed=file.suffix == ".gz") as text:
            text.write(f'{{"displayTimeUnit": "ms", "otherData": {json.dumps(dict(about))}, "traceEvents": [\n')
            for batch in _batches(events):
                count += len(batch)
                text.writelines(f"{_short(entry)},\n" for event in batch for entry in trace.entries(event))
            text.write(",\n".join(_short(entry) for entry in trace.ending()))
            text.write("\n]}\n")
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
    return count


def _opened(file: Path, *, compressed: bool) -> Any:
    return gzip.open(file, "wt", encoding="utf-8") if compressed else open(file, "w", encoding="utf-8")


def _short(entry: Entry) -> str:
    return json.dumps(entry, separators=(",", ":"), ensure_ascii=False)


def _batches(events: Iterable[Event]) -> Iterator[list[Event]]:
    """The events of a round at a time in the order in which they began, or of a piece of a long one."""
    batch: list[Event] = []
    for event in events:
        if batch and (event.round > batch[-1].round or len(batch) == SORTED_AT_ONCE):
            yield sorted(batch, key=_began)
            batch = []
        batch.append(event)
    if batch:
        yield sorted(batch, key=_began)


def _began(event: Event) -> tuple[float, float]:
    return event.start_seconds, event.end_seconds


@dataclass(slots=True)
class _Lanes:
    """The lanes of one process: a bar goes to the first of its kind in which nothing is left that it overlaps."""

    pid: int
    numbers: dict[str, list[int]] = field(default_factory=dict)
    free_from: list[float] = field(default_factory=list)  # by lane, in microseconds
    names: list[str] = field(default_factory=list)

    def lane(self, kind: str, start: float, end: float) -> int:
        own = self.numbers.setdefault(kind, [])
        found = next((number for number in own if self.free_from[number] <= start), None)
        if found is None:
            found = len(self.names)
            self.names.append(kind if not own else f"{kind} {len(own) + 1}")
            self.free_from.append(end)
            own.append(found)
        self.free_from[found] = end
        return found


class Trace:
    """Turns events into entries of a trace.

    Args:
      order: Device names from top to bottom.
    """

    def __init__(self, order: Sequence[str] = ()) -> None:
        self._order = row_order(order)
        self._machines: dict[str, _Lanes] = {}
        self._rounds: dict[int, tuple[float, float]] = {}
        self._sent: dict[tuple[str, int, int], Entry] = {}  # uploads that no work of the server has answered
        self._answered: dict[tuple[str, int, int], int] = {}  # and arrows that have not come back to the device
        self._arrows = 0

    def entries(self, event: Event) -> Iterator[Entry]:
        """The entries of one event, and of the arrow that it begins, goes on with or ends."""
        lanes = self._machines.setdefault(event.who, _Lanes(ROUNDS + 1 + len(self._machines)))
        start, end = _microseconds(event.start_seconds), _microseconds(event.end_seconds)
        kind = "work" if event.what in COMPUTE else LANES.get(event.what, event.what)
        if event.round not in self._rounds:
            self._forget(event.round - 1)
        first, last = self._rounds.get(event.round, (start, end))
        self._rounds[event.round] = min(first, start), max(last, end)
        details = {
            "round": event.round + 1,
            "step": None if event.step is None else event.step + 1,
            "peer": event.peer,
            "bytes": event.num_bytes or None,
            "flops": event.flops or None,
        }
        bar = {
            "name": event.what,
            "cat": kind,
            "ph": "X",
            "ts": start,
            "dur": round(end - start, 3),
            "pid": lanes.pid,
            "tid": lanes.lane(kind, start, end),
            "args": {key: value for key, value in details.items() if value is not None},
        }
        yield bar
        yield from self._arrow(event, bar)

    def _forget(self, before: int) -> None:
        """Arrows of rounds that are long over will not go on."""
        self._sent = {key: bar for key, bar in self._sent.items() if key[1] >= before}
        self._answered = {key: arrow for key, arrow in self._answered.items() if key[1] >= before}

    def _arrow(self, event: Event, bar: Entry) -> Iterator[Entry]:
        if event.step is None:
            return
        if event.what == "upload":
            self._sent[event.who, event.round, event.step] = bar
        elif event.what in COMPUTE and event.peer is not None:
            key = (event.peer, event.round, event.step)
            upload = self._sent.pop(key, None)
            if upload is not None:
                self._arrows += 1
                self._answered[key] = self._arrows
                yield _end_of_arrow("s", upload, self._arrows)
                yield _end_of_arrow("t", bar, self._arrows)
        elif event.what == "download":
            arrow = self._answered.pop((event.who, event.round, event.step), None)
            if arrow is not None:
                yield {**_end_of_arrow("f", bar, arrow), "bp": "e"}

    def ending(self) -> Iterator[Entry]:
        """The rounds, and what the processes and lanes are called."""
        rounds = _Lanes(ROUNDS)
        for number, (start, end) in sorted(self._rounds.items()):
            yield {
                "name": f"round {number + 1}",
                "cat": "round",
                "ph": "X",
                "ts": start,
                "dur": round(end - start, 3),
                "pid": ROUNDS,
                "tid": rounds.lane("rounds", start, end),
            }
        names = sorted(self._machines, key=self._order)
        processes = {"rounds": rounds, **{name: self._machines[name] for name in names}}
        for place, (name, lanes) in enumerate(processes.items()):
            yield _named("process_name", lanes.pid, 0, {"name": name})
            yield _named("process_sort_index", lanes.pid, 0, {"sort_index": place})
            for number, lane in enumerate(lanes.names):
                yield _named("thread_name", lanes.pid, number, {"name": lane})


def _named(what: str, pid: int, tid: int, args: Mapping[str, Any]) -> Entry:
    return {"name": what, "ph": "M", "pid": pid, "tid": tid, "args": dict(args)}


def _end_of_arrow(phase: str, bar: Entry, number: int) -> Entry:
    """An end or the middle of an arrow: it belongs to the bar at whose beginning it is."""
    return {"name": "step", "cat": "step", "ph": phase, "id": number, **{key: bar[key] for key in ("ts", "pid", "tid")}}


def _microseconds(seconds: float) -> float:
    """Microseconds, rounded to the nanosecond, so that what met still meets."""
    return round(seconds * 1e6, 3)
