"""Speeds that change every few rounds."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import pytest

import cutlayer
from cutlayer.fleet.clock import run_virtual
from cutlayer.fleet.machine import ModelledMachine, Work
from cutlayer.fleet.modes import always_fast, speed_mode
from cutlayer.fleet.profile import DeviceProfile, load_fleet
from cutlayer.testing.playground import fleet_of
from cutlayer.types import Event

MODES = (1.0, 0.6, 0.3)


def device(name: str = "jetson-1", modes: tuple[float, ...] = MODES, mode_rounds: int = 5) -> DeviceProfile:
    changes = {"name": name, "modes": modes, "mode_rounds": mode_rounds}
    return fleet_of(1).devices[0].model_copy(update=changes)


def test_a_mode_lasts_its_rounds_and_then_another_is_drawn() -> None:
    mode = speed_mode(device())
    speeds = [mode(round) for round in range(1000)]
    periods = [set(speeds[start : start + 5]) for start in range(0, 1000, 5)]
    assert all(len(period) == 1 for period in periods)
    drawn = Counter(speed for period in periods for speed in period)
    assert drawn.keys() == set(MODES)
    assert all(40 < times < 95 for times in drawn.values()), "200 draws, all alike"


def test_it_is_a_function_of_name_and_round() -> None:
    """Asked in any order, by anybody; devices differ."""
    forth, back = speed_mode(device()), speed_mode(device())
    speeds = [forth(round) for round in range(100)]
    assert [back(round) for round in reversed(range(100))] == speeds[::-1]
    others = [[speed_mode(device(f"jetson-{number}"))(round) for round in range(100)] for number in range(2, 6)]
    assert all(one != other for one, other in itertools.combinations([speeds, *others], 2))


def test_one_mode_is_a_speed_that_stays() -> None:
    assert speed_mode(device(modes=(1.0,))) is always_fast
    assert {speed_mode(device(modes=(0.25,)))(round) for round in range(40)} == {0.25}


def test_work_takes_longer_in_a_slower_mode() -> None:
    events: list[Event] = []
    profile = device(modes=(1.0, 0.5))
    mode = speed_mode(profile)

    async def program() -> None:
        machine = ModelledMachine("jetson-1", 2e9, events.append, mode)
        for round in range(0, 40, 2):
            await machine.run(int, like=int, what="forward", flops=3e9, round=round, step=0)
            await machine.run_in_turn([Work(int, int, "backward", 3e9)], round=round + 1, step=0)

    run_virtual(program())
    lasted = [event.end_seconds - event.start_seconds for event in events]
    assert lasted == pytest.approx([1.5 / mode(round) for round in range(40)])
    assert {round(seconds, 6) for seconds in lasted} == {1.5, 3.0}


def test_nobody_who_decides_can_see_them() -> None:
    """Speed is measured, not declared: only what plays the machines knows the mode of a round."""
    source = Path(cutlayer.__file__).parent
    knowing = {
        path.relative_to(source).as_posix() for path in source.rglob("*.py") if "fleet.modes" in path.read_text()
    }
    assert knowing == {"fleet/machine.py", "run/simulated.py"}
    assert device().effective_flops == fleet_of(1).devices[0].effective_flops


def test_a_fleet_file_says_them(tmp_path: Path) -> None:
    path = tmp_path / "lab.yaml"
    path.write_text(
        "server: {tflops: 50, efficiency: 0.5, memory_gib: 16}\n"
        "defaults: {efficiency: 0.3, memory_gib: 8, up_mbit: 9, down_mbit: 9, latency_ms: 5, mode_rounds: 7}\n"
        "devices:\n  - {name: a, tflops: 1, modes: [1, 0.5]}\n  - {name: b, tflops: 1, mode_rounds: 3}\n"
    )
    one, other = load_fleet(path).devices
    assert (one.modes, one.mode_rounds) == ((1.0, 0.5), 7)
    assert (other.modes, other.mode_rounds) == ((1.0,), 3)
