"""A row for each device: what the rounds so far say of it, and its history in bounded room."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cutlayer.page.thinned import Thinned
from cutlayer.report.activities import SERVER
from cutlayer.report.round_row import clock_seconds

if TYPE_CHECKING:  # torch takes seconds, and a page or a table of a run needs none of it
    from cutlayer.types import Event


MOST_POINTS = 48
"""Points, at most, of each line of a device's history."""
HISTORY = ("loss", "samples_per_second", "norm")
"""The figures that a device's history is of."""


@dataclass(slots=True)
class Passed:
    """Bytes that passed one way in a round, and the seconds that they took."""

    num_bytes: int = 0
    seconds: float = 0.0

    @property
    def rate(self) -> float | None:
        """Bit/s; None where nothing passed."""
        return 8 * self.num_bytes / self.seconds if self.seconds > 0 else None


WAYS = ("upload", "download")


def _nothing() -> dict[str, Passed]:
    return {way: Passed() for way in WAYS}


@dataclass(slots=True)
class DeviceSoFar:
    """One device over the rounds so far.

    Attributes:
      name: its name.
      cut: blocks on it in its last round; None before its first.
      rounds: in which it took part.
      steps, samples: over all rounds.
      last_steps: of its last round.
      loss: its mean training loss in its last round; None where it took no step.
      samples_per_second: of its last round, waiting included.
      bytes_up, bytes_down: device to server, server to device, over all rounds.
      up_rate, down_rate: bit/s of its link in its last round; None where nothing passed.
      memory_bytes: of its part, as the cost model predicts it.
      norm, times: of what it changed of the adapter when it last did, and that in medians of its round.
      outliers: rounds in which that was far from the others'.
      late: rounds that it had not finished when they were closed.
      held_up: rounds in which it was the last to do something.
      seen_seconds: the run's clock at the end of its last round; None before its first.
      judged: what it last said of rows that it holds out.
    """

    name: str
    cut: int | None = None
    rounds: int = 0
    steps: int = 0
    samples: int = 0
    last_steps: int = 0
    loss: float | None = None
    samples_per_second: float | None = None
    bytes_up: int = 0
    bytes_down: int = 0
    up_rate: float | None = None
    down_rate: float | None = None
    memory_bytes: int = 0
    norm: float | None = None
    times: float | None = None
    outliers: int = 0
    late: int = 0
    held_up: int = 0
    seen_seconds: float | None = None
    judged: Mapping[str, float] = field(default_factory=dict)
    _history: dict[str, Thinned] = field(default_factory=lambda: {key: Thinned(MOST_POINTS) for key in HISTORY})
    _passed: dict[str, Passed] = field(default_factory=_nothing)
    _shown: list[float | int | None] | None = None

    def passed(self, event: Event) -> None:
        """Takes an event of its own, in which something passed its link."""
        way = self._passed[event.what]
        way.num_bytes += event.num_bytes
        way.seconds += event.end_seconds - event.start_seconds

    def finished(self, round: int, measured: Mapping[str, Any], seconds: float) -> None:
        """Takes what it measured in a round (`devices` of `round_row.py`), which ended at this time."""
        self._shown = None
        self.cut, self.memory_bytes = measured["cut"], measured["memory_bytes"]
        self.rounds, self.seen_seconds = self.rounds + 1, seconds
        self.steps, self.last_steps = self.steps + measured["steps"], measured["steps"]
        self.samples, self.late = self.samples + measured["samples"], self.late + measured["late"]
        self.bytes_up, self.bytes_down = self.bytes_up + measured["bytes_up"], self.bytes_down + measured["bytes_down"]
        self.up_rate, self.down_rate = self._passed["upload"].rate, self._passed["download"].rate
        self._passed = _nothing()
        took = measured["busy_seconds"] + measured["network_seconds"] + measured["waiting_seconds"]
        self.samples_per_second = measured["samples"] / took if took > 0 else None
        loss = measured["loss"]
        self.loss = loss if loss is not None and math.isfinite(loss) else None
        self._remember(round, "loss", self.loss)
        self._remember(round, "samples_per_second", self.samples_per_second)

    def held_up_once_more(self) -> None:
        """Counts a round in which it was the last to do something."""
        self._shown = None
        self.held_up += 1

    def contributed(self, row: Mapping[str, Any]) -> None:
        """Takes a line of contributions.jsonl."""
        self._shown = None
        self.norm, self.times = row["norm"], row["times"]
        self.outliers += row["outlier"]
        self._remember(row["round"], "norm", self.norm)

    def _remember(self, round: int, key: str, value: float | None) -> None:
        if value is not None and math.isfinite(value):
            self._history[key].add(round, [round + 1], value)

    @property
    def shown(self) -> list[float | int | None]:
        """The cells of its row that change with its rounds alone: rates of its link, norm, late, held up."""
        if self._shown is None:
            rates = [short(value) for value in (self.up_rate, self.down_rate, self.norm)]
            self._shown = [*rates, self.late, self.held_up]
        return self._shown

    def history(self) -> dict[str, list[list[float]]]:
        """The points of a line for each figure: [round, mean], with the last round of each span."""
        return {key: [[span.xs[0], float(f"{span.mean:.5g}")] for span in line] for key, line in self._history.items()}


class DevicesSoFar:
    """All devices, by name, in the order in which they came up."""

    def __init__(self) -> None:
        self.by_name: dict[str, DeviceSoFar] = {}
        self._last: dict[int, tuple[float, str]] = {}  # by round under way: the latest end of a device's event, whose

    def of(self, name: str) -> DeviceSoFar:
        """Returns the device of this name, a new one where there is none yet."""
        found = self.by_name.get(name)
        if found is None:
            found = self.by_name[name] = DeviceSoFar(name)
        return found

    def seen(self, events: Iterable[Event]) -> None:
        """Takes events, of the server too."""
        known, latest = self.by_name, self._last
        for event in events:
            who = event.who
            if who == SERVER:
                continue
            device = known.get(who) or self.of(who)
            if event.what in WAYS:
                device.passed(event)
            last = latest.get(event.round)
            if last is None or event.end_seconds >= last[0]:
                latest[event.round] = event.end_seconds, who

    def finished(self, row: Mapping[str, Any]) -> None:
        """Takes a line of metrics.jsonl."""
        for name, measured in row["devices"].items():
            self.of(name).finished(row["round"], measured, clock_seconds(row))
        for round in [round for round in self._last if round <= row["round"]]:
            _, name = self._last.pop(round)
            if len(row["devices"]) > 1:
                self.of(name).held_up_once_more()
        for name, metrics in (row.get("held_out") or {}).get("devices", {}).items():
            self.of(name).judged = metrics


def short(value: float | None) -> float | None:
    """A number as exactly as a row shows it; None for what is not finite, which JSON has not."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.4g}")
