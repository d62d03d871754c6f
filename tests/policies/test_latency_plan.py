"""Cuts by latency, held against enumeration, against shares on a grid, against the clock and formulas by hand."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bases import open_base
from cutlayer.errors import BudgetError, ConfigError
from cutlayer.fleet.profile import DeviceProfile, Fleet, ServerProfile
from cutlayer.methods.table import build_method
from cutlayer.policies import latency_plan
from cutlayer.policies.cut import cut_at, cut_by_memory, whole_model
from cutlayer.policies.latency_plan import LatencyPlan, cut_by_latency, latency_of, link_slowdown
from cutlayer.policies.plan import Situation, make_plan
from cutlayer.policies.select import everyone
from cutlayer.server.forecast import Forecast
from cutlayer.testing.playground import FlatCosts, ListedBatches, play, with_rows
from cutlayer.testing.tiny import random_batch
from cutlayer.types import DevicePlan, History, RoundPlan

ModelMaker = Callable[[str, str], Path]
MIB = 2**20
BATCH, TOKENS = 4, 10


def situation_of(
    speeds: Sequence[float] = (1e9, 2e9, 4e9),
    *,
    blocks: int = 3,
    links: Sequence[tuple[float, float]] = (),
    server: float = 3e10,
    capacity: tuple[float | None, float | None] = (None, None),
    memory: Sequence[int] = (),
    max_blocks: Sequence[int | None] = (),
    **changes: Any,
) -> Situation:
    """Devices of these speeds, with costs of a MFLOP per block, sample and token, and a MiB per block."""
    number = len(speeds)
    links, memory = links or [(1e6, 2e6)] * number, memory or [2**40] * number
    max_blocks = max_blocks or [None] * number
    fleet = Fleet(
        name="play",
        source="made up",
        server=ServerProfile(
            flops_per_second=server,
            efficiency=1.0,
            memory_bytes=2**34,
            up_bits_per_second=capacity[0],
            down_bits_per_second=capacity[1],
        ),
        devices=tuple(
            DeviceProfile(
                name=f"device-{index}",
                flops_per_second=speeds[index],
                efficiency=1.0,
                memory_bytes=memory[index],
                up_bits_per_second=links[index][0],
                down_bits_per_second=links[index][1],
                latency_seconds=0.01,
                max_blocks=max_blocks[index],
            )
            for index in range(number)
        ),
    )
    settings: dict[str, Any] = {"num_tokens": TOKENS, "batch_size": BATCH, "local_steps": 3} | changes
    return Situation(fleet, FlatCosts(blocks), History(), **settings)


def random_situation(seed: int) -> Situation:
    """A small fleet in which any of compute, links, the server and its connection may be what holds up a round."""
    draw = np.random.default_rng(seed)
    number, blocks = int(draw.integers(2, 5)), int(draw.integers(2, 6))
    capacities = [float(10 ** draw.uniform(5, 7)) if draw.random() < 0.7 else None for _ in range(2)]
    return situation_of(
        (10 ** draw.uniform(8.5, 10.5, number)).tolist(),
        blocks=blocks,
        links=(10 ** draw.uniform(5, 7, (number, 2))).tolist(),
        server=float(10 ** draw.uniform(8.5, 11)),
        capacity=(capacities[0], capacities[1]),
        memory=[MIB * int(draw.integers(2, 3 + blocks)) for _ in range(number)],
        max_blocks=[None if draw.random() < 0.5 else int(draw.integers(1, blocks + 2)) for _ in range(number)],
        local_steps=int(draw.integers(1, 5)),
    )


def everybody(situation: Situation) -> RoundPlan:
    return make_plan((everyone(),), 0, situation)


def cuts(plan: RoundPlan) -> list[int]:
    return [device.cut for device in plan.devices]


def with_cuts(plan: RoundPlan, chosen: Sequence[int]) -> RoundPlan:
    return replace(plan, devices=tuple(replace(d, cut=cut) for d, cut in zip(plan.devices, chosen, strict=True)))


def allowed(situation: Situation) -> list[list[int]]:
    """The cuts that memory and owner allow each device: a block takes a MiB, the embeddings another."""
    blocks = situation.costs.num_blocks
    return [
        [cut for cut in range(1, blocks + 1) if 1 + cut <= d.memory_bytes / MIB and cut <= (d.max_blocks or blocks)]
        for d in situation.fleet.devices
    ]


def seconds_by_hand(situation: Situation, device: DevicePlan, beta: Any, phi: Any, seconds: Any) -> Any:
    """Seconds of a device's round with these shares; infinite where the server's share of `seconds` is too small.

    Written out from what devices send and compute, in another way than the planner's; arrays broadcast.
    """
    profile, costs, steps = situation.profile(device.device), situation.costs, device.local_steps
    shape = (device, device.batch_size, situation.num_tokens)
    own, served = costs.device(*shape), costs.server(*shape)
    adapter, activations = 8 * costs.device_adapter_bytes(device), 8 * costs.activation_bytes(*shape[1:])
    server, w = (
        situation.fleet.server,
        (served.forward_flops + served.backward_flops) / situation.fleet.server.effective_flops,
    )

    def rate(own_rate: float, capacity: float | None, share: Any) -> Any:
        return own_rate if capacity is None else np.minimum(own_rate, capacity * share)

    def transfers(share: Any, steps: int) -> Any:
        up = rate(profile.up_bits_per_second, server.up_bits_per_second, share)
        down = rate(profile.down_bits_per_second, server.down_bits_per_second, share)
        return (adapter + steps * activations) / up + (adapter + steps * activations) / down

    step = (own.forward_flops + own.backward_flops) / profile.effective_flops + 2 * profile.latency_seconds
    total = 2 * profile.latency_seconds + steps * step + transfers(beta, steps) + (steps - 1) * w + w / phi
    ends = 2 * profile.latency_seconds + step + transfers(1.0, 1)
    return np.where(steps * w <= phi * (seconds - ends) * (1 + 1e-6), total, np.inf)


# ------------------------------------------------------------------ the seconds of given cuts


@pytest.mark.parametrize("seed", range(30))
def test_the_shares_do_what_they_promise(seed: int) -> None:
    situation = random_situation(seed)
    plan = with_cuts(everybody(situation), [options[-1] for options in allowed(situation)])
    found = latency_of(plan, situation)
    assert sum(found.server_shares.values()) <= 1
    assert sum(found.bandwidth_shares.values()) <= 1
    if situation.fleet.server.up_bits_per_second is situation.fleet.server.down_bits_per_second is None:
        assert found.bandwidth_shares == {}
    for device in plan.devices:
        beta, phi = found.bandwidth_shares.get(device.device, 1.0), found.server_shares[device.device]
        assert seconds_by_hand(situation, device, beta, phi, found.seconds) <= found.seconds * (1 + 1e-6)


@pytest.mark.parametrize("seed", range(30))
def test_no_shares_of_two_devices_do_better(seed: int) -> None:
    """Both shares on a fine grid, the other device having the rest."""
    situation = random_situation(seed)
    situation = replace(situation, fleet=situation.fleet.model_copy(update={"devices": situation.fleet.devices[:2]}))
    plan = with_cuts(everybody(situation), [options[0] for options in allowed(situation)])
    found = latency_of(plan, situation).seconds
    grid = 1 / (1 + np.exp(-np.linspace(-9, 9, 1201)))
    betas, phis = np.meshgrid(grid, grid, indexing="ij")
    one, other = plan.devices
    for factor, possible in ((1 - 1e-3, False), (1 + 0.02, True)):
        tau = found * factor
        first = seconds_by_hand(situation, one, betas, phis, tau)
        second = seconds_by_hand(situation, other, 1 - betas, 1 - phis, tau)
        assert bool((np.maximum(first, second) <= tau).any()) == possible


@pytest.mark.parametrize("seed", range(20))
def test_more_seconds_can_be_had_and_fewer_cannot(seed: int) -> None:
    """Bisection is right: what can be had is all above one number and none below."""
    situation = random_situation(seed)
    plan = with_cuts(everybody(situation), [options[0] for options in allowed(situation)])
    loads = latency_plan._loads(plan, [[device.cut] for device in plan.devices], situation, 0.0, 1)
    found = latency_of(plan, situation).seconds
    factors = np.concatenate([np.linspace(0.2, 1 - 1e-6, 40), np.linspace(1 + 1e-6, 5, 40)])
    for price in (1e-9, 1.0, 1e9):
        for factor in factors:
            (fits,), (never,), *_ = loads.decide(np.array([found * factor]), np.array([price]))
            assert (fits, never) == (factor > 1, factor < 1)


def test_one_device_alone_takes_what_the_servers_forecast_says() -> None:
    for situation in (situation_of([1e9]), situation_of([1e9], capacity=(3e5, 1e8))):
        plan = cut_at(2)(everybody(situation), situation)
        [device], costs = plan.devices, situation.costs
        forecast = Forecast(situation.fleet, costs)  # type: ignore[arg-type]
        up, down = situation.fleet.rates(situation.fleet.devices[0])
        adapter = 8 * costs.device_adapter_bytes(device)
        expected = 3 * forecast.step(device, BATCH, TOKENS).total + adapter / up + adapter / down + 2 * 0.01
        found = latency_of(plan, situation)
        assert found.seconds == pytest.approx(expected, rel=1e-6)
        assert found.server_shares["device-0"] == pytest.approx(1, abs=1e-3)


def test_in_a_round_of_one_step_a_share_is_a_share_of_the_speed() -> None:
    situation = situation_of([1e9, 1e9], local_steps=1, server=1e9)
    plan = cut_at(1)(everybody(situation), situation)
    found = latency_of(plan, situation)
    alone = latency_of(replace(plan, devices=plan.devices[:1]), situation)
    work = 2 * 2.1 * 0.04  # forward and backward of 2.1 blocks of 40 MFLOP at 1 GFLOP/s
    assert found.server_shares == pytest.approx({"device-0": 0.5, "device-1": 0.5})
    assert found.seconds == pytest.approx(alone.seconds + work, rel=1e-6), "at half the speed it takes twice as long"


def test_in_a_longer_round_devices_meet_at_the_server_once() -> None:
    situation = situation_of([1e9] * 4, local_steps=10, server=3e10)
    plan = cut_at(1)(everybody(situation), situation)
    alone = latency_of(replace(plan, devices=plan.devices[:1]), situation)
    work = 2 * 2.1 * 0.04 / 30
    assert latency_of(plan, situation).seconds == pytest.approx(alone.seconds + 3 * work, rel=1e-6)


def test_a_server_with_too_much_to_do_is_what_the_round_takes() -> None:
    situation = situation_of([1e12] * 4, local_steps=10, server=1e9, links=[(1e12, 1e12)] * 4)
    plan = cut_at(1)(everybody(situation), situation)
    work = 4 * 10 * 2 * 2.1 * 0.04
    assert latency_of(plan, situation).seconds == pytest.approx(work, rel=0.01)


def test_a_connection_with_too_much_to_carry_is_what_the_round_takes() -> None:
    situation = situation_of([1e12] * 4, links=[(1e6, 1e6)] * 4, server=1e15, capacity=(1e5, None))
    plan = cut_at(1)(everybody(situation), situation)
    bits = 8 * (3 * 4 * BATCH * TOKENS * 16 + 4096)
    assert latency_of(plan, situation).seconds == pytest.approx(4 * bits / 1e5 + bits / 1e6 + 8 * 0.01, rel=1e-3)


def test_equal_devices_have_equal_shares() -> None:
    situation = situation_of([1e9] * 3, server=1e9, capacity=(1e6, 1e6))
    found = latency_of(cut_at(2)(everybody(situation), situation), situation)
    for shares in (found.bandwidth_shares, found.server_shares):
        assert list(shares) == ["device-0", "device-1", "device-2"]
        assert list(shares.values()) == pytest.approx([1 / 3] * 3, rel=1e-2)


@pytest.mark.parametrize("seed", range(10))
def test_a_connection_that_has_room_for_all_is_none(seed: int) -> None:
    situation = random_situation(seed)
    plan = with_cuts(everybody(situation), [options[0] for options in allowed(situation)])

    def found(capacity: float | None) -> LatencyPlan:
        server = situation.fleet.server.model_copy(
            update={"up_bits_per_second": capacity, "down_bits_per_second": capacity}
        )
        return latency_of(plan, replace(situation, fleet=situation.fleet.model_copy(update={"server": server})))

    assert found(1e9).seconds == pytest.approx(found(None).seconds, rel=1e-6)
    times = [found(capacity).seconds for capacity in (1e9, 1e7, 1e6, 1e5, 1e4)]
    assert all(wide <= narrow * (1 + 1e-6) for wide, narrow in itertools.pairwise(times)), "the narrower, the longer"


def test_devices_that_hold_everything_need_no_server() -> None:
    situation = situation_of()
    plan = whole_model()(everybody(situation), situation)
    found = latency_of(plan, situation)
    bits = 8 * 3 * 4096
    compute = 3 * 2 * 3.1 * 0.04
    assert found.server_shares == {"device-0": 0, "device-1": 0, "device-2": 0}
    assert found.seconds == pytest.approx(compute + bits / 1e6 + bits / 2e6 + 2 * 0.01, rel=1e-6)


def test_a_device_that_trains_nothing_is_sent_no_gradient() -> None:
    situation = situation_of([1e9], links=[(1e6, 1e3)])
    frozen = everybody(situation).with_each(lambda device: replace(device, cut=1, ranks=(0, 8, 8)))
    assert latency_of(frozen, situation).seconds < 1
    assert latency_of(cut_at(1)(everybody(situation), situation), situation).seconds > 50


# ------------------------------------------------------------------ the clock

UNEQUAL: dict[str, Any] = {"speeds": [1e9, 2e9, 3e9, 7e9]}
EQUAL: dict[str, Any] = {"speeds": [1e9] * 4}
SHARED: dict[str, Any] = {"server": 1e11, "links": [(1e6, 1e6)] * 4, "capacity": (1e6, 1e6)}
ROUNDS: dict[str, tuple[dict[str, Any], list[int], int]] = {
    "one step": (EQUAL | {"server": 1e10}, [1] * 4, 1),
    "four steps": (EQUAL | {"server": 1e10}, [1] * 4, 4),
    "a busy server": (EQUAL | {"server": 2e9}, [1] * 4, 4),
    "one that is busy all the time": ({"speeds": [1e10] * 4, "server": 1e9}, [1] * 4, 8),
    "unequal devices": (UNEQUAL | {"server": 4e9}, [1, 2, 3, 3], 8),
    "and a busy server": (UNEQUAL | {"server": 2e9}, [1] * 4, 8),
    "a connection that is shared": (EQUAL | SHARED, [1] * 4, 4),
    "and unequal devices": (UNEQUAL | SHARED, [1] * 4, 4),
}


@pytest.mark.parametrize(("machines", "chosen", "steps"), ROUNDS.values(), ids=ROUNDS)
def test_the_clock_takes_what_is_reckoned(
    machines: dict[str, Any], chosen: list[int], steps: int, tiny_model: ModelMaker
) -> None:
    """Served as they come. A bit less, because the model's adapters are smaller than those of these costs."""
    settings: dict[str, Any] = {"links": [(1e8, 1e8)] * 4, "local_steps": steps} | machines
    situation = situation_of(**settings)
    plan = with_cuts(everybody(situation), chosen)
    streams = {
        device.name: ListedBatches(
            [
                with_rows(random_batch("classification", seed=index, samples=BATCH, tokens=TOKENS), first=BATCH * step)
                for step in range(steps)
            ]
        )
        for index, device in enumerate(situation.fleet.devices)
    }
    base = open_base(tiny_model("bert", "classification"), "classification")
    method = replace(build_method("sfl_v1", {}, seed=0), plan=(lambda _plan, _situation: plan,))
    played = play(base, method, situation.fleet, streams, rounds=1, local_steps=steps)
    took = max(event.end_seconds for event in played.events)
    reckoned = latency_of(plan, situation).seconds
    if "capacity" in machines:
        assert 0.7 * reckoned < took < reckoned, "shares that are kept free while a device computes are used by others"
    else:
        assert took == pytest.approx(reckoned, rel=0.02 if steps > 1 else 0.06)


