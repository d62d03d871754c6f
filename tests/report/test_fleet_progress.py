from __future__ import annotations

import io
from collections.abc import Callable

from rich.console import Console

from cutlayer.report.fleet_progress import FleetDisplay, FleetProgress
from cutlayer.report.fleet_view import DeviceNow
from cutlayer.report.progress import NoProgress

ROW = {"round": 0, "loss": 1.25, "samples": 96, "virtual_seconds": 7.0, "validation": {}, "devices": {"pi-1": {}}}


def tell(display: FleetDisplay, wall: list[float]) -> None:
    display.fleet_opened(lambda: [DeviceNow("pi-1", "ready")], 1)
    display.device_news("pi-1 has come: 1 of 1 devices are here")
    display.run_started(2, ["pi-1"], 4)
    wall[0] = 10.0
    display.round_done(ROW)


def test_without_a_terminal_there_is_a_line_for_each_round_and_for_each_device_that_comes() -> None:
    out, wall = io.StringIO(), [0.0]
    with FleetProgress(Console(file=out, width=40), clock=lambda: wall[0]) as display:
        tell(display, wall)
    assert out.getvalue().splitlines() == [
        "pi-1 has come: 1 of 1 devices are here",
        "round 1/2  loss 1.2500  9.6 samples/s  left 10.0 s",
    ]


def test_a_round_without_a_device_that_has_gone_says_so() -> None:
    """One that was not chosen is none of anybody's business."""
    out, states = io.StringIO(), {"pi-1": "ready", "pi-2": "ready", "pi-3": "away", "pi-4": "away"}
    with FleetProgress(Console(file=out, width=40), clock=lambda: 1.0) as display:
        display.fleet_opened(lambda: [DeviceNow(name, state) for name, state in states.items()], 1)  # type: ignore[arg-type]
        display.run_started(3, list(states), 4)
        display.round_done(ROW | {"devices": {name: {} for name in states}})
        display.round_done(ROW | {"round": 1, "devices": {"pi-1": {}}})
        display.round_done(ROW | {"round": 2, "devices": {"pi-1": {}}})
    said = [line for line in out.getvalue().splitlines() if "without" in line]
    assert said == ["round 2 without pi-3, pi-4, in the round before and away now"]


def test_a_line_says_how_far_a_round_is_where_something_has_come() -> None:
    """No line where nothing has: a device far away may take an hour."""
    out, wall, beats = io.StringIO(), [0.0], []

    class Beats:
        def __init__(self, beat: Callable[[], None]) -> None:
            beats.append(beat)

        def open(self) -> None:
            pass

        def close(self) -> None:
            pass

    devices = [DeviceNow("pi-1", "training", step=0, local_steps=4)]
    with FleetProgress(Console(file=out), clock=lambda: wall[0], pulse=Beats) as display:
        display.fleet_opened(lambda: devices, 1)
        beats[0]()
        display.run_started(2, ["pi-1"], 4)
        for moment in (4.0, 8.0, 12.0, 16.0):
            if moment == 12.0:
                devices[0] = DeviceNow("pi-1", "training", step=2, local_steps=4)
            wall[0] = moment
            beats[0]()
    assert [line[:12] for line in out.getvalue().splitlines()] == ["in round 1/2"] * 2


def test_a_terminal_shows_the_table_from_the_beginning() -> None:
    out = io.StringIO()
    with FleetProgress(Console(file=out, width=100, height=30, force_terminal=True)) as display:
        display.fleet_opened(lambda: [DeviceNow("pi-1", "preparing")], 3)
    assert "waiting for 3 devices" in out.getvalue()
    assert "preparing" in out.getvalue()


def test_silence_is_silent() -> None:
    with NoProgress() as display:
        tell(display, [0.0])
