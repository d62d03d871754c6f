"""Q-learning of cuts: states and rewards are what records say, and on a modelled fleet the best cut is found."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from cutlayer.errors import BudgetError, ConfigError
from cutlayer.fleet.profile import Fleet
from cutlayer.policies.cut import cut_at
from cutlayer.policies.plan import Planner, Situation, make_plan
from cutlayer.policies.qlearn import (
    FIRST_EPSILON,
    HIGH,
    KEEP,
    LAST_EPSILON,
    LATE,
    LOW,
    Reference,
    RewardWeights,
    Seen,
    State,
    Table,
    allowed,
    cut_by_qlearning,
    cuts_between,
    epsilon,
    learnt,
    observed,
    reference_of,
    step_seconds,
)
from cutlayer.policies.select import everyone
from cutlayer.testing.playground import FlatCosts, fleet_of
from cutlayer.types import History, RoundPlan, StepRecord

BLOCKS, STEPS, MIB = 6, 2, 2**20
NAN = float("nan")


def record(device: str, round: int = 0, **values: Any) -> StepRecord:
    """Two steps at cut 2: 2 s of computing 20 FLOP each, 1 s of network for 30 bytes, 1 s of waiting."""
    plain = StepRecord(round, device, STEPS, 8, 8, 1.0, 2.0, 1.0, 1.0, 20, 10, cut=2, flops=40.0, memory_bytes=MIB)
    return replace(plain, **values)


def missed(device: str, round: int, cut: int = 2) -> StepRecord:
    """The record of a device of whose round nothing counts."""
    return record(device, round, cut=cut, steps=0, samples=0, weight=0, loss=NAN, flops=0.0, late=True)


def fleet_with(memory: dict[str, int], max_blocks: int | None = None) -> Fleet:
    """Devices by name, and the bytes that they offer."""
    like = fleet_of(1).devices[0].model_copy(update={"max_blocks": max_blocks})
    devices = tuple(like.model_copy(update={"name": name, "memory_bytes": size}) for name, size in memory.items())
    return fleet_of(1).model_copy(update={"devices": devices})


def situation_of(fleet: Fleet, *records: StepRecord, rounds: int = 10, seed: int = 0) -> Situation:
    return Situation(
        fleet,
        FlatCosts(BLOCKS),
        History(list(records)),
        num_tokens=8,
        batch_size=2,
        local_steps=STEPS,
        rounds=rounds,
        seed=seed,
    )


def plan_of(planner: Planner, situation: Situation, round: int) -> dict[str, int]:
    return {device.device: device.cut for device in make_plan((everyone(), planner), round, situation).devices}


GIB = 2**30
ALIKE = fleet_with({"a": GIB, "b": GIB, "c": GIB})


# ------------------------------------------------------------------ a fleet that only measures


@dataclass(frozen=True)
class Speed:
    """Seconds that a modelled device takes for a step: per block, and for the network."""

    block_seconds: float
    network_seconds: float = 0.2


class Modelled:
    """A fleet that trains nothing: plans come in, what rounds would have measured goes out.

    Args:
      speeds: By device.
      server_seconds: What the server takes for a block of a device that does not hold it.
      noise: Standard deviation of the logarithm of every time; and, in hundredths, of the loss.
      seed: Of the noise and of the planner.
    """

    def __init__(
        self, speeds: dict[str, Speed], *, server_seconds: float = 0.001, noise: float = 0.0, seed: int = 0
    ) -> None:
        self.speeds, self.history, self.fleet = speeds, History(), fleet_with(dict.fromkeys(speeds, GIB))
        self._server_seconds, self._noise, self._seed = server_seconds, noise, seed
        self._random = np.random.default_rng([seed, 7])

    def situation(self, rounds: int) -> Situation:
        return situation_of(self.fleet, *self.history.records, rounds=rounds, seed=self._seed)

    def play(self, planner: Planner, rounds: int, *, of: int | None = None) -> None:
        for round in range(len(self.history.records) // len(self.speeds), rounds):
            self.measure(round, plan_of(planner, self.situation(of or rounds), round))

    def measure(self, round: int, cuts: dict[str, int]) -> None:
        """Records a round at these cuts: whoever is early waits for the last one."""
        taken = {}
        for device, cut in cuts.items():
            speed, busy, network = self.speeds[device], *np.exp(self._noise * self._random.standard_normal(2))
            server = (BLOCKS - cut) * self._server_seconds
            taken[device] = (cut * speed.block_seconds * busy, speed.network_seconds * network, server)
        duration = STEPS * max(map(sum, taken.values()))
        for device, cut in cuts.items():
            busy, network, _ = (STEPS * seconds for seconds in taken[device])
            loss = 0.5 + math.exp(-round / 20) + self._noise / 10 * self._random.standard_normal()
            self.history.records.append(
                record(
                    device,
                    round,
                    cut=cut,
                    loss=loss,
                    busy_seconds=busy,
                    network_seconds=network,
                    waiting_seconds=duration - busy - network,
                    flops=STEPS * cut * 1e9,
                    memory_bytes=cut * MIB,
                )
            )

    def best(self, actions: list[int], threshold: float) -> dict[str, int]:
        """By device, the cut of the highest reward, by the reward's own formula and not by the planner's code."""

        def reward(device: str, cut: int) -> float:
            speed = self.speeds[device]
            load = cut * speed.block_seconds / threshold
            latency = load + (speed.network_seconds + (BLOCKS - cut) * self._server_seconds) / threshold
            uneven = max(0, load - 0.9) + max(0, 0.5 - load)
            return -max(0, latency - 1) - 0.5 * uneven

        found = {}
        for device in self.speeds:
            worth = {cut: reward(device, cut) for cut in actions}
            second, first = sorted(worth.values())[-2:]
            assert first - second > 0.05, f"one cut of {device} is to be clearly best, got {worth}"
            found[device] = max(worth, key=worth.__getitem__)
        return found


KINDS = {"slow": Speed(0.6), "middling": Speed(0.2), "fast": Speed(0.09)}
TEN = {f"{kind}-{number}": speed for kind, speed in KINDS.items() for number in range(4 if kind == "middling" else 3)}
"""Ten devices, of three kinds: each kind has a cut that is clearly best, and no two the same."""
CHOICES = 3
ACTIONS = [1, 3, 5]


@pytest.mark.parametrize(("noise", "threshold"), [(0.0, None), (0.05, None), (0.15, 0.9)])
@pytest.mark.parametrize("seed", range(4))
def test_nine_of_ten_greedy_choices_are_the_best_cut_after_60_rounds(
    seed: int, noise: float, threshold: float | None
) -> None:
    modelled = Modelled(TEN, noise=noise, seed=seed)
    modelled.play(cut_by_qlearning(choices=CHOICES, threshold=threshold), 60)
    best = modelled.best(ACTIONS, threshold or 0.8)  # 0.8 s is what the middling ones take for the middle cut
    assert best == {device: {"slow": 1, "middling": 3, "fast": 5}[device.split("-")[0]] for device in TEN}
    chosen = greedy(modelled, threshold=threshold)
    assert sum(chosen[device] == cut for device, cut in best.items()) >= 9


def greedy(modelled: Modelled, **options: Any) -> dict[str, int]:
    """The cuts of the next round, if nothing were left to chance."""
    rounds = len(modelled.history.records) // len(modelled.speeds)
    return plan_of(cut_by_qlearning(choices=CHOICES, explore=0, **options), modelled.situation(rounds), rounds)


def test_what_one_device_has_learnt_all_of_its_kind_know() -> None:
    """A device that comes when the others have learnt needs one round to be measured, and then plays what they play."""
    modelled = Modelled(TEN)
    modelled.play(cut_by_qlearning(choices=CHOICES), 60)
    known, newcomer = modelled.situation(61), replace(modelled.history.records[-1], device="new", round=60)
    fleet = fleet_with(dict.fromkeys([*TEN, "new"], GIB))
    for kind, cut in (("slow", 1), ("fast", 5)):
        like = next(r for r in modelled.history.records if r.device == f"{kind}-0" and r.cut == 3)
        first = replace(newcomer, cut=3, busy_seconds=like.busy_seconds, flops=like.flops, memory_bytes=3 * MIB)
        plan = plan_of(
            cut_by_qlearning(choices=CHOICES, explore=0),
            replace(known, fleet=fleet, history=History([*modelled.history.records, first])),
            61,
        )
        assert plan["new"] == cut


def test_a_device_that_becomes_slower_is_cut_where_slow_ones_are() -> None:
    modelled = Modelled(TEN)
    modelled.play(cut_by_qlearning(choices=CHOICES), 60)
    assert greedy(modelled)["fast-0"] == 5
    modelled.speeds["fast-0"] = KINDS["slow"]
    modelled.measure(60, greedy(modelled))
    assert greedy(modelled)["fast-0"] < 5
    for round in range(61, 65):
        modelled.measure(round, greedy(modelled))
    assert greedy(modelled)["fast-0"] == 1


# ------------------------------------------------------------------ which cuts


@pytest.mark.parametrize("cut", range(BLOCKS + 1))
def test_one_action_is_a_fixed_cut(cut: int) -> None:
    """The plans are equal in all that they hold, whatever the history says."""
    modelled = Modelled(TEN, noise=0.1)
    for round in range(4):
        situation = modelled.situation(8)
        fixed, learning = (
            make_plan((everyone(), planner), round, situation)
            for planner in (cut_at(cut), cut_by_qlearning(least=cut, deepest=cut))
        )
        assert learning == fixed
        modelled.measure(round, {device.device: device.cut for device in fixed.devices})


def test_cuts_are_spread_evenly_from_the_least_to_the_deepest() -> None:
    assert cuts_between(1, None, 6, 6) == [1, 2, 3, 4, 5]
    assert cuts_between(1, None, 6, 32) == [1, 7, 13, 19, 25, 31]
    assert cuts_between(0, 4, 3, 6) == [0, 2, 4]
    assert cuts_between(2, 6, 1, 6) == [2]
    assert cuts_between(1, None, 6, 1) == [1], "a model of one block has no other cut"
    for blocks, choices in itertools.product(range(1, 40), range(2, 9)):
        cuts = cuts_between(1, blocks, choices, blocks)
        assert (cuts[0], cuts[-1]) == (1, blocks)
        assert len(cuts) == min(choices, blocks)


def test_nobody_is_given_more_than_memory_holds_or_its_owner_lends() -> None:
    """Neither at random nor by the table, in which the deepest cut is worth most."""
    memory = {"small": 3 * MIB, "large": GIB}  # at cut c a device needs 1 + c MiB
    situation = situation_of(fleet_with(memory), rounds=50)
    plan = everyone()(RoundPlan(0), situation)
    assert allowed([1, 2, 4], plan, situation) == {"small": [1, 2], "large": [1, 2, 4]}
    lending = situation_of(fleet_with(memory, max_blocks=3))
    assert allowed([1, 2, 4], plan, lending) == {"small": [1, 2], "large": [1, 2]}

    starved = [
        record(device, round, cut=cut, busy_seconds=1e-3 * cut)
        for round, (device, cut) in enumerate(itertools.product(memory, [1, 2, 4, 2, 1, 4]))
    ]
    seen = Counter[tuple[str, int]]()
    for round in range(50):
        cuts = plan_of(cut_by_qlearning(deepest=4, choices=3), replace(situation, history=History(starved)), round)
        seen.update(cuts.items())
    assert {device for device, _ in seen} == set(memory)
    assert {cut for device, cut in seen if device == "large"} == {1, 2, 4}
    assert {cut for device, cut in seen if device == "small"} == {1, 2}


def test_a_device_that_cannot_hold_the_least_cut_is_an_error() -> None:
    with pytest.raises(BudgetError, match=r"device small: expected room for .* \[0, 3\)"):
        plan_of(cut_by_qlearning(least=3), situation_of(fleet_with({"small": 3 * MIB})), 0)
    with pytest.raises(ConfigError, match=r"max_blocks to be at least method\.least, 3, got 2"):
        plan_of(cut_by_qlearning(least=3), situation_of(fleet_with({"small": GIB}, max_blocks=2)), 0)


# ------------------------------------------------------------------ chance


def test_the_first_round_has_the_middle_cut() -> None:
    """Or the deepest below it that a device can hold: no chance, so that thresholds of equal runs are equal."""
    fleet = fleet_with({"a": GIB, "small": 2 * MIB})
    assert plan_of(cut_by_qlearning(), situation_of(fleet), 0) == {"a": 3, "small": 1}
    assert plan_of(cut_by_qlearning(choices=2), situation_of(fleet), 0) == {"a": 1, "small": 1}


def test_exploration_falls_in_a_line_and_then_stays() -> None:
    assert [epsilon(round, 10) for round in (0, 10, 99)] == [FIRST_EPSILON, LAST_EPSILON, LAST_EPSILON]
    assert epsilon(5, 10) == pytest.approx((FIRST_EPSILON + LAST_EPSILON) / 2)
    assert epsilon(0, 0) == 0


def test_as_many_cuts_are_left_to_chance_as_epsilon_says() -> None:
    """The other cuts are counted in 400 draws where the table knows one best cut: both of them come alike."""
    names = [f"device-{index}" for index in range(40)]
    start = [record(name, 0, cut=3) for name in names]
    found = [record("device-0", 1, cut=1, loss=0.1)]  # a lower loss is all that is good here
    situation = situation_of(fleet_with(dict.fromkeys(names, GIB)), *start, *found, *start_again(names), rounds=100)

    def cuts(round: int, **options: Any) -> Counter[int]:
        plans = (plan_of(cut_by_qlearning(choices=3, **options), replace(situation, seed=s), round) for s in range(10))
        return Counter(cut for plan in plans for cut in plan.values())

    for round in (3, 15, 29, 60):
        counts = cuts(round)
        assert counts[3] == pytest.approx(400 / 3 * epsilon(round, 30), abs=30)
        assert counts[5] == pytest.approx(400 / 3 * epsilon(round, 30), abs=30)
    assert cuts(60) != cuts(61), "each round draws anew"
    assert cuts(3, explore=0) == {1: 400}


def start_again(names: list[str]) -> list[StepRecord]:
    """A round after which everybody is where the first round had left them."""
    return [record(name, 2, cut=3) for name in names]


def test_among_equals_chance_decides_by_device() -> None:
    """Nothing is known yet, so all cuts are worth as much: devices of one kind do not all try the same."""
    names = [f"device-{index}" for index in range(30)]
    fleet = fleet_with(dict.fromkeys(names, GIB))
    situation = situation_of(fleet, *(record(name) for name in names))
    assert set(plan_of(cut_by_qlearning(explore=0), situation, 1).values()) == {1, 2, 3, 4, 5}


def test_a_plan_is_a_function_of_history_seed_and_round() -> None:
    """Made anew from the records it is the same, by a planner that saw no earlier round; another seed is another."""
    modelled = Modelled(TEN, noise=0.1)
    planner = cut_by_qlearning()
    for round in range(12):
        situation = modelled.situation(20)
        cuts = plan_of(planner, situation, round)
        assert plan_of(cut_by_qlearning(), situation, round) == cuts
        modelled.measure(round, cuts)
    situation = modelled.situation(20)
    assert plan_of(planner, replace(situation, seed=5), 12) != plan_of(planner, situation, 12)


# ------------------------------------------------------------------ the table


def test_the_update_by_hand() -> None:
    here, there, table = State(0, 1, 0, 1, 2), State(0, 1, 0, 2, 1), Table(discount=0.5)
    table.learn(here, 2, -1.0, there, [1, 2])
    assert table.value(here, 2) == -1.0, "the first visit takes all of it; what was never tried is worth 0"
    table.learn(there, 1, -4.0, here, [1])
    assert table.value(there, 1) == -4.0 + 0.5 * 0.0
    table.learn(there, 2, -2.0, here, [2])
    assert table.value(there, 2) == -2.0 + 0.5 * -1.0
    table.learn(here, 2, 0.0, there, [1, 2])
    rate = 2**-0.6
    assert table.value(here, 2) == pytest.approx(-1.0 + rate * (0.0 + 0.5 * -2.5 + 1.0))
    table.learn(here, 2, 0.0, there, [1])
    before, rate = -1.0 + rate * (0.5 * -2.5 + 1.0), 3**-0.6
    assert table.value(here, 2) == pytest.approx(before + rate * (0.5 * -4.0 - before)), "of what may be done there"
    assert table.value(here, 1) == 0.0


def test_the_best_actions() -> None:
    table, state = Table(0.0), State(1, 1, 1, 1, 1)
    assert table.best(state, [1, 2, 3]) == [1, 2, 3]
    table.learn(state, 2, -1.0, state, [2])
    assert table.best(state, [1, 2, 3]) == [1, 3]
    table.learn(state, 3, 0.5, state, [3])
    assert table.best(state, [1, 2, 3]) == [3]
    assert table.best(state, [1, 2]) == [1]


def test_the_reward_by_hand() -> None:
    def reward(latency: float, load: float, drop: float = 0.0) -> float:
        return RewardWeights(2.0, 3.0, 5.0).reward(Seen("a", 1, 1, drop, latency, load, None, None))

    assert reward(1.0, 0.7) == 0.0
    assert reward(0.1, LOW) == reward(1.0, HIGH) == 0.0
    assert reward(1.5, 0.7) == pytest.approx(-3 * 0.5)
    assert reward(1.0, 0.2) == pytest.approx(-5 * (LOW - 0.2))
    assert reward(1.2, 1.1) == pytest.approx(-3 * 0.2 - 5 * (1.1 - HIGH))
    assert reward(1.0, 0.7, drop=0.25) == 0.5
    assert reward(1.0, 0.7, drop=-0.25) == -0.5, "a loss that rises is a loss"


def test_what_is_learnt_is_what_the_round_before_led_to() -> None:
    """By hand: the state of a round's end, the cut of the next, its reward, the state after that."""
    history = (
        record("a", 0, cut=3),
        record("a", 1, cut=5, busy_seconds=8.0),
        record("a", 2, cut=1, busy_seconds=0.5),
    )
    table, states = learnt(situation_of(ALIKE, *history), {"a": [1, 3, 5]}, discount=0.0)
    first = State(1, 1, 0, 3, 1)  # 1.5 s a step, which is the threshold
    assert table.value(first, 5) == pytest.approx(-((4.5 / 1.5 - 1) + 0.5 * (4.0 / 1.5 - HIGH)))
    second = State(0, 1, 0, 5, 2)
    assert table.value(second, 1) == pytest.approx(-0.5 * (LOW - 0.25 / 1.5))
    assert states == {"a": State(2, 1, 0, 1, 0)}
    assert [cut for cut in (1, 3, 5) if table.value(first, cut) or table.value(second, cut)] == [1, 5]