# ------------------------------------------------------------------ link states


def test_links_as_declared_without_a_spread() -> None:
    situation = situation_of()
    assert link_slowdown("device-0", situation, 0.0, 20) == 1.0
    plan = cut_at(1)(everybody(situation), situation)
    assert latency_of(plan, situation) == latency_of(plan, situation, spread=0.0, samples=7)


def test_a_slowdown_is_the_mean_over_states() -> None:
    """The mean of a log-normal rate's inverse is exp(spread^2 / 2)."""
    situation = situation_of()
    assert link_slowdown("device-0", situation, 0.5, 200_000) == pytest.approx(np.exp(0.125), rel=0.01)
    one, other = (link_slowdown(f"device-{index}", situation, 0.5, 20) for index in (0, 1))
    assert one != other
    assert one == link_slowdown("device-0", situation, 0.5, 20)
    assert one != link_slowdown("device-0", replace(situation, seed=1), 0.5, 20)


def test_transfers_take_as_much_longer_and_nothing_else_does() -> None:
    for capacity in ((None, None), (2e5, None)):
        situation = situation_of([1e9], capacity=capacity)
        plan = cut_at(1)(everybody(situation), situation)
        slowdown = link_slowdown("device-0", situation, 0.8, 20)
        bits = 8 * (3 * 4 * BATCH * TOKENS * 16 + 4096)
        sending = bits / (capacity[0] or 1e6) + bits / 2e6
        slow, declared = (latency_of(plan, situation, spread=spread).seconds for spread in (0.8, 0.0))
        assert slow - declared == pytest.approx((slowdown - 1) * sending, rel=1e-5)


