"""The state of a run as the display knows it, filled by the run's thread and read by the drawing thread.

Every update is one assignment into a place that already exists, so the two need no lock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cutlayer.report.activities import SERVER
from cutlayer.report.round_row import clock_seconds

if TYPE_CHECKING:  # torch takes seconds, and a page or a table of a run needs none of it
    from cutlayer.types import Event


@dataclass(slots=True)
class RunState:
    """The progress of the rounds and of the machines. Wall times are those of the clock that gave `started`."""

    num_rounds: int
    first_round: int
    devices: tuple[str, ...]
    local_steps: int
    started: float
    rounds_done: int = field(init=False)
    samples: int = 0
    samples_per_second: float | None = None
    last_row: Mapping[str, Any] | None = None
    validation: Mapping[str, float] = field(default_factory=dict)
    validated: int = 0  # rounds done at the last evaluation
    last_event: dict[str, Event | None] = field(init=False)
    last_step: dict[str, Event | None] = field(init=False)

    def __post_init__(self) -> None:
        self.rounds_done = self.first_round
        self.last_event = dict.fromkeys((*self.devices, SERVER))
        self.last_step = dict.fromkeys(self.last_event)

    def saw(self, event: Event) -> None:
        """Remembers the latest of each machine."""
        self.last_event[event.who] = event
        if event.step is not None:
            self.last_step[event.who] = event

    def saw_all(self, events: Sequence[Event]) -> None:
        """Remembers the latest of each machine, of events in their order."""
        self.last_event.update({event.who: event for event in events})
        self.last_step.update({event.who: event for event in events if event.step is not None})

    def finished(self, row: Mapping[str, Any], now: float) -> None:
        """Takes a round's record (`round_row.py`)."""
        self.samples += row["samples"]
        self.samples_per_second = self.samples / (now - self.started) if now > self.started else None
        self.validation = row["validation"] or self.validation  # rounds without one keep showing the last
        self.last_row = row
        self.rounds_done = row["round"] + 1
        if row["validation"]:
            self.validated = self.rounds_done

    def step_of(self, device: str) -> int:
        """Local steps of the current round that the device has begun."""
        event = self.last_step[device]
        if event is None or event.step is None or event.round != self.rounds_done:
            return 0
        return min(event.step + 1, self.local_steps)

    def steps_begun(self) -> int:
        """Local steps of the current round that all devices together have begun."""
        return sum(self.step_of(device) for device in self.devices)

    def rounds_elapsed(self) -> float:
        """Rounds done, and the part of the current one that its devices have done."""
        if self.rounds_done >= self.num_rounds:
            return float(self.num_rounds)
        return self.rounds_done + self.steps_begun() / max(1, self.local_steps * len(self.devices))

    def seconds_left(self, now: float, elapsed: float | None = None) -> float | None:
        """Wall seconds to go at the pace since this process began; None before there is a pace.

        Args:
          now: Wall seconds.
          elapsed: Rounds so far, where somebody knows better than `rounds_elapsed`.
        """
        elapsed = self.rounds_elapsed() if elapsed is None else elapsed
        gone = elapsed - self.first_round
        if gone <= 0:
            return None
        return (now - self.started) / gone * (self.num_rounds - elapsed)

    def virtual_seconds(self) -> float:
        """The latest moment of the run's own clock that any machine has reached."""
        reached = 0.0 if self.last_row is None else clock_seconds(self.last_row)
        latest = (self.last_event[name] for name in (*self.devices, SERVER))
        return max([reached, *(event.end_seconds for event in latest if event is not None)])
