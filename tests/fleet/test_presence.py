"""Devices that drop out and come back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cutlayer.errors import ConfigError
from cutlayer.fleet.clock import now, run_virtual, until
from cutlayer.fleet.link import Gateway, modelled_link
from cutlayer.fleet.machine import ModelledMachine, Work
from cutlayer.fleet.presence import Hours, hours_of, mustered, passing, share_here
from cutlayer.fleet.profile import DeviceProfile, Fleet, Trace, load_fleet
from cutlayer.testing.playground import fleet_of
from cutlayer.types import Event
from cutlayer.wire.frames import frame_bytes
from cutlayer.wire.messages import Finish

TRACE = Trace(here_seconds=((0, 2), (3, 5)), every_seconds=10)


def device(name: str = "phone", availability: float | Trace = TRACE) -> DeviceProfile:
    return fleet_of(1).devices[0].model_copy(update={"name": name, "availability": availability})


def fleet(*availability: float | Trace) -> Fleet:
    made = fleet_of(len(availability))
    devices = [one.model_copy(update={"availability": a}) for one, a in zip(made.devices, availability, strict=True)]
    return made.model_copy(update={"devices": tuple(devices)})


def present(whole: Fleet, round: int, *, seconds: float = 0.0, seed: int = 0, all_of_them: bool = False) -> list[str]:
    async def names() -> list[str]:
        here = await mustered(whole, round, seed, all_of_them=all_of_them)
        return [one.name for one in here.devices]

    return run_virtual(names(), start_seconds=seconds)


def test_a_trace_comes_again_and_again() -> None:
    hours = Hours(TRACE)
    here = [second / 2 for second in range(60) if hours.is_here(second / 2)]
    assert here == [10 * cycle + half / 2 for cycle in range(3) for half in (0, 1, 2, 3, 6, 7, 8, 9)]
    assert (hours.gone(1.0), hours.gone(13.5), hours.back(2.0), hours.back(5.0), hours.back(19.9)) == (2, 15, 3, 10, 20)


def test_what_it_comes_back_at_is_a_time_at_which_it_is_here() -> None:
    """To the bit, at times whose sums are not whole."""
    hours = Hours(Trace(here_seconds=((0.1, 0.3),), every_seconds=0.7), 0.123456789)
    time = 0.0
    for _ in range(1000):
        time = hours.back(time)
        assert hours.is_here(time)
        time = hours.gone(time)
        assert not hours.is_here(time)


def stretches(seconds: float, start: float, *, always: bool = False) -> list[tuple[float, float]]:
    async def listed(passed: AsyncIterator[tuple[float, float]]) -> list[tuple[float, float]]:
        return [stretch async for stretch in passed]

    return run_virtual(listed(passing(seconds, None if always else Hours(TRACE))), start_seconds=start)


def test_time_passes_while_a_device_is_there() -> None:
    assert stretches(1.5, 0.0) == [(0, 1.5)]
    assert stretches(2.0, 0.0) == [(0, 2)], "it has finished as it goes"
    assert stretches(3.0, 1.0) == [(1, 2), (3, 5)]
    assert stretches(5.0, 2.5) == [(3, 5), (10, 12), (13, 14)]
    assert stretches(0.0, 2.5) == [(3, 3)]
    assert stretches(5.0, 2.5, always=True) == [(2.5, 7.5)]


def test_work_waits_for_its_machine() -> None:
    """An event for each stretch; FLOPs and busy seconds are those of the time in which it was there."""
    events: list[Event] = []

    async def program() -> float:
        machine = ModelledMachine("phone", 2e9, events.append, hours=Hours(TRACE))
        await machine.run(int, like=int, what="forward", flops=5e9, round=0, step=0)
        await machine.run_in_turn([Work(int, int, "backward", 2e9)], round=0, step=0)
        return machine.busy_seconds

    assert run_virtual(program()) == 3.5
    assert [(e.what, e.start_seconds, e.end_seconds, e.flops) for e in events] == [
        ("forward", 0, 2, 4e9),
        ("forward", 3, 3.5, 1e9),
        ("backward", 3.5, 4.5, 2e9),
    ]


@pytest.mark.parametrize("shared", [False, True])
def test_messages_wait_for_their_device(shared: bool) -> None:
    """Whether it has its link to itself, or shares the server's connection."""
    message = Finish("run", 0, "x" * 1000)
    rate = 8 * frame_bytes(message) / 3  # three seconds
    profile = device().model_copy(
        update={"up_bits_per_second": rate, "down_bits_per_second": rate, "latency_seconds": 0.25}
    )
    server = fleet_of(1).server.model_copy(update={"up_bits_per_second": 10 * rate} if shared else {})
    events: list[Event] = []

    async def program() -> float:
        up, down = modelled_link(profile, events.append, Gateway(server), Hours(TRACE))
        await asyncio.gather(up.send(message), down.receive())
        return now()

    assert run_virtual(program(), start_seconds=1.0) == pytest.approx(5.25)
    assert [(e.start_seconds, e.end_seconds, e.num_bytes) for e in events] == [
        (1, 2, 0),
        (3, pytest.approx(5), frame_bytes(message)),
    ]