# ------------------------------------------------------------------ what records say


def test_what_a_step_takes() -> None:
    """Computing and network over the steps, however long the device waited for others."""
    one = record("a", busy_seconds=2.0, network_seconds=1.0)
    assert step_seconds(one) == step_seconds(replace(one, waiting_seconds=9.0)) == 1.5
    assert step_seconds(replace(one, steps=1, late=True)) == 3.0


def test_the_threshold_is_the_median_of_the_first_round_that_measured_anything() -> None:
    history = [missed("a", 0)]
    assert reference_of(History(history)) is None
    assert list(observed(History(history), {"a": GIB})) == []
    history += [
        record("a", 1, busy_seconds=2.0),
        record("b", 1, busy_seconds=8.0, flops=8.0, network_seconds=2.0),
        record("c", 1, busy_seconds=4.0, bytes_up=2),
        record("a", 2, busy_seconds=100.0),
    ]
    expected = Reference(speed=10.0, rate=15.0, seconds=2.5)
    assert reference_of(History(history)) == expected
    assert reference_of(History(history[::-1])) == expected, "rounds are told by their number"


def state_after(memory_bytes: int = GIB, threshold: float | None = None, **values: Any) -> State:
    """The state of a device that in round 1 measured this, when in round 0 three like it measured what is usual."""
    history = History([*(record(name) for name in "abc"), record("a", 1, **values)])
    *_, last = observed(history, {"a": memory_bytes, "b": GIB, "c": GIB}, threshold)
    assert last.after is not None
    return last.after


