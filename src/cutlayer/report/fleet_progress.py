"""The display of a real fleet that trains: its devices live, or, in a log, a line when one comes or goes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, Protocol

from rich.text import Text

from cutlayer.report.fleet_view import DeviceNow, FleetView, rounds_elapsed
from cutlayer.report.live_view import left, numbers, round_of, times
from cutlayer.report.progress import Progress, ProgressDisplay
from cutlayer.report.run_state import RunState


class FleetDisplay(ProgressDisplay, Protocol):
    """A display that can be told of devices which come and go."""

    def fleet_opened(self, devices: Callable[[], Sequence[DeviceNow]], needed: int) -> None:
        """Devices may come from now on.

        Args:
          devices: How they are; called from the thread that draws, some times a second.
          needed: So many must be there before a round begins.
        """

    def device_news(self, line: str) -> None:
        """A device has come or gone."""


MOST_NAMES = 5
"""Names in a line, at most; of more there is a count."""


class FleetProgress(Progress):
    """Shows a fleet on a console: live on a terminal, else a plain line per round and per device that comes or goes."""

    _devices: Callable[[], Sequence[DeviceNow]] = list
    _needed = 0
    _last_round: Set[str] = frozenset()

    def fleet_opened(self, devices: Callable[[], Sequence[DeviceNow]], needed: int) -> None:
        """See `FleetDisplay`."""
        self._devices, self._needed = devices, needed

    def device_news(self, line: str) -> None:
        """See `FleetDisplay`."""
        if not self._screen.live:
            self._lines.say(Text(line))

    def round_done(self, row: Mapping[str, Any]) -> None:
        """See `ProgressDisplay`; and says who took part in the round before and has gone since."""
        super().round_done(row)
        away = {device.name for device in self._devices() if device.state == "away"}
        missed = sorted((self._last_round - set(row["devices"])) & away)
        self._last_round = set(row["devices"])
        if missed:
            few = ", ".join(missed[:MOST_NAMES]) + (
                f" and {len(missed) - MOST_NAMES} more" * (len(missed) > MOST_NAMES)
            )
            self._lines.say(Text(f"round {row['round'] + 1} without {few}, in the round before and away now"))

    def _how_far(self, state: RunState) -> object:
        return rounds_elapsed(state, self._devices())

    def _under_way(self, state: RunState, now: float) -> str:
        elapsed = rounds_elapsed(state, self._devices())
        return f"in {round_of(state)}  {times(state, now, elapsed)}"

    def _round_text(self, state: RunState, now: float) -> Text:
        elapsed = rounds_elapsed(state, self._devices())
        words = [
            f"round {state.rounds_done}/{state.num_rounds}",
            *numbers(state, last=False),
            left(state, now, elapsed),
        ]
        return Text("  ".join(words))

    def _view(self) -> Any:
        return FleetView(self._state, list(self._devices()), self._needed, self._clock())