def test_the_planner_plans_for_these_links() -> None:
    """A cut for which the adapter is smaller is better where links are worse than declared."""
    situation = situation_of([2e9, 2e9], links=[(1e6, 1e6)] * 2, server=1e9, blocks=6, local_steps=1)
    plan = everybody(situation)
    declared, worse = (cut_by_latency(spread=spread)(plan, situation) for spread in (0.0, 3.0))
    assert sum(cuts(worse)) < sum(cuts(declared))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"spread": -0.1}, r"method\.spread: expected at least 0, got -0\.1\. "),
        ({"spread": float("nan")}, r"method\.spread: expected at least 0, got nan\. "),
        ({"spread": float("inf")}, r"method\.spread: expected at least 0, got inf\. "),
        ({"samples": 0}, r"method\.samples: expected at least 1, got 0\. "),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], says: str) -> None:
    situation = situation_of()
    with pytest.raises(ConfigError, match=says):
        cut_by_latency(**options)
    with pytest.raises(ConfigError, match=says):
        latency_of(everybody(situation), situation, **options)


# ------------------------------------------------------------------ the cuts


def search_in(situation: Situation) -> latency_plan._Search:
    options = allowed(situation)
    loads = latency_plan._loads(everybody(situation), options, situation, 0.0, 1)
    return latency_plan._Search(loads, np.array(list(map(len, options))), np.random.default_rng(0))


