from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from cutlayer.report.fleet_view import DeviceNow, FleetView, most_urgent, rounds_elapsed
from cutlayer.report.run_state import RunState

TRAINING = DeviceNow("pi-1", "training", True, 2, 10, 50, 12.34, 2**21, 2**20, 0.2)
AWAY = replace(TRAINING, name="pi-3", state="away", step=20, silent_seconds=302.4)


def running(**changes: object) -> RunState:
    state = RunState(10, 0, (), 50, started=0.0)
    row = {"round": 2, "loss": 1.25, "samples": 960, "virtual_seconds": 200.0, "validation": {"accuracy": 0.8125}}
    state.finished(row | changes, now=120.0)
    return state


def lines(view: FleetView, *, width: int = 100, height: int = 30) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width, height=height).print(view)
    return [line.rstrip() for line in out.getvalue().splitlines()]


def test_the_runs_lines_and_a_row_for_each_device() -> None:
    shown = lines(FleetView(running(), [TRAINING, replace(TRAINING, name="pi-2", step=20)], 2, now=125.0))
    assert shown[0].startswith("round 4/10")
    assert shown[0].endswith("2m 05s gone, left 4m 14s")  # 3.3 of 10 rounds in 125 s
    assert shown[1] == "loss 1.2500  accuracy 0.8125  8 samples/s"
    assert shown[2].split() == ["device", "state", "cut", "step", "samples/s", "up", "down", "last", "seen"]
    assert shown[4].split() == ["pi-1", "training", "2", "10/50", "12.3", "2.0", "MiB", "1.0", "MiB", "now"]


def test_before_the_first_round_it_says_who_is_there_and_who_is_missing() -> None:
    here, coming = DeviceNow("pi-1", "ready", silent_seconds=0.0), DeviceNow("pi-2", "preparing")
    shown = lines(FleetView(None, [here, coming, DeviceNow("pi-3", "away")], 3, now=0.0))
    assert shown[0] == "waiting for 3 devices: 1 is here"
    assert [row.split()[:2] for row in shown[3:]] == [["pi-1", "ready"], ["pi-2", "preparing"], ["pi-3", "away"]]
    assert [row.split()[-1] for row in shown[3:]] == ["now", "never", "never"]
    assert lines(FleetView(None, [], 1, now=0.0)) == ["waiting for 1 device: nobody is here yet"]


def test_it_says_for_whom_the_round_waits() -> None:
    assert "waiting for pi-3, last seen 5m 02s ago" in lines(FleetView(running(), [TRAINING, AWAY], 1, now=125.0))
    longer = replace(AWAY, name="pi-4", silent_seconds=4000.0)
    shown = lines(FleetView(running(), [AWAY, longer], 1, now=125.0))
    assert "waiting for pi-4 and 1 more, last seen 1h 07m ago" in shown
    nobody = lines(FleetView(running(), [TRAINING, replace(AWAY, awaited=False)], 1, now=125.0))
    assert not any(line.startswith("waiting") for line in nobody), "who is not in the round is not waited for"


@pytest.mark.parametrize("width", [38, 60, 80, 100])
@pytest.mark.parametrize("num_devices", [0, 2, 12, 60])
def test_it_fits_the_terminal(width: int, num_devices: int) -> None:
    devices = [replace(AWAY if index % 9 == 5 else TRAINING, name=f"jetson-{index:02}") for index in range(num_devices)]
    shown = lines(FleetView(running(), devices, 2, now=125.0), width=width)
    assert len(shown) <= 30
    assert max(map(len, shown)) <= width
    assert "…" not in "".join(shown), "a column that does not fit is left out, not cut"


def test_the_name_and_the_state_are_the_last_to_go() -> None:
    shown = lines(FleetView(running(), [TRAINING], 1, now=125.0), width=22)
    assert any(line.split() == ["device", "state"] for line in shown)


def test_where_there_is_no_room_those_who_hold_up_the_round_are_shown() -> None:
    fleet = [replace(TRAINING, name=f"pi-{index}", step=index) for index in range(10)]
    fleet[7] = replace(fleet[7], state="away")
    fleet[8] = replace(fleet[8], state="ready", awaited=False, step=50)
    assert [device.name for device in most_urgent(fleet, 3)] == ["pi-0", "pi-1", "pi-7"]
    shown = lines(FleetView(running(), fleet, 1, now=125.0), height=15)
    assert shown[-1] == "and 7 more: 6 training, 1 ready"


def test_names_are_never_read_as_markup() -> None:
    shown = lines(FleetView(running(), [replace(TRAINING, name="[red]pi[/red]")], 1, now=125.0))
    assert "[red]pi[/red]" in shown[4]


def test_a_round_is_as_far_as_its_devices() -> None:
    idle = DeviceNow("pi-2", "ready")
    assert rounds_elapsed(running(), [TRAINING, idle]) == pytest.approx(3.2)
    assert rounds_elapsed(running(), []) == 3.0
    assert rounds_elapsed(running(round=9), [TRAINING]) == 10.0
