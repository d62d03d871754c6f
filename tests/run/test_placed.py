"""Devices that cannot be placed are left out, and nobody else is."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from cutlayer.errors import BudgetError, ConfigError, UnplacedError
from cutlayer.fleet.clock import run_virtual
from cutlayer.fleet.machine import ModelledMachine
from cutlayer.policies.cut import cut_at, cut_by_memory
from cutlayer.policies.plan import Situation, make_plan
from cutlayer.policies.select import everyone
from cutlayer.run.placed import placed, unplaced_by
from cutlayer.testing.playground import FlatCosts, fleet_of
from cutlayer.testing.tiny import BLOCKS
from cutlayer.types import History, RoundPlan


def situation(**changes: Mapping[str, Any]) -> Situation:
    """Three devices; `changes` are fields of some of them."""
    fleet = fleet_of(3)
    devices = [device.model_copy(update=changes.get(device.name.replace("-", "_"), {})) for device in fleet.devices]
    fleet = fleet.model_copy(update={"devices": tuple(devices)})
    return Situation(fleet, FlatCosts(BLOCKS), History(), num_tokens=10, batch_size=4, local_steps=2)


def by_memory(now: Situation) -> RoundPlan:
    return make_plan((everyone(), cut_by_memory()), 0, now)


def played(
    start: Situation, plan: Callable[[Situation], RoundPlan], *, may: bool = True
) -> tuple[RoundPlan, dict[str, Exception]]:
    """The plan, and who was left out with what."""
    left: dict[str, Exception] = {}

    def leave_out(unplaced: Mapping[str, Exception]) -> bool:
        left.update(unplaced)
        return may

    async def muster() -> Situation:
        devices = tuple(device for device in start.fleet.devices if device.name not in left)
        return start.of(start.fleet.model_copy(update={"devices": devices}))

    async def run() -> RoundPlan:
        machine = ModelledMachine("server", 1e9, lambda _: None)
        return (await placed(start, plan, muster, leave_out, machine))[1]

    return run_virtual(run()), left


def test_where_everybody_has_a_place_nobody_is_left_out() -> None:
    plan, left = played(situation(), by_memory)
    assert (len(plan.devices), left) == (3, {})


@pytest.mark.parametrize(("claim", "error"), [({"memory_bytes": 1}, BudgetError), ({"max_blocks": 0}, UnplacedError)])
def test_who_offers_too_little_is_left_out(claim: dict[str, Any], error: type[Exception]) -> None:
    plan, left = played(situation(device_1=claim), by_memory)
    assert [device.device for device in plan.devices] == ["device-0", "device-2"]
    assert list(left) == ["device-1"]
    assert isinstance(left["device-1"], error)


def test_all_but_one_are_left_out_one_after_the_other() -> None:
    plan, left = played(situation(device_0={"memory_bytes": 1}, device_2={"max_blocks": 0}), by_memory)
    assert [device.device for device in plan.devices] == ["device-1"]
    assert set(left) == {"device-0", "device-2"}


def test_a_planner_that_fails_with_a_device_costs_that_device_alone(caplog: pytest.LogCaptureFixture) -> None:
    def divides(now: Situation) -> RoundPlan:
        assert all(1 / (device.latency_seconds - 2.0) for device in now.fleet.devices)
        return by_memory(now)

    with caplog.at_level(logging.WARNING, "cutlayer.refused"):
        plan, left = played(situation(device_2={"latency_seconds": 2.0}), divides)
    assert [device.device for device in plan.devices] == ["device-0", "device-1"]
    assert isinstance(left["device-2"], ZeroDivisionError)
    assert "device device-2: planning failed with it" in caplog.text


def test_a_planner_that_fails_with_two_together_leaves_out_one() -> None:
    def apart(now: Situation) -> RoundPlan:
        if {"device-0", "device-2"} <= {device.name for device in now.fleet.devices}:
            raise ConfigError("they cannot be together")
        return by_memory(now)

    plan, left = played(situation(), apart)
    assert (len(plan.devices), list(left)) == (2, ["device-0"])


def test_what_a_person_got_wrong_is_nobody_elses_fault() -> None:
    def plan(now: Situation) -> RoundPlan:
        return make_plan((everyone(), cut_at(9)), 0, now)

    with pytest.raises(ConfigError, match=r"method.cut: expected 0 to 3"):
        played(situation(), plan)
    assert unplaced_by(plan, situation(), ConfigError("method.cut")) == {}


def test_where_devices_must_stay_the_error_is_the_runs() -> None:
    with pytest.raises(BudgetError):
        played(situation(device_1={"memory_bytes": 1}), by_memory, may=False)


def test_an_error_about_a_machine_that_is_no_device_is_the_runs() -> None:
    error = BudgetError("span gpu", device="gpu", need_bytes=2, have_bytes=1)
    assert unplaced_by(by_memory, situation(), error) == {}


def test_the_situation_goes_with_the_plan() -> None:
    start = situation(device_1={"memory_bytes": 1})
    counts = {device.name: (1, 2) for device in start.fleet.devices}

    async def run() -> Situation:
        left: list[str] = []

        async def muster() -> Situation:
            devices = tuple(device for device in start.fleet.devices if device.name not in left)
            return replace(start, label_counts=counts).of(start.fleet.model_copy(update={"devices": devices}))

        def leave_out(unplaced: Mapping[str, Exception]) -> bool:
            left.extend(unplaced)
            return True

        machine = ModelledMachine("server", 1e9, lambda _: None)
        return (await placed(replace(start, label_counts=counts), by_memory, muster, leave_out, machine))[0]

    assert set(run_virtual(run()).label_counts) == {"device-0", "device-2"}