@pytest.mark.parametrize("seed", range(200))
def test_no_cuts_are_more_than_a_percent_better(seed: int) -> None:
    """Every cut that memory and owner allow, in every combination."""
    situation = random_situation(seed)
    chosen = cut_by_latency()(everybody(situation), situation)
    options, search = allowed(situation), search_in(situation)
    assert all(cut in cuts_of for cut, cuts_of in zip(cuts(chosen), options, strict=True))
    every = np.array(list(itertools.product(*(range(len(cuts_of)) for cuts_of in options))))
    least = search.seconds(every).min()
    assert latency_of(chosen, situation).seconds <= 1.01 * least
    bound, _ = search.loads.bound()
    assert bound <= least * (1 + 1e-6), "nothing is below the bound"
    if situation.fleet.server.up_bits_per_second is situation.fleet.server.down_bits_per_second is None:
        assert least == pytest.approx(bound, rel=2 * latency_plan.COARSE), (
            "nor above it, where only the server is shared"
        )


@pytest.mark.parametrize("seed", range(8))
def test_nor_than_those_of_the_genetic_search_alone(seed: int) -> None:
    """From nothing but drawn cuts."""
    situation = random_situation(seed)
    search = search_in(situation)
    nothing = np.zeros((0, len(search.num_N)), np.intp)
    found = search.seconds(search.genetic(nothing, bound=0.0)[None])[0]
    assert found <= 1.01 * search.seconds(search.enumerated()[None])[0]


