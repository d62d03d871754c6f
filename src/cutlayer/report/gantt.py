"""One round as a Gantt chart: a row per machine, time to the right, in one self-contained SVG.

A row has two lanes, work above and transfers below, because a machine may do both at once; where both are
empty the grey of the row shows that it waits. Hovering a bar says what it is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.etree.ElementTree import Element

from cutlayer.errors import ConfigError
from cutlayer.report import svg
from cutlayer.report.activities import COMPUTE, NETWORK, SERVER, WAIT
from cutlayer.report.human import human_bytes, human_seconds
from cutlayer.report.intervals import length, union

if TYPE_CHECKING:  # torch takes seconds, and a page or a table of a run needs none of it
    from cutlayer.types import Event


COLOURS = {
    "forward": "#3b76b5",
    "backward": "#e58a2e",
    "step": "#8a5aa8",
    "aggregate": "#c0453f",
    "upload": "#3f9c63",
    "download": "#93c47d",
}
OTHER, WAITING, RULE = "#7f7f7f", "#edf0f4", "#d5dae1"

TOP, BOTTOM, RIGHT = 76.0, 52.0, 92.0  # pixels: margins; the left one depends on the names
ROW, WORK, TRANSFER = 40.0, 17.0, 7.0  # pixels: a row and its two lanes
LETTER = 7.0  # pixels kept free for a letter, since fonts cannot be measured here
MAX_NAME = 26  # letters of a machine's name that are shown


def gantt_svg(
    events: Sequence[Event],
    *,
    round: int,
    first_steps: int | None = None,
    order: Sequence[str] = (),
    width: int = 1200,
) -> str:
    """Draws one round.

    Args:
      events: of any rounds, in any order.
      round: which round to draw.
      first_steps: stop when every device has done so many local steps, which is what one can see of a long
        round; None draws it whole.
      order: device names from top to bottom, as in the fleet; the server is always first, and names that are
        not given come last, as people count.
      width: of the picture in pixels.

    Returns: a whole SVG document.

    Raises:
      ConfigError: there is nothing to draw.
    """
    end, shown = _choose(events, round, first_steps)
    if not shown:
        raise ConfigError(
            f"gantt: expected events of round {round}, got none among {len(events)}. Choose a round that was run."
        )
    names = sorted({event.who for event in shown}, key=row_order(order))
    left = 28 + LETTER * min(max(map(len, names)), MAX_NAME)
    scale = _Scale(shown[0].start_seconds, end, left, width - RIGHT)
    height = TOP + ROW * len(names) + BOTTOM
    picture = svg.canvas(width, height)
    steps = "" if first_steps is None else f", until every device has done {first_steps} steps"
    svg.text(picture, 24, 34, f"Round {round + 1}", size=19, bold=True)
    svg.text(picture, 24, 56, human_seconds(scale.seconds) + steps, size=13, fill=svg.FAINT)
    _legend(picture, {event.what for event in shown}, width - 24)
    for index, name in enumerate(names):
        _row(picture, name, [event for event in shown if event.who == name], TOP + ROW * index, scale)
    _axis(picture, scale, height - BOTTOM)
    return svg.to_text(picture)


@dataclass(frozen=True, slots=True)
class _Scale:
    """Seconds to pixels."""

    start: float
    end: float
    left: float
    right: float

    @property
    def seconds(self) -> float:
        return self.end - self.start

    @property
    def pixels_per_second(self) -> float:
        return (self.right - self.left) / (self.seconds or 1.0)

    def x(self, seconds: float) -> float:
        return self.left + (min(seconds, self.end) - self.start) * self.pixels_per_second


def _choose(events: Sequence[Event], round: int, first_steps: int | None) -> tuple[float, list[Event]]:
    """The end of the picture, and what begins before it in order of time; waits are the background."""
    chosen = [event for event in events if event.round == round and event.what != WAIT]
    if all(event.step is None for event in chosen):
        first_steps = None  # where work outlives its round, one may have no step of its own: only judging
    steps = [event for event in chosen if first_steps is None or (event.step is not None and event.step < first_steps)]
    end = max((event.end_seconds for event in steps), default=-math.inf)
    chosen = [event for event in chosen if event.start_seconds < end or event.end_seconds <= end]
    return end, sorted(chosen, key=lambda e: (e.start_seconds, e.end_seconds, e.who, e.what))


def row_order(order: Sequence[str]) -> Callable[[str], tuple[bool, int, list[tuple[int, str]]]]:
    """The server, the devices in the given order, then the others as people count: pi-2 before pi-10."""
    places = {name: place for place, name in enumerate(order)}

    def key(name: str) -> tuple[bool, int, list[tuple[int, str]]]:
        pieces = re.findall(r"[0-9]+|[^0-9]+", name)
        natural = [(int(piece), "") if piece.isascii() and piece.isdecimal() else (-1, piece) for piece in pieces]
        return name != SERVER, places.get(name, len(places)), natural

    return key


def _legend(picture: Element, present: set[str], right: float) -> None:
    kinds = [*COLOURS, *sorted(present - set(COLOURS))]
    items = [(kind, COLOURS.get(kind, OTHER)) for kind in kinds if kind in present] + [("waiting", WAITING)]
    x = right - sum(30 + LETTER * len(kind) for kind, _ in items) + 12
    for kind, colour in items:
        svg.rect(picture, x, 24, 12, 12, colour, radius=2.5, stroke=RULE if kind == "waiting" else "none")
        svg.text(picture, x + 17, 34.5, kind, size=12.5)
        x += 30 + LETTER * len(kind)


def _axis(picture: Element, scale: _Scale, bottom: float) -> None:
    unit, unit_seconds, step = ticks(scale.seconds)
    title = f"time since the round began ({unit})"
    svg.text(picture, (scale.left + scale.right) / 2, bottom + 40, title, anchor="middle", size=12, fill=svg.FAINT)
    for index in range(math.floor(scale.seconds / unit_seconds / step + 1e-9) + 1):
        x = scale.x(scale.start + index * step * unit_seconds)
        svg.vertical(picture, x, bottom, bottom + 5, svg.FAINT)
        svg.text(picture, x, bottom + 20, f"{index * step:g}", anchor="middle", size=12, fill=svg.FAINT)


def ticks(span_seconds: float) -> tuple[str, float, float]:
    """The marks of an axis from 0 to `span_seconds`.

    Returns: the unit that suits, its length in seconds, and the marks' distance in that unit, which is 1, 2
    or 5 times a power of ten and leaves 5 to 11 marks.

    Example:
      >>> ticks(0.35), ticks(90.0)
      (('ms', 0.001, 50.0), ('s', 1.0, 10.0))
    """
    units = (
        ("µs", 1e-6, 2e-3),
        ("ms", 1e-3, 2.0),
        ("s", 1.0, 300.0),
        ("min", 60.0, 18e3),
        ("h", 3600.0, math.inf),
    )
    unit, seconds = next((name, size) for name, size, limit in units if span_seconds < limit)
    rough = (span_seconds or 1e-6) / seconds / 10
    power = 10.0 ** math.floor(math.log10(rough))
    return unit, seconds, next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)


def _row(picture: Element, name: str, events: list[Event], y: float, scale: _Scale) -> None:
    shown = name if len(name) <= MAX_NAME else name[: MAX_NAME - 1] + "…"
    svg.text(picture, scale.left - 12, y + 24, shown, anchor="end", size=12.5, bold=name == SERVER)
    svg.rect(picture, scale.left, y + 3, scale.right - scale.left, ROW - 6, WAITING, radius=3)
    for mark in _marks(events, scale):
        _draw(picture, mark, y, scale)
    work = length(union((e.start_seconds, min(e.end_seconds, scale.end)) for e in events if e.what in COMPUTE))
    svg.text(
        picture,
        scale.right + 10,
        y + 24,
        f"{work / (scale.seconds or 1.0):.0%} busy",
        size=12,
        fill=svg.FAINT,
    )


def _marks(events: Iterable[Event], scale: _Scale) -> list[list[Event]]:
    """The events of each bar: one event, or neighbours of a kind of which each is too narrow to be seen."""
    half_pixel = 0.5 / scale.pixels_per_second
    marks: list[list[Event]] = []
    latest: dict[str, list[Event]] = {}
    for event in events:
        mark = latest.get(event.what)
        if mark is not None and _inseparable(mark[-1], event, half_pixel):
            mark.append(event)
        else:
            latest[event.what] = [event]
            marks.append(latest[event.what])
    return marks


def _inseparable(a: Event, b: Event, limit_seconds: float) -> bool:
    widths = (
        a.end_seconds - a.start_seconds,
        b.end_seconds - b.start_seconds,
        b.start_seconds - a.end_seconds,
    )
    return max(widths) < limit_seconds


def _draw(picture: Element, mark: list[Event], y: float, scale: _Scale) -> None:
    first = mark[0]
    x = scale.x(first.start_seconds)
    width = max(scale.x(max(event.end_seconds for event in mark)) - x, 0.5)
    top, height = (y + 7 + WORK + 2, TRANSFER) if first.what in NETWORK else (y + 7, WORK)
    bar = svg.rect(picture, x, top, width, height, COLOURS.get(first.what, OTHER))
    svg.hover(bar, _label(mark))
    if first.what in COMPUTE and first.peer and len(mark) == 1 and width > LETTER * len(first.peer) + 6:
        svg.text(picture, x + width / 2, top + 12, first.peer, anchor="middle", size=10.5, fill="#ffffff")


def _label(mark: list[Event]) -> str:
    first, num_bytes = mark[0], sum(event.num_bytes for event in mark)
    seconds = human_seconds(max(event.end_seconds for event in mark) - first.start_seconds)
    size = [human_bytes(num_bytes)] if num_bytes else []
    if len(mark) > 1:
        return ", ".join([f"{first.who}: {len(mark)} × {first.what}", seconds, *size])
    peer = [] if first.peer is None else [f"with {first.peer}"]
    step = [] if first.step is None else [f"step {first.step}"]
    return ", ".join([f"{first.who}: {first.what}", *peer, *step, seconds, *size])