def test_the_bins_of_what_the_round_before_measured() -> None:
    usual = State(speed=1, link=1, memory=0, cut=2, latency=1)
    assert state_after() == usual
    for flops, speed in ((26.0, 0), (27.0, 1), (60.0, 1), (61.0, 2)):
        assert state_after(flops=flops) == usual._replace(speed=speed)
    for num_bytes, link in ((9, 0), (11, 1), (35, 1), (36, 2)):
        assert state_after(bytes_up=num_bytes) == usual._replace(link=link)
    for size, memory in ((4 * MIB, 0), (2 * MIB, 1), (MIB, 2)):
        assert state_after(size) == usual._replace(memory=memory)
    for threshold, latency in ((3.0, 0), (2.9, 1), (1.5, 1), (1.4, 2)):
        assert state_after(threshold=threshold) == usual._replace(latency=latency)
    assert state_after(cut=5) == usual._replace(cut=5)


def test_what_was_not_measured_stays_as_it_was() -> None:
    """A device that holds no block computes nothing; an endless link takes no time."""
    slow = [record(name, 0, flops=2.0 if name == "a" else 40.0, bytes_up=0 if name == "a" else 20) for name in "abc"]
    history = History([*slow, record("a", 1, flops=0.0, busy_seconds=0.0, network_seconds=0.0)])
    *_, last = observed(history, dict.fromkeys("abc", GIB))
    assert (last.before, last.after) == (State(0, 0, 0, 2, 1), State(0, 0, 0, 2, 0))
    nothing = History([record("a", 0, busy_seconds=0.0, network_seconds=0.0, flops=0.0)])
    assert reference_of(nothing) == Reference(0.0, 0.0, 1.0)
    [seen] = observed(nothing, {"a": GIB})
    assert seen.after == State(1, 1, 0, 2, 0)