def test_each_way_of_searching_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cuts of the relaxed problem where they are as good as any; else all, if they are few; else the genetic search."""
    situation, taken = situation_of(blocks=4, server=2e9), list[str]()

    def chosen() -> list[str]:
        taken.clear()
        plan = cut_by_latency()(everybody(situation), situation)
        assert latency_of(plan, situation).seconds == pytest.approx(seconds, rel=1e-4)
        return list(taken)

    seconds = latency_of(cut_by_latency()(everybody(situation), situation), situation).seconds
    for name in ("enumerated", "genetic"):
        method = getattr(latency_plan._Search, name)

        def noted(*args: Any, name: str = name, method: Any = method) -> Any:
            taken.append(name)
            return method(*args)

        monkeypatch.setattr(latency_plan._Search, name, noted)
    assert chosen() == []
    monkeypatch.setattr(latency_plan, "GAP", -1.0)
    assert chosen() == ["enumerated"], "64 plans"
    monkeypatch.setattr(latency_plan, "POPULATION", 6)
    monkeypatch.setattr(latency_plan, "GENERATIONS", 9)
    assert chosen() == ["genetic"], "60 would be tried"


def test_the_same_plan_for_a_seed_in_every_round() -> None:
    situation = random_situation(7)
    plan = everybody(situation)
    first = cut_by_latency(spread=0.5)(plan, situation)
    assert cut_by_latency(spread=0.5)(plan, situation) == first
    later = cut_by_latency(spread=0.5)(replace(plan, round=5), situation)
    assert later == replace(first, round=5)
    search = search_in(situation)
    again = replace(search, rng=np.random.default_rng(0))
    nothing = np.zeros((0, len(search.num_N)), np.intp)
    assert search.genetic(nothing, 0.0).tolist() == again.genetic(nothing, 0.0).tolist()


def test_the_rest_of_the_plan_stays() -> None:
    situation = situation_of()
    before = everybody(situation).with_each(lambda device: replace(device, batch_size=2, local_steps=9))
    after = cut_by_latency()(before, situation)
    assert with_cuts(after, [0, 0, 0]) == before
    assert cuts(before) == [0, 0, 0], "a planner changes nothing that it is given"


def test_a_slow_server_is_given_less_and_a_slow_device_too() -> None:
    def planned(speeds: Sequence[float], server: float) -> list[int]:
        situation = situation_of(speeds, blocks=6, server=server)
        return cuts(cut_by_latency()(everybody(situation), situation))

    assert planned([1e9] * 3, server=1e12) == [1, 1, 1]
    assert planned([1e11] * 3, server=1e9) == [6, 6, 6]
    slow, fast = planned([1e9, 1e11], server=3e9)
    assert slow < fast


@pytest.mark.parametrize("seed", range(10))
def test_memory_is_a_bound(seed: int) -> None:
    """With more of it no round is longer, and with just enough for one cut there is no choice."""
    situation = random_situation(seed)
    plan = everybody(situation)

    def at(memory: int) -> float:
        devices = tuple(
            device.model_copy(update={"memory_bytes": memory, "max_blocks": None}) for device in situation.fleet.devices
        )
        with_memory = replace(situation, fleet=situation.fleet.model_copy(update={"devices": devices}))
        chosen = cut_by_latency()(plan, with_memory)
        assert max(cuts(chosen)) <= memory // MIB - 1
        return latency_of(chosen, with_memory).seconds

    times = [at(MIB * (1 + most)) for most in range(1, situation.costs.num_blocks + 1)]
    assert all(more <= less * 1.01 for less, more in itertools.pairwise(times))
    tight = tuple(device.model_copy(update={"memory_bytes": 2 * MIB}) for device in situation.fleet.devices)
    only = replace(situation, fleet=situation.fleet.model_copy(update={"devices": tight}))
    assert cut_by_latency()(plan, only) == cut_by_memory()(plan, only) == cut_at(1)(plan, only)


def test_least_is_the_fewest_blocks() -> None:
    situation = situation_of([1e7, 1e7], server=1e12)
    assert cuts(cut_by_latency(least=2)(everybody(situation), situation)) == [2, 2]
    assert cuts(cut_by_latency(least=0)(everybody(situation), situation)) == [0, 0]


def test_a_device_that_cannot_hold_the_least() -> None:
    situation = situation_of([1e9, 1e9], memory=[2**40, 2 * MIB])
    with pytest.raises(BudgetError, match=r"device device-1: expected room .* A cut of 1 would fit\.$"):
        cut_by_latency(least=2)(everybody(situation), situation)


def test_an_owner_who_lends_less_than_the_least() -> None:
    situation = situation_of([1e9, 1e9], max_blocks=[None, 1])
    with pytest.raises(ConfigError, match=r"device device-1: .*max_blocks.*got 1\. "):
        cut_by_latency(least=2)(everybody(situation), situation)
    with pytest.raises(ConfigError, match=r"method\.least: expected 0 to 3, the model's blocks, got 4\. "):
        cut_by_latency(least=4)(everybody(situation), situation)
