"""The progress of a comparison, for a person: a line per run on a terminal; in a pipe, one as each begins and ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.text import Text

from cutlayer.comparing.comparison import Run
from cutlayer.report.human import human_seconds
from cutlayer.report.listing import Listing
from cutlayer.report.screen import Screen

STYLES = {"done": "green", "kept": "green", "waiting": "dim", "failed": "red"}
MOST = ("state", "rounds", "value", "bar")
"""Columns that are shown of a run, in the order of their importance."""
BAR = 30
"""Columns of the terminal."""


@dataclass(slots=True)
class _State:
    """The state of one run."""

    rounds: int
    word: str
    rounds_done: int = 0
    began: float = 0.0
    began_at_round: int = 0
    value: float | None = None
    ended: float | None = None

    @property
    def open(self) -> bool:
        return self.word in ("waiting", "running")

    def pace(self, now: float) -> float | None:
        """Wall seconds a round in this process, its start-up included; None before there is one."""
        gone = self.rounds_done - self.began_at_round
        return ((now if self.ended is None else self.ended) - self.began) / gone if gone > 0 else None


class Progress:
    """Shows the runs on `console`.

    Args:
      console: Where.
      runs: All of them.
      metric: The value of an evaluation that is shown.
      jobs: The most at once: what is left is shared by so many.
      clock: Wall seconds.
    """

    def __init__(
        self, console: Console, runs: Sequence[Run], metric: str, jobs: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._console, self._metric, self._jobs, self._clock = console, metric, jobs, clock
        self._states = {run.name: _State(run.config.train.rounds, "kept" if run.done else "waiting") for run in runs}
        for state in self._states.values():
            state.rounds_done = state.began_at_round = state.rounds if state.word == "kept" else 0
        self._screen = Screen(console, self.view)

    def __enter__(self) -> Self:
        kept = sum(state.word == "kept" for state in self._states.values())
        if kept:
            self._say(f"{kept} of {len(self._states)} runs are done already and kept")
        self._screen.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._screen.close()

    def started(self, run: Run, rounds_done: int) -> None:
        """See `pool.Display`."""
        state = self._states[run.name]
        state.word, state.began = "running", self._clock()
        state.rounds_done = state.began_at_round = rounds_done
        if not self._screen.live:
            self._say(f"{run.name} {f'goes on after round {rounds_done}' if rounds_done else 'begins'}")

    def round_done(self, run: Run, row: dict[str, Any]) -> None:
        """See `pool.Display`."""
        state = self._states[run.name]
        state.rounds_done = row["round"] + 1
        state.began_at_round = min(state.began_at_round, row["round"])
        state.value = row["validation"].get(self._metric, state.value)

    def ended(self, run: Run, problem: str | None) -> None:
        """See `pool.Display`."""
        state = self._states[run.name]
        state.word, state.ended = "failed" if problem else "done", self._clock()
        if not self._screen.live:
            said = [f"{run.name} {'failed: ' + problem if problem else 'is done'}", *self._value(state)]
            self._say("  ".join([*said, *self._left()]))

    def _say(self, words: str) -> None:
        self._console.print(words, soft_wrap=True)

    def _value(self, state: _State) -> list[str]:
        return [] if state.value is None else [f"{self._metric} {state.value:.4g}"]

    def _left(self) -> list[str]:
        left = self.seconds_left()
        return [] if left is None else [f"left {human_seconds(round(left))}"]

    def seconds_left(self) -> float | None:
        """Wall seconds to go: rounds that are left at the pace of their run, or of the runs so far; None at first."""
        now = self._clock()
        paces = [pace for state in self._states.values() if (pace := state.pace(now)) is not None]
        still = [state for state in self._states.values() if state.open]
        if still and not paces:
            return None
        mean = sum(paces) / max(1, len(paces))
        work = [(state.rounds - state.rounds_done) * (state.pace(now) or mean) for state in still]
        return max([sum(work) / self._jobs, *work], default=0.0)

    def view(self) -> RenderableType:
        """The whole display."""
        grid = Listing("run", "state", "bar", "rounds", "value", most=MOST, drawn_again=True, headed=False)
        for name, state in self._states.items():
            grid.add_row(
                name,
                Text(state.word, style=STYLES.get(state.word, "")),
                _bar(state),
                Text(f"{state.rounds_done}/{state.rounds}", style="dim"),
                "".join(self._value(state)),
            )
        ended = sum(not state.open for state in self._states.values())
        line = "  ".join([f"{ended} of {len(self._states)} runs have ended", *self._left()])
        return Group(grid, Text(line, style="bold"))


def _bar(state: _State) -> Text:
    done = BAR * state.rounds_done // state.rounds
    return Text.assemble(
        ("\N{BOX DRAWINGS HEAVY HORIZONTAL}" * done, "green"),
        ("\N{BOX DRAWINGS HEAVY HORIZONTAL}" * (BAR - done), "dim"),
    )
