"""A row for each device: what the rounds so far say of it, and its history in bounded room."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cutlayer.page.thinned import Thinned
from cutlayer.report.activities import SERVER

if TYPE_CHECKING:  # torch takes seconds, and a page or a table of a run needs none of it
    from cutlayer.types import Event


MOST_POINTS = 48
"""Of each line of a device's history."""
HISTORY = ("loss", "samples_per_second", "norm")
"""What a device's history is of."""


@dataclass(slots=True)
class Passed:
    """Bytes that passed one way in a round, and the seconds that they took."""

    num_bytes: int = 0
    seconds: float = 0.0

    @property
    def rate(self) -> float | None:
        """Bit/s; None where nothing passed."""
        return 8 * self.num_bytes / self.seconds if self.seconds > 0 else None


def _nothing() -> dict[str, Passed]:
    return {"upload": Passed(), "download": Passed()}


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

    def seen(self, event: Event) -> None:
        """Takes an event of its own."""
        passed = self._passed.get(event.what)
        if passed is not None:
            passed.num_bytes += event.num_bytes
            passed.seconds += event.end_seconds - event.start_seconds

    def finished(self, round: int, measured: Mapping[str, Any], seconds: float) -> None:
        """Takes what it measured in a round (`devices` of `round_row.py`), which ended at this time."""
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

    def contributed(self, row: Mapping[str, Any]) -> None:
        """Takes a line of contributions.jsonl."""
        self.norm, self.times = row["norm"], row["times"]
        self.outliers += row["outlier"]
        self._remember(row["round"], "norm", self.norm)

    def _remember(self, round: int, key: str, value: float | None) -> None:
        if value is not None and math.isfinite(value):
            self._history[key].add(round, [round + 1], value)

    def history(self) -> dict[str, list[list[float]]]:
        """By what it is of, the points of a line: [round, mean], with the last round of each span."""
        return {key: [[span.xs[0], _short(span.mean)] for span in line] for key, line in self._history.items()}


class DevicesSoFar:
    """All devices, by name, in the order in which they came up."""

    def __init__(self) -> None:
        self.by_name: dict[str, DeviceSoFar] = {}
        self._last: dict[int, tuple[float, str]] = {}  # by round under way: the latest end of a device's event, whose

    def of(self, name: str) -> DeviceSoFar:
        """One of them."""
        found = self.by_name.get(name)
        if found is None:
            found = self.by_name[name] = DeviceSoFar(name)
        return found

    def seen(self, event: Event) -> None:
        """Takes an event, of the server too."""
        if event.who != SERVER:
            self.of(event.who).seen(event)
            last = self._last.get(event.round)
            if last is None or event.end_seconds >= last[0]:
                self._last[event.round] = event.end_seconds, event.who

    def finished(self, row: Mapping[str, Any]) -> None:
        """Takes a line of metrics.jsonl."""
        for name, measured in row["devices"].items():
            self.of(name).finished(row["round"], measured, row["virtual_seconds"])
        for round in [round for round in self._last if round <= row["round"]]:
            _, name = self._last.pop(round)
            if len(row["devices"]) > 1:
                self.of(name).held_up += 1
        for name, metrics in (row.get("held_out") or {}).get("devices", {}).items():
            self.of(name).judged = metrics


def _short(value: float) -> float:
    return float(f"{value:.5g}")
