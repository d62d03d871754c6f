from __future__ import annotations

import io
import re
import time
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from cutlayer.report.progress import NoProgress, Progress, ProgressDisplay
from cutlayer.types import Event


class Clock:
    def __init__(self) -> None:
        self.now = 0.0
        self.beats: list[Callable[[], None]] = []

    def __call__(self) -> float:
        return self.now

    def beaten(self, beat: Callable[[], None]) -> Beats:
        """In place of a thread: `beat` is called as this clock moves."""
        return Beats(self, beat)

    def passes(self, seconds: float) -> None:
        """Lets seconds pass, half a second after the other."""
        for _ in range(round(2 * seconds)):
            self.now += 0.5
            for beat in self.beats:
                beat()


class Beats:
    def __init__(self, clock: Clock, beat: Callable[[], None]) -> None:
        self._clock, self._beat = clock, beat

    def open(self) -> None:
        self._clock.beats.append(self._beat)

    def close(self) -> None:
        self._clock.beats.clear()


def row(round: int, **changes: Any) -> dict[str, Any]:
    return {
        "round": round,
        "loss": 1.25,
        "samples": 96,
        "virtual_seconds": 200.0 * (round + 1),
        "validation": {"accuracy": 0.8125, "loss": 0.5},
    } | changes


def run(display: ProgressDisplay, clock: Clock, rounds: range, devices: tuple[str, ...] = ("pi", "m3")) -> None:
    display.run_started(rounds.stop, devices, 4, first_round=rounds.start)
    for round in rounds:
        for step in range(4):
            for device in devices:
                display.event(Event(device, "forward", 0.0, 1.0, round, step))
        clock.now += 10
        display.round_done(row(round))


def test_without_a_terminal_there_is_one_plain_line_per_round() -> None:
    out, clock = io.StringIO(), Clock()
    with Progress(Console(file=out, width=40), clock=clock, pulse=clock.beaten) as display:
        run(display, clock, range(3))
    assert out.getvalue().splitlines() == [
        "round 1/3  loss 1.2500  accuracy 0.8125  validation loss 0.5  virtual 3m 20s  9.6 samples/s  left 20.0 s",
        "round 2/3  loss 1.2500  accuracy 0.8125  validation loss 0.5  virtual 6m 40s  9.6 samples/s  left 10.0 s",
        "round 3/3  loss 1.2500  accuracy 0.8125  validation loss 0.5  virtual 10m 00s  9.6 samples/s  left 0 s",
    ]


def test_a_resumed_run_reckons_its_pace_from_where_it_began() -> None:
    out, clock = io.StringIO(), Clock()
    with Progress(Console(file=out, width=40), clock=clock, pulse=clock.beaten) as display:
        run(display, clock, range(90, 92))
    assert "round 91/92" in out.getvalue()
    assert "left 10.0 s" in out.getvalue()


@pytest.fixture
def terminal() -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, force_terminal=True, width=100, color_system=None, _environ={}), out


def test_on_a_terminal_the_display_is_live(terminal: tuple[Console, io.StringIO]) -> None:
    console, out = terminal
    clock = Clock()
    with Progress(console, clock=clock) as display:
        run(display, clock, range(1, 2))
        display.run_started(4, ("pi", "m3"), 4)
        display.event(Event("pi", "upload", 0.0, 1.0, 0, 2))
    text = out.getvalue()
    assert "\x1b[?25l" in text  # the cursor is hidden meanwhile
    assert "round 1/4" in text
    assert "samples/s  left" not in text  # which the plain lines would say
    assert "pi      uploading   step 3/4" in text


ANSWER = {"rounds": 2, "prompt": "Say\nit.", "text": " ".join(["a word"] * 20)}


def test_an_answer_is_a_line_without_a_terminal_and_is_broken_between_words_on_one(
    terminal: tuple[Console, io.StringIO],
) -> None:
    out, whole = io.StringIO(), f"after round 2: Say it. -> {ANSWER['text']}"
    with Progress(Console(file=out, width=40)) as display:
        display.answered([ANSWER, ANSWER | {"rounds": 0, "text": "no"}])
    assert out.getvalue().splitlines() == [whole, "before training: Say it. -> no"]
    console, shown = terminal
    with Progress(console) as display:
        display.answered([ANSWER])
    lines = [line.strip() for line in re.sub(r"\x1b\[[?0-9]*[A-Za-z]", "", shown.getvalue()).splitlines()]
    first = next(row for row, line in enumerate(lines) if line.startswith("after round 2"))
    assert " ".join(lines[first : first + 2]) == whole
    assert max(map(len, lines)) <= console.width


