"""Plans on the Pareto front of time and energy: what they reckon, which of them is played, and what the clock says."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cutlayer.config import read_config
from cutlayer.errors import ConfigError
from cutlayer.fleet.allotment import Allotment
from cutlayer.policies.cut import cut_at
from cutlayer.policies.delay import delayed
from cutlayer.policies.labels import labels_on_devices
from cutlayer.policies.pareto import CLOCKS, SHARES, Tradeoff, chosen, found, pareto_plan, tradeoff_of
from cutlayer.policies.pareto_search import front, hypervolume, span_of
from cutlayer.policies.select import everyone
from cutlayer.run.inputs import method_of, prepare
from cutlayer.run.loop import Logbook
from cutlayer.run.rehearsed import rehearse
from cutlayer.run.run import situation_of
from cutlayer.testing.playground import fleet_of, planned
from cutlayer.types import RoundPlan
from real import values_for

SMALL = replace(
    Tradeoff(
        cuts=((1, 2), (1, 2, 3)),
        flops=((4e9, 8e9), (4e9, 8e9, 12e9)),
        server_flops=((3e9, 2e9), (3e9, 2e9, 1e9)),
        bits=(((2e6, 2e6),) * 2, ((2e6, 2e6),) * 3),
        adapter_bits=((1e5, 2e5), (1e5, 2e5, 3e5)),
        speeds=(1e9, 3e9),
        rates=((1e7, 2e7), (4e6, 2e7)),
        latencies=(0.01, 0.02),
        watts=(10.0, 20.0),
        radio=(1.0, 2.0),
        server_speed=1e10,
        capacity=(1e7, float("inf")),
        steps=(4, 4),
        delays=(0, 0),
    )
)


def by_hand(tradeoff: Tradeoff, cuts: tuple[int, int], shares: tuple[int, int], clocks: tuple[float, float]) -> Any:
    """One plan, device by device."""
    seconds, joules, served = [], 0.0, 0.0
    for k in range(2):
        c = tradeoff.cuts[k].index(cuts[k])
        share = shares[k] / sum(shares)
        up = min(tradeoff.rates[k][0], share * tradeoff.capacity[0])
        down = min(tradeoff.rates[k][1], share * tradeoff.capacity[1])
        compute = tradeoff.flops[k][c] / tradeoff.speeds[k] / clocks[k]
        server = tradeoff.server_flops[k][c] / tradeoff.server_speed
        sent, got = tradeoff.bits[k][c][0] / up, tradeoff.bits[k][c][1] / down
        ends = tradeoff.adapter_bits[k][c] * (1 / up + 1 / down)
        chain = compute + server + sent + got + 4 * tradeoff.latencies[k]
        period = max(compute, server, sent, got, chain / (1 + tradeoff.delays[k]))
        steps = tradeoff.steps[k]
        seconds.append(ends + 2 * tradeoff.latencies[k] + chain + (steps - 1) * period)
        served += steps * server
        joules += tradeoff.watts[k] * clocks[k] ** 3 * steps * compute
        joules += tradeoff.radio[k] * (ends + steps * (sent + got))
    return max(*seconds, served), joules


@pytest.mark.parametrize("delays", [(0, 0), (1, 2)])
def test_time_and_energy_by_hand(delays: tuple[int, int]) -> None:
    tradeoff = replace(SMALL, delays=delays)
    every = np.indices(tradeoff.sizes.ravel()).reshape(6, -1).T.reshape(-1, 2, 3)
    points = tradeoff.of(every)
    assert len(every) == 2 * 3 * 25 * 16
    for place in range(0, len(every), 97):
        first, second = every[place]
        cuts = tradeoff.cuts[0][first[0]], tradeoff.cuts[1][second[0]]
        shares, clocks = (SHARES[first[1]], SHARES[second[1]]), (CLOCKS[first[2]], CLOCKS[second[2]])
        assert points[place].tolist() == pytest.approx(by_hand(tradeoff, cuts, shares, clocks))


@pytest.mark.parametrize("search", ["enumerate", "nsga2", "gan"])
def test_every_search_against_enumeration(search: str) -> None:
    """On a fleet that is small enough to try all plans; a search may try a third of them."""
    _, whole = found(SMALL, "enumerate", 2400, 0)
    choices, points = found(SMALL, search, 2400 if search == "enumerate" else 800, 0)
    assert np.array_equal(SMALL.of(choices), points)
    assert len(front(points)) == len(points)
    low, width = span_of(whole)
    area = [hypervolume((one - low) / width, np.array([1.1, 1.1])) for one in (points, whole)]
    assert 0.97 * area[1] < area[0] <= area[1] * (1 + 1e-12)


def test_which_point_is_played() -> None:
    _, points = found(SMALL, "enumerate", 2400, 0)
    fastest, frugal = points[chosen(points, 1.0)], points[chosen(points, 0.0)]
    assert fastest[0] == points[:, 0].min()
    assert frugal[1] == points[:, 1].min()
    middle = points[chosen(points, 0.5)]
    assert fastest[0] <= middle[0] <= frugal[0]
    assert frugal[1] <= middle[1] <= fastest[1]
    assert chosen(np.array([[2.0, 3.0]]), 0.3) == 0


def plan_of(**options: Any) -> RoundPlan:
    before = (everyone(), labels_on_devices(), delayed(1))
    return planned(*before, pareto_plan(**{"search": "enumerate", **options}), num_devices=2)


def test_a_plan_has_cuts_shares_and_clocks() -> None:
    for weight in (0.0, 0.5, 1.0):
        devices = plan_of(weight=weight).devices
        allotted = [device.clause(Allotment) for device in devices]
        assert all(1 <= device.cut < 3 == device.top for device in devices)
        assert sum(one.bandwidth for one in allotted if one) == pytest.approx(1.0)
        assert {one.frequency for one in allotted if one} <= set(CLOCKS)
    assert [device.clause(Allotment).frequency for device in plan_of(weight=0.0).devices] == [0.4, 0.4]  # type: ignore[union-attr]


def test_shares_are_a_matter_of_a_connection_that_is_shared() -> None:
    assert SMALL.sizes.tolist() == [[2, 5, 4], [3, 5, 4]]
    assert replace(SMALL, capacity=(float("inf"),) * 2).sizes.tolist() == [[2, 1, 4], [3, 1, 4]]


def test_no_cut_leaves_the_server_nothing() -> None:
    plan = planned(everyone(), labels_on_devices(tail=1), pareto_plan(search="enumerate", weight=1.0))
    assert [device.cut for device in plan.devices] == [1, 1, 1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"search": "luck"}, r"method\.search: expected one of enumerate, nsga2, gan, got 'luck'\. "),
        ({"evaluations": 0}, r"method\.evaluations: expected at least 1, got 0\. "),
        ({"weight": 1.5}, r"method\.weight: expected 0 to 1, got 1\.5\. "),
        ({"least": 3}, r"method\.least: expected fewer than the blocks below the tail on device-0"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        plan_of(**options)


def test_who_has_no_head_has_no_plan() -> None:
    with pytest.raises(ConfigError, match="the blocks below the tail"):
        planned(everyone(), pareto_plan(search="enumerate"))


def fleet(up_mbit: float | None) -> dict[str, Any]:
    slow = {"name": "slow", "tflops": 0.00001, "watts": 8, "radio_watts": 3}
    shared = {} if up_mbit is None else {"up_mbit": up_mbit, "down_mbit": up_mbit}
    return {
        "server": {"tflops": 0.001, "efficiency": 0.3, "memory_gib": 4, **shared},
        "defaults": {"efficiency": 0.3, "up_mbit": 10, "down_mbit": 20, "latency_ms": 5, "memory_gib": 1},
        "devices": [slow, {"name": "quick", "tflops": 0.00003, "count": 2}],
    }


@pytest.mark.parametrize("up_mbit", [None, 1.0])
@pytest.mark.parametrize("delay", [0, 1])
def test_a_round_takes_what_was_reckoned(delay: int, up_mbit: float | None, inputs: Path) -> None:
    """On the virtual clock, the real conversation."""
    values = values_for(
        inputs,
        fleet=fleet(up_mbit),
        train__local_steps=6,
        method__name="gan_hfsl",
        method__delay=delay,
        method__search="enumerate",
    )
    made = prepare(read_config(None, values=values))
    method = method_of(made.config)
    situation = situation_of(made, Logbook())
    plan = method.make_plan(0, situation)
    tradeoff = tradeoff_of(plan, situation)
    assert (tradeoff.watts[0], tradeoff.radio[0]) == (8.0, 3.0)
    allotted = [device.clause(Allotment) for device in plan.devices]
    shares = np.array([one.bandwidth for one in allotted if one])
    weights = next(w for w in itertools.product(SHARES, repeat=3) if np.allclose(np.array(w) / sum(w), shares))
    choice = np.array(
        [
            [tradeoff.cuts[k].index(device.cut), weights[k] - 1, CLOCKS.index(allotted[k].frequency)]  # type: ignore[union-attr]
            for k, device in enumerate(plan.devices)
        ]
    )
    reckoned = float(tradeoff.of(choice[None])[0, 0])
    played = rehearse(made, method, plan, situation.num_tokens).seconds
    assert 0.75 < played / reckoned < 1.3


def test_plans_are_made_for_those_who_take_part() -> None:
    plan = planned(everyone(), labels_on_devices(), cut_at(1))
    two = RoundPlan(0, plan.devices[:2])
    assert len(fleet_of(3).devices) == 3
    made = pareto_plan(search="enumerate")
    situation_plan = planned(lambda _plan, _situation: two, made, num_devices=3)
    assert [device.device for device in situation_plan.devices] == ["device-0", "device-1"]
