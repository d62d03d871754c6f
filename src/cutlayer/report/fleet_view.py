"""The display of a real fleet: the run's line, whom it waits for, a row for each device as far as there is room."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cutlayer.reading import counted
from cutlayer.report.human import human_bytes, human_seconds
from cutlayer.report.listing import Listing
from cutlayer.report.live_view import numbers, round_of, times
from cutlayer.report.run_state import RunState

State = Literal["away", "preparing", "ready", "training", "late", "done"]
STYLES: dict[State, str] = {
    "away": "red",
    "preparing": "cyan",
    "ready": "dim",
    "training": "blue",
    "late": "yellow",
    "done": "green",
}
URGENT: Sequence[State] = ("away", "late", "preparing", "training", "ready", "done")
"""States by urgency, for where there is no room for all devices: first those that an operator may have to act on."""

NUMBERS = ("cut", "step", "samples/s", "up", "down", "last seen")
MOST = ("state", "step", "last seen", "up", "samples/s", "cut", "down")
"""Headings in the order of their importance."""

LINES_AROUND = 11
"""Lines of the terminal for what is not a row: the run's lines, the table's head, the prompt."""


@dataclass(frozen=True, slots=True)
class DeviceNow:
    """A device as it is at this moment.

    Attributes:
      name: its name.
      state: `away`: not connected; `preparing`: reading its data and its part of the model; `ready`: nothing to do;
        `training`; `late`: it has left the round; `done`: it knows that the run is over.
      awaited: whether the round under way waits for it.
      cut: blocks on it in this round; None before its first.
      step: local steps of this round that the server knows of; None where it cannot know or there is no round.
      local_steps: of the round; 0 where it takes no part.
      samples_per_second: in this round; None before the first step.
      bytes_up, bytes_down: device to server, server to device, since this process began.
      silent_seconds: since it was last heard of; None for never.
      blocks: of the model, of which `cut` are on it; None where nobody knows.
      refusals: how often something of it was refused.
    """

    name: str
    state: State
    awaited: bool = False
    cut: int | None = None
    step: int | None = None
    local_steps: int = 0
    samples_per_second: float | None = None
    bytes_up: int = 0
    bytes_down: int = 0
    silent_seconds: float | None = None
    blocks: int | None = None
    refusals: int = 0


@dataclass(frozen=True, slots=True)
class FleetView:
    """The whole display at one moment; it fits the terminal that it is drawn on.

    Attributes:
      state: how far the run is; None before its first round.
      devices: in their order.
      needed: devices without which no round begins.
      now: wall seconds, of the clock that gave `state.started`.
    """

    state: RunState | None
    devices: Sequence[DeviceNow]
    needed: int
    now: float

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Group(*self._head(options.max_width), *waiting(self.devices))
        room = max(3, options.size.height - LINES_AROUND)
        shown = self.devices if len(self.devices) <= room else most_urgent(self.devices, room - 1)
        if shown:
            yield devices_table(shown, drawn_again=True)
        if len(shown) < len(self.devices):
            yield _rest(self.devices, shown)

    def _head(self, width: int) -> Iterator[Text | Table]:
        if self.state is None:
            here = sum(device.state in ("ready", "training", "late") for device in self.devices)
            yield Text(f"waiting for {counted(self.needed, 'device')}: {there(here)}", style="bold")
            return
        elapsed = rounds_elapsed(self.state, self.devices)
        head = Table.grid(padding=(0, 2, 0, 0), expand=False)
        bar = ProgressBar(total=self.state.num_rounds, completed=elapsed, width=max(8, min(36, width - 50)))
        head.add_row(
            Text(round_of(self.state), style="bold"), bar, Text(times(self.state, self.now, elapsed), style="dim")
        )
        yield head
        if words := list(numbers(self.state)):
            yield Text("  ".join(words))


def there(number: int) -> str:
    """`nobody is here yet`, `1 is here`, `2 are here`."""
    return "nobody is here yet" if not number else f"{number} {'is' if number == 1 else 'are'} here"


def rounds_elapsed(state: RunState, devices: Sequence[DeviceNow]) -> float:
    """Rounds done, and the part of the one under way that its devices have done, as far as the server knows."""
    if state.rounds_done >= state.num_rounds:
        return float(state.num_rounds)
    whole = sum(device.local_steps for device in devices)
    return state.rounds_done + sum(device.step or 0 for device in devices) / max(1, whole)


def waiting(devices: Sequence[DeviceNow]) -> list[Text]:
    """`waiting for pi-3, last seen 5m 02s ago`: a line where the round waits for somebody who is away."""
    gone = [device for device in devices if device.awaited and device.state in ("away", "preparing")]
    if not gone:
        return []
    longest = max(gone, key=lambda device: device.silent_seconds or 0.0)
    others = f" and {len(gone) - 1} more" if len(gone) > 1 else ""
    return [Text(f"waiting for {longest.name}{others}, last seen {_seen(longest)}", style="yellow")]


def most_urgent(devices: Sequence[DeviceNow], room: int) -> list[DeviceNow]:
    """Picks so many devices, in their order: first those awaited, then by state, then those furthest behind."""
    ranked = sorted(devices, key=lambda d: (not d.awaited, URGENT.index(d.state), d.step or 0))
    chosen = {device.name for device in ranked[:room]}
    return [device for device in devices if device.name in chosen]


def _rest(devices: Sequence[DeviceNow], shown: Sequence[DeviceNow]) -> Text:
    names = {device.name for device in shown}
    counts = Counter(device.state for device in devices if device.name not in names)
    what = ", ".join(f"{counts[state]} {state}" for state in URGENT if counts[state])
    return Text(f"and {len(devices) - len(shown)} more: {what}", style="dim")


def devices_table(devices: Sequence[DeviceNow], *, drawn_again: bool) -> Listing:
    """The rows, in as many columns as there is room for.

    Args:
      devices: In their order.
      drawn_again: Whether it is a part of the live display.
    """
    table = Listing("device", "state", numbers=NUMBERS, most=MOST, drawn_again=drawn_again)
    for device in devices:
        name, state, *numbers = _cells(device)
        table.add_row(name, Text(state, STYLES[device.state]), *numbers)
    return table


def _cells(device: DeviceNow) -> tuple[str, ...]:
    step = "-" if device.step is None or not device.local_steps else f"{device.step}/{device.local_steps}"
    return (
        device.name,
        device.state,
        _cut(device),
        step,
        "-" if device.samples_per_second is None else f"{device.samples_per_second:.3g}",
        human_bytes(device.bytes_up),
        human_bytes(device.bytes_down),
        _seen(device),
    )


def _cut(device: DeviceNow) -> str:
    if device.cut is None:
        return "-"
    return str(device.cut) if device.blocks is None else f"{device.cut} of {device.blocks}"


def _seen(device: DeviceNow) -> str:
    """The time since a device was heard of: it speaks every second, so only a longer silence is worth a number."""
    if device.silent_seconds is None:
        return "never"
    return "now" if device.silent_seconds < 3 else f"{human_seconds(round(device.silent_seconds))} ago"