def test_a_drop_is_that_of_the_average_loss() -> None:
    losses = [1.0, 0.5, 2.0]
    seen = observed(History([record("a", round, loss=loss) for round, loss in enumerate(losses)]), {"a": GIB})
    second = KEEP * 1.0 + (1 - KEEP) * 0.5
    third = KEEP * second + (1 - KEEP) * 2.0
    assert [each.drop for each in seen] == pytest.approx([0.0, 1.0 - second, (second - third) / second])


def test_a_loss_of_nothing_divides_nothing() -> None:
    seen = observed(History([record("a", round, loss=0.0) for round in range(2)]), {"a": GIB})
    assert [each.drop for each in seen] == [0.0, 0.0]


def test_a_device_of_whose_round_nothing_counted_was_far_too_slow() -> None:
    """Its cut is blamed, what was measured of it before stays, and its loss goes on from where it was."""
    history = History([record("a", 0), record("b", 0), missed("a", 1, cut=5), record("b", 1), record("a", 2, loss=0.5)])
    first, late, again = (seen for seen in observed(history, {"a": GIB, "b": GIB}) if seen.device == "a")
    assert (late.latency, late.load, late.drop) == (LATE, LATE, 0.0)
    assert first.after is not None
    assert late.after == first.after._replace(cut=5, latency=2) == again.before
    assert again.drop == pytest.approx((1 - KEEP) * 0.5)
    table, _ = learnt(situation_of(ALIKE, *history.records), {"a": [1, 2, 5], "b": [1, 2, 5]}, discount=0.0)
    assert table.value(first.after, 5) == pytest.approx(-(LATE - 1) - 0.5 * (LATE - HIGH))