def test_a_probability_is_of_a_round() -> None:
    whole = fleet(0.7, 1.0, 0.2)
    rounds = [present(whole, round) for round in range(400)]
    shares = [sum(f"device-{n}" in here for here in rounds) / len(rounds) for n in range(3)]
    assert shares == [pytest.approx(0.7, abs=0.07), 1.0, pytest.approx(0.2, abs=0.07)]
    assert present(whole, 7, seed=1) == present(whole, 7, seed=1)
    assert [present(whole, round, seed=1) for round in range(400)] != rounds
    assert [present(whole, round, all_of_them=True) for round in range(400)] == rounds, "it is in none of the round"


def test_there_is_always_somebody() -> None:
    rounds = [present(fleet(0.01, 0.01, 0.01), round) for round in range(50)]
    assert all(rounds)
    assert len({tuple(here) for here in rounds}) > 1


def test_a_trace_is_by_the_clock() -> None:
    whole = fleet(TRACE, 1.0)
    assert present(whole, 0, seconds=1.0) == ["device-0", "device-1"]
    assert present(whole, 0, seconds=2.0) == ["device-1"]
    assert present(whole, 0, seconds=2.0, all_of_them=True) == ["device-0", "device-1"], "it is waited for"


def test_a_round_waits_for_its_first_device() -> None:
    async def program() -> tuple[list[str], float]:
        here = await mustered(fleet(TRACE, Trace(here_seconds=((4, 9),), every_seconds=20)), 0, 0, all_of_them=False)
        return [one.name for one in here.devices], now()

    assert run_virtual(program(), start_seconds=10.0 - 4.5) == (["device-1"], 5.5)
    assert run_virtual(program(), start_seconds=9.5) == (["device-0"], 10.0)


def test_a_whole_fleet_is_the_fleet_itself() -> None:
    whole = fleet(1.0, 1.0)
    assert run_virtual(mustered(whole, 0, 0, all_of_them=False)) is whole
    assert hours_of(whole.devices[0], 0) is None
    assert hours_of(device(availability=0.5), 0) is None


def test_a_random_start_is_by_name_and_seed() -> None:
    trace = TRACE.model_copy(update={"random_start": True})

    def backs(name: str, seed: int) -> list[float]:
        hours = hours_of(device(name, trace), seed)
        assert hours is not None
        return [hours.back(time) for time in range(20)]

    assert backs("phone-1", 0) == backs("phone-1", 0)
    assert backs("phone-1", 0) != backs("phone-2", 0)
    assert backs("phone-1", 0) != backs("phone-1", 1)


def test_the_part_of_the_time() -> None:
    assert [share_here(device(availability=a)) for a in (1.0, 0.3, TRACE)] == [1.0, 0.3, 0.4]


def written(tmp_path: Path, **row: Any) -> DeviceProfile:
    content = {
        "server": {"tflops": 1, "efficiency": 0.3, "memory_gib": 4},
        "defaults": {"efficiency": 0.3, "up_mbit": 1, "down_mbit": 1, "latency_ms": 5, "memory_gib": 1},
        "devices": [{"name": "phone", "tflops": 1, **row}],
    }
    (tmp_path / "fleet.yaml").write_text(yaml.safe_dump(content))
    return load_fleet(str(tmp_path / "fleet.yaml")).devices[0]


def test_the_fleet_file(tmp_path: Path) -> None:
    assert written(tmp_path).availability == 1.0
    assert written(tmp_path, availability="always").availability == 1.0
    assert written(tmp_path, availability=0.8).availability == 0.8
    trace = {"here_seconds": [[0, 2], [3, 5]], "every_seconds": 10}
    assert written(tmp_path, availability=trace).availability == TRACE
    profile = written(tmp_path, availability=trace)
    assert DeviceProfile.model_validate(profile.model_dump(mode="json")) == profile


@pytest.mark.parametrize(
    "availability",
    [
        0,
        1.5,
        "sometimes",
        {"here_seconds": [], "every_seconds": 10},
        {"here_seconds": [[0, 0]], "every_seconds": 10},
        {"here_seconds": [[0, 5], [4, 6]], "every_seconds": 10},
        {"here_seconds": [[0, 11]], "every_seconds": 10},
        {"here_seconds": [[-1, 5]], "every_seconds": 10},
        {"here_seconds": [[0, 5]]},
        {"here_seconds": [[0, 5]], "every_seconds": 10, "shifted": True},
    ],
    ids=str,
)
def test_what_is_no_availability(availability: object, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"device 'phone', availability: expected the availability: always, "):
        written(tmp_path, availability=availability)


def test_until_is_a_time_to_the_bit() -> None:
    async def program() -> list[float]:
        times = []
        for time in (0.1, 0.3, 0.2, 1 / 3, 1e6 + 0.1):
            await until(time)
            times.append(now())
        return times

    assert run_virtual(program()) == [0.1, 0.3, 0.3, 1 / 3, 1e6 + 0.1]


def test_a_time_does_not_depend_on_what_else_happens() -> None:
    """Two chains of timers are what each is by itself: a resumed run repeats one without the other.

    With these steps a clock that adds the difference to the next timer is off in the last bit.
    """

    async def chain(step: float, times: list[float]) -> None:
        for _ in range(61):
            await asyncio.sleep(step)
            times.append(now())

    async def both() -> tuple[list[float], list[float]]:
        one: list[float] = []
        other: list[float] = []
        await asyncio.gather(chain(0.9509898815117322, one), chain(0.005264080767205744, other))
        return one, other

    async def alone() -> list[float]:
        times: list[float] = []
        await chain(0.9509898815117322, times)
        return times

    assert run_virtual(both())[0] == run_virtual(alone())
