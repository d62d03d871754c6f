"""Plain lines: one that is said, one that is due, none too often."""

from __future__ import annotations

import io
from collections.abc import Callable
from threading import Event

import pytest
from rich.console import Console

from cutlayer.report.lines import SILENCE_SECONDS, Lines, Pulse


class Held:
    """A pulse that a test beats."""

    def __init__(self, beat: Callable[[], None]) -> None:
        self.beat = beat

    def open(self) -> None:
        pass

    def close(self) -> None:
        pass


def lines_on(
    out: io.StringIO, clock: list[float], still: Callable[[float], str | None]
) -> tuple[Lines, Callable[[], None]]:
    held: list[Held] = []

    def hold(beat: Callable[[], None]) -> Held:
        held.append(Held(beat))
        return held[0]

    lines = Lines(Console(file=out, width=20), still, lambda: clock[0], hold)
    return lines, held[0].beat


def test_a_line_is_due_after_so_long_a_silence_and_not_before() -> None:
    out, clock = io.StringIO(), [100.0]
    lines, beat = lines_on(out, clock, lambda now: f"still {now}")
    lines.say("begins")
    for moment in (100.0, 103.9, 104.0, 104.1, 107.9, 108.0):
        clock[0] = moment
        beat()
    assert out.getvalue().splitlines() == ["begins", "still 104.0", "still 108.0"]
    assert SILENCE_SECONDS == 4.0


def test_nothing_is_due_where_there_is_nothing_to_say() -> None:
    out, clock = io.StringIO(), [0.0]
    _, beat = lines_on(out, clock, lambda now: None)
    clock[0] = 60.0
    beat()
    assert out.getvalue() == ""


def test_a_line_stays_one_however_wide_the_console_is() -> None:
    out = io.StringIO()
    lines, _ = lines_on(out, [0.0], lambda now: None)
    lines.say("word " * 20)
    assert len(out.getvalue().splitlines()) == 1


def test_the_silence_begins_when_it_is_opened() -> None:
    out, clock = io.StringIO(), [0.0]
    lines, beat = lines_on(out, clock, lambda now: "still")
    clock[0] = 60.0
    lines.open()
    beat()
    assert out.getvalue() == ""


def test_a_pulse_beats_until_it_is_closed() -> None:
    beaten = Event()
    pulse = Pulse(beaten.set, seconds=0.001)
    pulse.open()
    assert beaten.wait(30)
    pulse.close()
    beaten.clear()
    assert not pulse._thread.is_alive()


@pytest.mark.parametrize("opened", [False, True])
def test_closing_is_always_possible(opened: bool) -> None:
    pulse = Pulse(lambda: None)
    if opened:
        pulse.open()
    pulse.close()
    pulse.close()