def test_an_error_gives_the_terminal_back(terminal: tuple[Console, io.StringIO]) -> None:
    console, out = terminal
    display = Progress(console)
    with pytest.raises(RuntimeError), display:
        raise RuntimeError
    text = out.getvalue()
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")  # the cursor is shown again


def test_an_event_costs_microseconds(terminal: tuple[Console, io.StringIO]) -> None:
    display, event = Progress(terminal[0]), Event("pi", "forward", 0.0, 1.0, 0, 0)
    display.run_started(1, ["pi"], 4)
    start = time.process_time()
    for _ in range(10_000):
        display.event(event)
    assert (time.process_time() - start) / 10_000 < 20e-6


def test_quiet_takes_the_same_calls_and_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with NoProgress() as display:
        run(display, Clock(), range(2))
    assert capsys.readouterr().out == ""


def test_calls_before_the_run_has_started_are_harmless() -> None:
    out = io.StringIO()
    with Progress(Console(file=out)) as display:
        display.event(Event("pi", "download", 0.0, 1.0, 0))
        display.round_done(row(0))
    assert out.getvalue() == ""


def test_without_a_terminal_nothing_is_silent_for_long() -> None:
    """A stage is a line when it begins and one each four seconds while it lasts; so is a round."""
    out, clock = io.StringIO(), Clock()
    with Progress(Console(file=out, width=40), clock=clock, pulse=clock.beaten) as display:
        display.stage("reading the data")
        clock.passes(6)
        for done in range(10):
            display.stage("evaluating", done, 10)
            clock.passes(1)
        display.stage("evaluating", 10, 10)
        display.run_started(1, ("pi", "m3"), 4)
        clock.passes(3)
        for step in range(3):
            display.event(Event("pi", "forward", 0.0, 1.0, 0, step))
            clock.passes(2)
        display.round_done(row(0))
        clock.passes(5)
    clock.passes(9)
    said = out.getvalue().splitlines()
    assert said[7].startswith("round 1/1  loss")
    assert said[:7] + said[8:] == [
        "reading the data",
        "reading the data  4.0 s",
        "evaluating  0/10",
        "evaluating  3/10  left 9.0 s",
        "evaluating  7/10  left 3.0 s",
        "in round 1/1  0 steps on devices  2.0 s gone",
        "in round 1/1  2 steps on devices  6.0 s gone",
        "all rounds are done  13.0 s gone",
    ]


def test_what_is_said_counts_as_a_sign_of_life() -> None:
    out, clock = io.StringIO(), Clock()
    with Progress(Console(file=out), clock=clock, pulse=clock.beaten) as display:
        display.run_started(9, ("pi",), 4)
        for number in range(3):
            clock.passes(3)
            display.round_done(row(number))
            clock.passes(0.5)
        clock.passes(1)
        display.answered([{"rounds": 3, "prompt": "a", "text": "b"}])
        clock.passes(3.5)
        assert len(out.getvalue().splitlines()) == 4
        clock.passes(0.5)
        assert out.getvalue().splitlines()[4] == "in round 4/9  0 steps on devices  16.0 s gone"


def test_on_a_terminal_no_line_is_said_for_a_sign_of_life(terminal: tuple[Console, io.StringIO]) -> None:
    clock = Clock()
    with Progress(terminal[0], clock=clock, pulse=clock.beaten) as display:
        display.stage("reading the data")
        assert not clock.beats


def test_on_a_terminal_a_stage_is_seen_before_and_between_rounds(terminal: tuple[Console, io.StringIO]) -> None:
    console, _ = terminal
    clock = Clock()
    display = Progress(console, clock=clock)

    def seen() -> str:
        with console.capture() as capture:
            console.print(display._drawn())
        return capture.get()

    display.stage("reading the data")
    clock.now += 3
    assert seen() == "reading the data  3.0 s\n"
    run(display, clock, range(1))
    assert "reading" not in seen()
    display.stage("evaluating", 1, 4)
    assert "round 1/1" in seen()
    assert seen().splitlines()[-1].startswith("evaluating  1/4")
    display.stage("evaluating", 4, 4)
    assert "evaluating" not in seen()
