"""The allotment of a device for a round: its clock, its share of a connection, and the energy of both."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
import torch

from cutlayer.fleet.allotment import Allotment, frequency_of, joules
from cutlayer.fleet.clock import now, run_virtual
from cutlayer.fleet.link import Gateway, modelled_link
from cutlayer.fleet.machine import Machine, ModelledMachine, RealMachine
from cutlayer.testing.playground import fleet_of
from cutlayer.types import DevicePlan, Event
from cutlayer.wire.messages import Assignment, Facts


def test_a_plan_says_at_what_clock() -> None:
    assert frequency_of(DevicePlan("pi")) == 1.0
    assert frequency_of(DevicePlan("pi").having(Allotment(0.4, 0.1))) == 0.4


async def work(machine: Machine) -> None:
    await machine.run(lambda: None, like=lambda: None, what="step", flops=1e9, round=0, step=0)


def test_a_modelled_machine_takes_longer() -> None:
    events: list[Event] = []

    async def program() -> float:
        machine = ModelledMachine("pi", 1e9, events.append)
        for frequency in (1.0, 0.25, 1.0):
            machine.set_pace(frequency)
            await work(machine)
        return now()

    assert run_virtual(program()) == pytest.approx(6.0)
    assert [event.end_seconds - event.start_seconds for event in events] == pytest.approx([1.0, 4.0, 1.0])


def test_a_real_machine_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("cutlayer.fleet.machine.time.sleep", slept.append)
    machine = RealMachine("pi", lambda _: None)

    async def program() -> None:
        await work(machine)
        machine.set_pace(0.5)
        await work(machine)

    asyncio.run(program())
    machine.close()
    assert len(slept) == 1, "at full speed it does not rest"


def test_a_share_of_the_connection_is_given_with_the_assignment() -> None:
    """Three quarters and one quarter, though both send as much."""
    fleet = fleet_of(2)
    server = fleet.server.model_copy(update={"up_bits_per_second": 1e5})
    events: list[Event] = []
    load = {"load": torch.zeros(1000)}

    async def program() -> None:
        gateway = Gateway(server)
        ends = [modelled_link(profile, events.append, gateway) for profile in fleet.devices]
        for profile, (_, server_end), share in zip(fleet.devices, ends, (0.75, 0.25), strict=True):
            plan = DevicePlan(profile.name).having(Allotment(1.0, share))
            await server_end.send(Assignment("run", 0, profile.name, plan, (0.1,), {}))
        messages = [Facts("run", 0, 0, profile.name, load) for profile in fleet.devices]
        await asyncio.gather(*(end.send(message) for (end, _), message in zip(ends, messages, strict=True)))

    run_virtual(program())
    first, second = (event for event in events if event.what == "upload")
    assert (first.who, second.who) == ("device-0", "device-1")
    took = [event.end_seconds - event.start_seconds for event in (first, second)]
    bits = 8 * first.num_bytes
    assert took[0] == pytest.approx(bits / 0.75e5)
    assert took[1] == pytest.approx(took[0] + (bits - 0.25e5 * took[0]) / 1e5)


def test_energy() -> None:
    phone = fleet_of(1).devices[0]
    assert joules(phone, 3.0, 5.0) == pytest.approx(10 * 3 + 5)
    half = joules(phone, 6.0, 0.0, 0.5)
    assert half == pytest.approx(joules(phone, 3.0, 0.0) / 4), "twice the time, an eighth of the power"
    assert replace(Allotment(), frequency=0.5) == Allotment(0.5)
