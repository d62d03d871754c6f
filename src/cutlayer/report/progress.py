"""The display of a run that is going: live, or a line per round where there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from textwrap import shorten
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.text import Text

from cutlayer.report.lines import Beating, Lines, Pulse
from cutlayer.report.live_view import live_view, round_text, under_way_text
from cutlayer.report.run_state import RunState
from cutlayer.report.screen import Screen
from cutlayer.report.stage import Stage

if TYPE_CHECKING:  # torch takes seconds, and a page or a table of a run needs none of it
    from cutlayer.types import Event


SHOWN = 300
"""Characters of an answer on the screen; samples.jsonl has it whole."""


UNCHANGED_SECONDS = 60.0
"""Seconds until a line about a round is said again of which nothing has come since."""


class ProgressDisplay(Protocol):
    """A display that a run tells what it does. A context manager, so that the terminal is always given back."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def stage(self, what: str, done: int = 0, of: int = 0) -> None:
        """Shows a stage: work that is done before, between or after rounds.

        Args:
          what: Its name; another one begins another.
          done: How much of it is done.
          of: How much there is; 0 where nobody knows. With all of it done, it is over.
        """

    def run_started(self, num_rounds: int, devices: Sequence[str], local_steps: int, *, first_round: int = 0) -> None:
        """Rounds [first_round, num_rounds) begin; a resumed run starts above 0."""

    def event(self, event: Event) -> None:
        """A machine did something. Called for every event, so it must cost next to nothing."""

    def round_done(self, row: Mapping[str, Any]) -> None:
        """A round is over; `row` as in `round_row.py`."""

    def answered(self, samples: Sequence[Mapping[str, Any]]) -> None:
        """The model has answered `train.samples`; rows as in samples.jsonl."""


class NoProgress:
    """Shows nothing, of a real fleet either (`fleet_progress.py`)."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def stage(self, what: str, done: int = 0, of: int = 0) -> None:
        pass

    def run_started(self, num_rounds: int, devices: Sequence[str], local_steps: int, *, first_round: int = 0) -> None:
        pass

    def event(self, event: Event) -> None:
        pass

    def round_done(self, row: Mapping[str, Any]) -> None:
        pass

    def answered(self, samples: Sequence[Mapping[str, Any]]) -> None:
        pass

    def fleet_opened(self, devices: Callable[[], Sequence[Any]], needed: int) -> None:
        pass

    def device_news(self, line: str) -> None:
        pass


class Progress:
    """Shows a run on `console`: live on a terminal, else plain lines (a log, a pipe).

    These are one for each round and each stage, and one that says how far it is where none was said for
    `lines.SILENCE_SECONDS`.

    An event only stores what was last seen of its machine; a thread of rich's or of `lines` looks at it.
    """

    def __init__(
        self,
        console: Console,
        *,
        clock: Callable[[], float] = time.monotonic,
        pulse: Callable[[Callable[[], None]], Beating] = Pulse,
    ) -> None:
        """`clock` gives wall seconds; `pulse` makes what looks from time to time where there is no terminal."""
        self._console = console
        self._clock = clock
        self._state: RunState | None = None
        self._stage: Stage | None = None
        self._said: object = None
        self._said_at = 0.0
        self._screen = Screen(console, self._drawn)
        self._lines = Lines(console, self._still, clock, pulse)

    def __enter__(self) -> Self:
        self._screen.open()
        if not self._screen.live:
            self._lines.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stage = None
        self._lines.close()
        self._screen.close()

    def stage(self, what: str, done: int = 0, of: int = 0) -> None:
        if of and done >= of:
            self._stage = None
            return
        stage = self._stage
        if stage is not None and stage.what == what:
            stage.done, stage.of = done, of
            return
        self._stage = stage = Stage(what, self._clock(), done, of)
        if not self._screen.live:
            self._lines.say(stage.text(stage.started))

    def run_started(self, num_rounds: int, devices: Sequence[str], local_steps: int, *, first_round: int = 0) -> None:
        self._stage = None
        self._state = RunState(num_rounds, first_round, tuple(devices), local_steps, started=self._clock())

    def event(self, event: Event) -> None:
        if self._state is not None:
            self._state.saw(event)

    def round_done(self, row: Mapping[str, Any]) -> None:
        if self._state is None:
            return
        self._state.finished(row, now=self._clock())
        if not self._screen.live:
            self._lines.say(self._round_text(self._state, self._clock()))

    def answered(self, samples: Sequence[Mapping[str, Any]]) -> None:
        for sample in samples:
            when = f"after round {sample['rounds']}" if sample["rounds"] else "before training"
            prompt, text = (shorten(sample[key], SHOWN, placeholder=" ...") for key in ("prompt", "text"))
            self._lines.say(Text.assemble(f"{when}: ", (prompt, "dim"), " -> ", text))

    def fleet_opened(self, devices: Callable[[], Sequence[Any]], needed: int) -> None:
        """See `FleetDisplay`; a display of rounds alone."""

    def device_news(self, line: str) -> None:
        """See `FleetDisplay`."""

    def _still(self, now: float) -> str | None:
        """The line on how far the run is, where one is due; what has not changed is said again once a minute."""
        stage, state = self._stage, self._state
        if stage is not None:
            return stage.text(now)
        if state is None:
            return None
        how_far = self._how_far(state)
        if how_far == self._said and now - self._said_at < UNCHANGED_SECONDS:
            return None
        self._said, self._said_at = how_far, now
        return self._under_way(state, now)

    def _how_far(self, state: RunState) -> object:
        """The figures of the round under way; a line about it has news where they have changed."""
        return state.rounds_done, state.steps_begun()

    def _under_way(self, state: RunState, now: float) -> str:
        """The line on how far the round under way is."""
        return under_way_text(state, now)

    def _round_text(self, state: RunState, now: float) -> Text:
        return round_text(state, now)

    def _drawn(self) -> RenderableType:
        stage = self._stage
        view: RenderableType = self._view()
        if stage is None:
            return view
        line = Text(stage.text(self._clock()))
        return line if self._state is None else Group(view, line)

    def _view(self) -> Any:
        return Text("starting …") if self._state is None else live_view(self._state, self._clock())