def test_a_device_that_was_late_before_it_was_measured_is_given_the_least_cut() -> None:
    fleet = fleet_with({"a": GIB, "b": GIB})
    situation = situation_of(fleet, missed("a", 0, cut=3), record("b", 0, cut=3))
    assert plan_of(cut_by_qlearning(least=0), situation, 1)["a"] == 0
    nobody = situation_of(fleet, missed("a", 0, cut=3), missed("b", 0, cut=3))
    assert plan_of(cut_by_qlearning(), nobody, 1) == {"a": 1, "b": 1}


def test_of_a_device_that_is_gone_nothing_is_learnt() -> None:
    """Its memory, and so what it could have done, is not known any more; first rounds are still what they were."""
    history = [record("gone", 0), *(record(name, 0) for name in "ab"), record("gone", 1, cut=5, busy_seconds=90.0)]
    situation = situation_of(fleet_with({"a": GIB, "b": GIB}), *history)
    table, states = learnt(situation, {"a": [1, 2, 5], "b": [1, 2, 5]})
    assert set(states) == {"a", "b"}
    assert table.value(states["a"], 5) == 0.0
    assert set(plan_of(cut_by_qlearning(), situation, 2)) == {"a", "b"}
    _, states = learnt(situation, {"a": [1, 2, 5]})
    assert set(states) == {"a"}, "nor of one that an earlier planner left out"


