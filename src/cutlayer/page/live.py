"""A run that goes, as pieces of its page: what it tells its display is kept, and digested by whoever serves the page.

The run's own threads only put what they tell into a queue. Everything else, from the digest to JSON, is done by the one
thread that serves, at its own pace.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from heapq import nsmallest
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from cutlayer.page.digest import MOST_NAMES, Digest
from cutlayer.page.run_page import watched_page, whole
from cutlayer.report.fleet_progress import FleetDisplay
from cutlayer.report.fleet_view import DeviceNow, rounds_elapsed, waiting
from cutlayer.report.human import human_seconds
from cutlayer.report.live_view import left, round_of
from cutlayer.report.run_folder import RunFolder
from cutlayer.report.run_state import RunState

if TYPE_CHECKING:  # torch takes seconds, and a page or a table of a run needs none of it
    from cutlayer.types import Event


NOT_YET = "The run has not begun."


class Live:
    """A run that goes, as a page is shown it.

    Args:
      digest: of the run, of which nothing has been read; its folder need not be there yet.
      clock: wall seconds.
    """

    def __init__(self, digest: Digest, clock: Callable[[], float]) -> None:
        self._digest, self._clock = digest, clock
        self._told: deque[Event | Callable[[], None]] = deque()
        self._state: RunState | None = None
        self._stage, self._over, self._failed = "", False, ""
        self._call: Callable[[], Sequence[DeviceNow]] | None = None
        self._needed = 0
        self._tail = Tail(digest.folder / "contributions.jsonl", 0)
        self._rows: list[list[Any]] = []  # as they were last sent
        self._round_over = False  # since something was last sent
        self._tiles: list[list[str]] | None = None  # as of the last round

    # ------------------------------------------------------------------ for the run's threads

    def stage(self, what: str) -> None:
        """Takes what is done before, between or after rounds; empty for rounds."""
        self._stage = what

    def opened(self, call: Callable[[], Sequence[DeviceNow]], needed: int) -> None:
        """Devices may come: `call` says how they are, from any thread."""
        self._call, self._needed = call, needed

    def begun(self, rounds: int, devices: Sequence[str], local_steps: int, first_round: int) -> None:
        """Rounds begin, in a folder that is there."""
        started, path = self._clock(), self._digest.folder / "contributions.jsonl"
        tail = Tail(path, path.stat().st_size if path.exists() else 0)  # behind the rounds of earlier processes
        self._told.append(
            lambda: self._begin(RunState(rounds, first_round, tuple(devices), local_steps, started), tail)
        )

    def event(self, event: Event) -> None:
        """A machine did something."""
        self._told.append(event)

    def finished(self, row: Mapping[str, Any]) -> None:
        """A round is over, and what it wrote is on the disk."""
        now = self._clock()
        self._told.append(lambda: self._finish(row, now))

    def end(self, failed: str) -> None:
        """The run is over.

        Args:
          failed: what ended it, where it did not come to its end; else empty.
        """
        self._failed, self._over = failed, True

    # ------------------------------------------------------------------ for the thread that serves

    def drain(self) -> None:
        """Takes in what was told since."""
        events: list[Event] = []
        for _ in range(len(self._told)):
            told = self._told.popleft()
            if callable(told):
                self._saw(events)
                events = []
                told()
            else:
                events.append(told)
        self._saw(events)

    def page(self) -> str:
        """The HTML, which asks for pieces."""
        return watched_page(self._digest)

    def history(self, device: str) -> dict[str, Any] | None:
        """The history of a device; None where there is none of this name."""
        known = self._digest.devices.by_name.get(device)
        return None if known is None else known.history()

    def whole(self) -> dict[str, Any]:
        """A piece for a page that has nothing yet, which then takes every `news`."""
        charts = self._digest.figures.drawn()
        known = whole(self._digest) | self._head(self._devices())
        return known | {"rows": list(enumerate(self._rows)), "charts": charts}

    def news(self) -> dict[str, Any]:
        """A piece with what has changed since this was last asked."""
        devices = self._devices()
        piece = self._head(devices)
        rows, before = self._rows_now(devices), self._rows
        changed = [[place, row] for place, row in enumerate(rows) if place >= len(before) or row != before[place]]
        self._rows = rows
        if changed:
            piece["rows"] = changed
        if (time := self._digest.timeline.news()) is not None:
            piece["time"], piece["span"] = time, self._digest.round_span()
        if self._round_over:
            self._round_over = False
            piece["numbers"], piece["charts"] = self._digest.figures.numbers(), self._digest.figures.drawn()
        return piece

    def _begin(self, state: RunState, tail: Tail) -> None:
        self._tail = tail
        folder = RunFolder(self._digest.folder)
        self._digest.about |= folder.read_about()
        for _ in self._digest.reading(folder, state.first_round) if state.first_round else ():
            pass
        self._state = state
        for name in state.devices:
            self._digest.devices.of(name)
            self._digest.timeline.number(name)
        self._round_over = True

    def _saw(self, events: Sequence[Event]) -> None:
        if self._state is not None and events:
            self._digest.seen(events)
            self._state.saw_all(events)

    def _finish(self, row: Mapping[str, Any], now: float) -> None:
        if self._state is None:
            return
        for moved in self._tail.read():
            if moved["round"] >= self._state.first_round:
                self._digest.contributed(moved)
        self._digest.finished(row)
        self._state.finished(row, now)
        self._round_over, self._tiles = True, None

    def _rows_now(self, devices: Sequence[DeviceNow]) -> list[list[Any]]:
        return self._digest.rows(devices, None if self._state is None else self._state.virtual_seconds())

    def _devices(self) -> Sequence[DeviceNow]:
        """The devices as they are: as the door knows or, of a modelled fleet, as events say; none at the end, when
        rounds say it, for a device that has done its part and gone is not away."""
        if self._over:
            return ()
        if self._call is not None:
            return self._call()
        state = self._state
        if state is None or state.rounds_done >= state.num_rounds:
            return ()
        return [_by_events(name, state) for name in state.devices]

    def _head(self, devices: Sequence[DeviceNow]) -> dict[str, Any]:
        if self._over:
            return self._ended()
        state = self._state
        words, urgent = _awaited(devices, state)
        if state is None:
            here = sum(device.state in ("ready", "training", "late") for device in devices)
            waits = f"Waiting for devices: {here} of at least {self._needed}." if self._call else NOT_YET
            return {"status": self._stage.capitalize() or waits, "tiles": [], "waiting": words, "now": urgent}
        elapsed, now = rounds_elapsed(state, devices) if self._call else state.rounds_elapsed(), self._clock()
        status = f"{self._stage.capitalize()}." if self._stage else f"{round_of(state).capitalize()} is under way."
        going = ["going for", human_seconds(round(now - state.started)), left(state, now, elapsed)]
        if self._tiles is None:
            self._tiles = self._digest.tiles()
        first, *others = self._tiles
        return {"status": status, "tiles": [first, going, *others], "waiting": words, "now": urgent}

    def _ended(self) -> dict[str, Any]:
        piece: dict[str, Any] = {"over": True, "waiting": "", "now": False}
        if self._failed:
            return piece | {"status": f"The run was ended: {self._failed}", "failed": True}
        status = f"The run has ended. This page stays as report.html in {self._digest.folder}."
        self._digest.ended = RunFolder(self._digest.folder).read_summary() or None
        return piece | {"status": status, "tiles": self._digest.tiles(), "waiting": self._digest.held_up()}


def _by_events(name: str, state: RunState) -> DeviceNow:
    step = state.step_of(name)
    at_work = step < state.local_steps
    return DeviceNow(name, "training" if at_work else "ready", at_work, step=step, local_steps=state.local_steps)


def _awaited(devices: Sequence[DeviceNow], state: RunState | None) -> tuple[str, bool]:
    """A line on whom the round waits for, and whether somebody should look after it."""
    if gone := waiting(devices):
        return gone[0].plain.capitalize() + ".", True
    awaited = [device for device in devices if device.awaited]
    if state is None or not awaited:
        return "", False
    names = ", ".join(device.name for device in nsmallest(MOST_NAMES, awaited, key=lambda device: device.step or 0))
    more = f" and {len(awaited) - MOST_NAMES} more" if len(awaited) > MOST_NAMES else ""
    return f"{round_of(state).capitalize()} waits for {names}{more}.", False


class Tail:
    """The lines of a file that grows.

    Args:
      path: of the file, which need not be there before it is read.
      place: the byte at which they begin.
    """

    def __init__(self, path: Path, place: int) -> None:
        self._path, self._place = path, place

    def read(self) -> list[dict[str, Any]]:
        """Whole lines since it was last read; parsed together, which takes a third of the time of one by one."""
        with open(self._path, "rb") as file:
            file.seek(self._place)
            whole = file.read().rpartition(b"\n")[0]
        if not whole:
            return []
        self._place += len(whole) + 1
        lines: list[dict[str, Any]] = json.loads(b"[" + whole.replace(b"\n", b",") + b"]")
        return lines


class Watched:
    """A display beside which a page is told the same.

    Args:
      display: the display.
      live: the page's.
    """

    def __init__(self, display: FleetDisplay, live: Live) -> None:
        self._shown, self._live = display, live

    def __enter__(self) -> Self:
        self._shown.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._shown.__exit__(kind, error, trace)

    def stage(self, what: str, done: int = 0, of: int = 0) -> None:
        self._live.stage("" if of and done >= of else what)
        self._shown.stage(what, done, of)

    def run_started(self, num_rounds: int, devices: Sequence[str], local_steps: int, *, first_round: int = 0) -> None:
        self._live.stage("")
        self._live.begun(num_rounds, devices, local_steps, first_round)
        self._shown.run_started(num_rounds, devices, local_steps, first_round=first_round)

    def event(self, event: Event) -> None:
        self._live.event(event)
        self._shown.event(event)

    def round_done(self, row: Mapping[str, Any]) -> None:
        self._live.finished(row)
        self._shown.round_done(row)

    def answered(self, samples: Sequence[Mapping[str, Any]]) -> None:
        self._shown.answered(samples)

    def fleet_opened(self, devices: Callable[[], Sequence[DeviceNow]], needed: int) -> None:
        self._live.opened(devices, needed)
        self._shown.fleet_opened(devices, needed)

    def device_news(self, line: str) -> None:
        self._shown.device_news(line)
