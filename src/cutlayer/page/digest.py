"""A run as a page shows it, in bounded room, from the lines of its folder or from what it tells while it goes.

A digest is fed in the order in which things happened: events, contributions and, at the end of each round, its row.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cutlayer.config import RunConfig
from cutlayer.methods.table import found
from cutlayer.page.devices import DeviceSoFar, DevicesSoFar, short
from cutlayer.page.figures import Figures
from cutlayer.page.timeline import Timeline
from cutlayer.report.fleet_view import DeviceNow
from cutlayer.report.human import human_bytes, human_seconds
from cutlayer.report.round_row import clock_seconds
from cutlayer.report.run_folder import RunFolder
from cutlayer.report.summary import versions

if TYPE_CHECKING:  # torch takes seconds, and a page or a table of a run needs none of it
    from cutlayer.types import Event


COLUMNS = (
    ("device", "text"),
    ("state", "text"),
    ("cut", "cut"),
    ("step", "step"),
    ("samples/s", "number"),
    ("up", "bytes"),
    ("down", "bytes"),
    ("link up", "rate"),
    ("link down", "rate"),
    ("contribution", "number"),
    ("late", "count"),
    ("was last", "count"),
    ("refused", "count"),
    ("memory", "bytes"),
    ("last seen", "ago"),
)
"""The columns of the table of devices, and how their values are written. `cut` and `step` are [this, of how many]."""
MOST_NAMES = 4
AT_ONCE = 4096
"""Events of a folder that are digested together, at most."""


def about(config: RunConfig, blocks: int | None) -> dict[str, Any]:
    """The content of about.json.

    Args:
      config: of the run.
      blocks: of the model; None where nobody has looked yet.
    """
    row = found(config.method.name, config.method.sha256)
    method = {"summary": row.summary, "paper": row.paper}
    return {"method": method, "versions": versions()} | ({} if blocks is None else {"blocks": blocks})


class _Ahead:
    """Lines of which the next one is known."""

    def __init__(self, lines: Iterator[dict[str, Any]]) -> None:
        self._lines, self.next = lines, next(lines, None)

    def take(self) -> dict[str, Any]:
        taken, self.next = self.next, next(self._lines, None)
        assert taken is not None, "somebody has looked"
        return taken


class Digest:
    """A run, as far as a page shows it.

    Args:
      config: of config.yaml.
      about: of about.json.
      folder: the run folder.
      simulated: whether its time is that of a modelled fleet.

    Attributes:
      rounds_done: so far.
      last_row: of the last round; None before the first.
      ended: metrics and refusals of summary.json; None while there is none.
    """

    def __init__(self, config: Mapping[str, Any], about: Mapping[str, Any], folder: Path, *, simulated: bool) -> None:
        self.config, self.about, self.folder, self.simulated = config, dict(about), folder, simulated
        self.rounds_done = 0
        self.last_row: Mapping[str, Any] | None = None
        self.ended: Mapping[str, Any] | None = None
        self.devices, self.figures, self.timeline = DevicesSoFar(), Figures(), Timeline()
        self._validation: Mapping[str, float] = {}
        self._late = 0
        self._round_ends = (0.0, 0.0)  # of the last two rounds

    def seen(self, events: Sequence[Event]) -> None:
        """Takes events."""
        self.timeline.add(events)
        self.devices.seen(events)

    def reading(self, folder: RunFolder, before: float = math.inf) -> Iterator[Event]:
        """Takes what a folder holds, round by round, and gives its events as they pass.

        Args:
          folder: of the run.
          before: the first round that is left out.

        Raises:
          CheckpointError: a line of metrics.jsonl is not a round's.
        """
        rows, contributions = _Ahead(folder.rows()), _Ahead(folder.contributions())
        passed: list[Event] = []
        for event in folder.read_events():
            if event.round >= before:
                break
            if len(passed) == AT_ONCE or (rows.next is not None and rows.next["round"] < event.round):
                self.seen(passed)
                passed = []
                self._finish(rows, contributions, event.round)
            passed.append(event)
            yield event
        self.seen(passed)
        self._finish(rows, contributions, before)

    def _finish(self, rows: _Ahead, contributions: _Ahead, before: float) -> None:
        while rows.next is not None and rows.next["round"] < before:
            row = rows.take()
            while contributions.next is not None and contributions.next["round"] <= row["round"]:
                self.contributed(contributions.take())
            self.finished(row)

    def contributed(self, row: Mapping[str, Any]) -> None:
        """Takes a line of contributions.jsonl."""
        self.devices.of(row["device"]).contributed(row)

    def finished(self, row: Mapping[str, Any]) -> None:
        """Takes a line of metrics.jsonl."""
        self.rounds_done, self.last_row = row["round"] + 1, row
        self._validation = row["validation"] or self._validation
        self._late += row["late"]
        self._round_ends = (self._round_ends[1], clock_seconds(row))
        self.figures.finished(row)
        self.devices.finished(row)

    # ------------------------------------------------------------------ what it shows

    @property
    def rounds(self) -> int:
        """Number of rounds that the run is to have."""
        return int(self.config["train"]["rounds"])

    def tiles(self) -> list[list[str]]:
        """The tiles that stand above all: [what, figure, remark] each."""
        shown = [["round", f"{self.rounds_done:,} of {self.rounds:,}", self._ended_early()]]
        row = self.last_row
        if row is None:
            return shown
        if row["loss"] is not None:
            shown.append(["training loss", f"{row['loss']:.4g}", "of the last round"])
        for name, value in self._validation.items():
            if name != "tokens":
                shown.append([f"validation {name}" if name == "loss" else name, f"{value:.4g}", "of the whole model"])
        up, down = (sum(getattr(d, key) for d in self._devices()) for key in ("bytes_up", "bytes_down"))
        shown.append(["sent by devices", human_bytes(up), f"and to them {human_bytes(down)}"])
        shown.append(["time of the run", human_seconds(clock_seconds(row)), self._pace()])
        needs = [device.memory_bytes for device in self._devices()]
        device = f"; up to {human_bytes(max(needs))} on a device" if needs else ""
        shown.append(["memory, predicted", human_bytes(row["server_memory_bytes"]), f"on the server{device}"])
        peak = self.ended.get("peak_memory_bytes") if self.ended else None
        if peak:
            shown.append(["memory, measured", human_bytes(peak), "peak of the server's process"])
        if self._late:
            shown.append(["late", f"{self._late:,}", "devices that a round did not wait for"])
        if refused := self.refusals():
            words = ", ".join(f"{name} {sum(reasons.values())}" for name, reasons in list(refused.items())[:MOST_NAMES])
            shown.append(["refused", f"{sum(sum(reasons.values()) for reasons in refused.values()):,}", words])
        return shown

    def _ended_early(self) -> str:
        return "ended early" if self.ended and self.ended.get("ended_early") else ""

    def _pace(self) -> str:
        samples = sum(device.samples for device in self._devices())
        seconds = self._round_ends[1]
        return f"{samples / seconds:,.4g} samples/s" if seconds else ""

    def refusals(self) -> Mapping[str, Mapping[str, int]]:
        """Number of refusals by device and reason, as the summary has them."""
        found: Mapping[str, Mapping[str, int]] = (self.ended or {}).get("refusals", {})
        return found

    def held_up(self) -> str:
        """A sentence on the device that was the last to finish most often; empty where there is none."""
        slowest = max(self._devices(), key=lambda device: device.held_up, default=None)
        if slowest is None or not slowest.held_up:
            return ""
        return f"Last to finish most often: {slowest.name}, in {slowest.held_up:,} of {self.rounds_done:,} rounds."

    def round_span(self) -> list[float]:
        """Seconds at which the last round began, and the last thing ended."""
        return [self._round_ends[0], max(self.timeline.end_seconds, self._round_ends[1])]

    def rows(self, now: Iterable[DeviceNow] = (), seconds: float | None = None) -> list[list[Any]]:
        """The table of devices, by `COLUMNS`.

        Args:
          now: how they are at this moment, where somebody knows.
          seconds: of the run's clock; None for the end of the last round.
        """
        at_this_moment = {device.name: device for device in now}
        for name in at_this_moment:
            self.devices.of(name)
        end, blocks = self._round_ends[1] if seconds is None else seconds, self.about.get("blocks")
        refusals = {name: sum(reasons.values()) for name, reasons in self.refusals().items()}
        return [
            self._row(device, at_this_moment.get(device.name), end, blocks, refusals.get(device.name, 0))
            for device in self._devices()
        ]

    def _row(
        self, device: DeviceSoFar, now: DeviceNow | None, end: float, blocks: int | None, refused: int
    ) -> list[Any]:
        cut, rate, up, down = device.cut, device.samples_per_second, device.bytes_up, device.bytes_down
        ago = None if device.seen_seconds is None else max(0.0, end - device.seen_seconds)
        if now is None:
            state, step = self._state(device), [device.last_steps, device.last_steps] if device.rounds else None
        else:
            state, step = now.state, None if now.step is None or not now.local_steps else [now.step, now.local_steps]
            cut = now.cut if now.cut is not None else cut
            rate = now.samples_per_second if now.samples_per_second is not None else rate
            up, down, refused = max(up, now.bytes_up), max(down, now.bytes_down), refused or now.refusals
            ago = ago if now.silent_seconds is None else coarse(now.silent_seconds)
        return [
            device.name,
            state,
            None if cut is None else [cut, blocks],
            step,
            short(rate),
            up,
            down,
            *device.shown,
            refused,
            device.memory_bytes or None,
            short(ago),
        ]

    def _state(self, device: DeviceSoFar) -> str:
        """The state of a device of which only rounds tell."""
        if self.last_row is None or not device.rounds:
            return "away"
        measured = self.last_row["devices"].get(device.name)
        return "left out" if measured is None else "late" if measured["late"] else "done"

    def histories(self) -> dict[str, Any]:
        """The history of each device, by its name; see `DeviceSoFar.history`."""
        return {device.name: device.history() for device in self._devices()}

    def _devices(self) -> list[DeviceSoFar]:
        return list(self.devices.by_name.values())


def coarse(seconds: float) -> float:
    """Seconds since a device was heard of, as exactly as a person needs: else every row would change every second.

    Example:
      >>> [coarse(seconds) for seconds in (0.4, 2.9, 13, 100, 5000)]
      [0, 0, 10, 60, 3600]
    """
    if seconds < 3:
        return 0
    unit = 5 if seconds < 60 else 60 if seconds < 3600 else 3600
    return seconds // unit * unit