# ------------------------------------------------------------------ options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"choices": 0}, "method.choices: expected at least 1, got 0"),
        ({"threshold": 0.0}, "method.threshold: expected seconds above 0, or null, got 0.0"),
        ({"threshold": NAN}, "method.threshold: expected seconds above 0, or null, got nan"),
        ({"explore": 1.5}, "method.explore: expected 0 to 1, got 1.5"),
        ({"explore": -0.1}, "method.explore: expected 0 to 1, got -0.1"),
        ({"discount": 1.0}, "method.discount: expected at least 0 and below 1, got 1.0"),
        ({"weights": RewardWeights(accuracy=-1.0)}, "method.w_acc: expected at least 0, got -1.0"),
        ({"weights": RewardWeights(latency=math.inf)}, "method.w_lat: expected at least 0, got inf"),
        ({"weights": RewardWeights(load=NAN)}, "method.w_load: expected at least 0, got nan"),
    ],
)
def test_options_out_of_their_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cut_by_qlearning(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"least": 7}, "method.least: expected 0 to 6, the model's blocks, got 7"),
        ({"least": -1}, "method.least: expected 0 to 6, the model's blocks, got -1"),
        ({"least": 3, "deepest": 2}, "method.deepest: expected method.least, 3, to 6, the model's blocks, got 2"),
        ({"deepest": 7}, "method.deepest: expected method.least, 1, to 6, the model's blocks, got 7"),
    ],
)
def test_cuts_that_the_model_has_not_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_of(cut_by_qlearning(**options), situation_of(ALIKE), 0)
