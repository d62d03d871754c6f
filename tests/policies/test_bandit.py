"""The bandit on a tree: leaves partition the square, ratios grow to the target, and it learns what pays."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from cutlayer.policies.bandit import Arm, Leaf, Tree, ratio_and_rank_by_bandit, rewards
from cutlayer.policies.plan import Situation, make_plan
from cutlayer.policies.prune import Prune
from cutlayer.policies.select import everyone
from cutlayer.testing.playground import FlatCosts, fleet_of
from cutlayer.types import DevicePlan, History, StepRecord


def record(device: str, round: int, *, change: float = 1.0, prune: float = 0.0, **values: object) -> StepRecord:
    empty = StepRecord(round, device, 1, 1, 1, 1.0, 1.0, 1.0, 0.0, 0, 0, facts={"prune": prune, "change": change})
    return replace(empty, **{"ranks": (8,) * 3, **values})  # type: ignore[arg-type]


def ratio(plan: DevicePlan) -> float:
    prune = plan.clause(Prune)
    return 0.0 if prune is None else prune.ratio


# ------------------------------------------------------------------ the tree


def area(leaves: list[Leaf], num_ranks: int) -> float:
    return sum((leaf.right - leaf.left) * (leaf.high - leaf.low) / num_ranks for leaf in leaves)


@pytest.mark.parametrize("num_ranks", [1, 3, 5])
@pytest.mark.parametrize("seed", range(5))
def test_leaves_always_partition_the_square(num_ranks: int, seed: int) -> None:
    """Leaves partition the square whatever is played: edges, corners and one arm again and again included."""
    rng, tree = random.Random(seed), Tree(num_ranks, discount=0.9, smallest=0.05)
    special = (0.0, 1.0, 0.5, 0.25)
    for _ in range(60):
        share = rng.choice(special) if rng.random() < 0.5 else rng.random()
        tree.learn(Arm(share, rng.randrange(num_ranks)), rng.random())
        assert area(tree.leaves, num_ranks) == pytest.approx(1.0)
        assert all(leaf.left < leaf.right and leaf.low < leaf.high for leaf in tree.leaves)
        for _ in range(20):
            arm = Arm(rng.choice((*special, rng.random())), rng.randrange(num_ranks))
            assert sum(leaf.holds(arm) for leaf in tree.leaves) == 1
    assert len(tree.leaves) > 10


def test_a_leaf_is_split_at_the_arm_across_its_longer_side() -> None:
    wide = Leaf(0.0, 1.0, 0, 2)
    assert wide.split(Arm(0.3, 1), 2) == (Leaf(0.0, 0.3, 0, 2), Leaf(0.3, 1.0, 0, 2))
    assert wide.split(Arm(0.0, 1), 2) == (Leaf(0.0, 0.5, 0, 2), Leaf(0.5, 1.0, 0, 2))
    tall = Leaf(0.0, 0.3, 0, 4)
    assert tall.split(Arm(0.1, 2), 4) == (Leaf(0.0, 0.3, 0, 2), Leaf(0.0, 0.3, 2, 4))
    assert tall.split(Arm(0.1, 0), 4) == (Leaf(0.0, 0.3, 0, 1), Leaf(0.0, 0.3, 1, 4))
    assert Leaf(0.0, 0.3, 1, 2).split(Arm(0.1, 1), 4) == (Leaf(0.0, 0.1, 1, 2), Leaf(0.1, 0.3, 1, 2))


def test_small_leaves_are_left_whole() -> None:
    tree = Tree(1, discount=1.0, smallest=0.4)
    for share in (0.5, 0.2, 0.8, 0.1):
        tree.learn(Arm(share, 0), 1.0)
    assert [(leaf.left, leaf.right) for leaf in tree.leaves] == [(0.0, 0.2), (0.2, 0.5), (0.5, 0.8), (0.8, 1.0)]


def test_bounds_by_hand() -> None:
    """Two leaves, three plays; the last counts whole, the first twice discounted."""
    tree = Tree(1, discount=0.5, smallest=0.6)
    for share, reward in ((0.5, 2.0), (0.25, 1.0), (0.75, 4.0)):
        tree.learn(Arm(share, 0), reward)
    assert [(leaf.left, leaf.right) for leaf in tree.leaves] == [(0.0, 0.5), (0.5, 1.0)]
    left, right = tree.bounds().values()
    spread = 2 * np.log(0.25 + 0.5 + 1.0)
    assert left == pytest.approx(1.0 / 4.0 + np.sqrt(spread / 0.5))
    assert right == pytest.approx((0.25 * 2.0 + 4.0) / 1.25 / 4.0 + np.sqrt(spread / 1.25))


def test_what_was_never_played_comes_first() -> None:
    tree = Tree(1, discount=1.0, smallest=0.1)
    tree.learn(Arm(0.4, 0), 100.0)
    tree.learn(Arm(0.5, 0), 100.0)  # leaves [0, 0.4) untouched by both, [0.4, 0.5), [0.5, 1]
    assert [(leaf.left, leaf.right) for leaf in tree.leaves] == [(0.0, 0.4), (0.4, 0.5), (0.5, 1.0)]
    assert tree.choose(0.0, 1.0, np.random.default_rng(0)).share < 0.4


def test_only_what_can_be_reached_is_played() -> None:
    tree, rng = Tree(3, discount=0.9, smallest=0.05), np.random.default_rng(1)
    for step in range(40):
        lowest = step / 50
        arm = tree.choose(lowest, lowest + 0.1, rng)
        assert lowest <= arm.share <= lowest + 0.1
        tree.learn(arm, float(rng.random()))
    assert tree.choose(1.0, 1.0, rng).share == 1.0
    assert tree.choose(0.0, 0.0, rng).share == 0.0
    assert tree.choose(0.5, 0.5, rng).share == 0.5


def test_it_finds_what_pays() -> None:
    """Rewards peak at share 0.7 and rank number 2: it plays there more often than chance would."""

    def pays(arm: Arm) -> float:
        return max(0.0, 1 - 3 * abs(arm.share - 0.7) - 0.4 * abs(arm.rank - 2))

    rng, brought = np.random.default_rng(0), []
    tree = Tree(4, discount=1.0, smallest=0.25)
    for _ in range(400):
        arm = tree.choose(0.0, 1.0, rng)
        brought.append(pays(arm))
        tree.learn(arm, brought[-1])
    chance = np.mean([pays(Arm(rng.random(), int(rng.integers(4)))) for _ in range(2000)])
    assert np.mean(brought[-100:]) > 1.8 * chance


# ------------------------------------------------------------------ the reward


def test_rewards_by_hand() -> None:
    history = History(
        [
            record("a", 0, loss=2.0, busy_seconds=3.0, change=1.0),
            record("b", 0, loss=2.0, busy_seconds=3.0, change=1.0),
            record("a", 1, loss=1.5, busy_seconds=3.0, network_seconds=1.0, change=3.0, prune=0.2),
            record("b", 1, loss=1.0, busy_seconds=1.0, network_seconds=1.0, change=1.0, prune=0.0),
            record("a", 2, loss=1.8, prune=0.3),
        ]
    )
    found = rewards(history, progress=2.0)
    assert found == pytest.approx(
        {
            ("a", 1): 0.5 * (1 + 2 * 0.2) * (3 / 2) / (0.01 + 1 / 3),
            ("b", 1): 1.0 * 1 * (1 / 2) / (0.01 + 1 / 3),
            ("a", 2): 0.0,  # the loss rose
        }
    )


# ------------------------------------------------------------------ the planner


def situation(history: History, rounds: int, rank: int = 8, seed: int = 0) -> Situation:
    return Situation(fleet_of(3), FlatCosts(3), history, 10, 4, 2, rank=rank, seed=seed, rounds=rounds)


def run(rounds: int, *, target: float = 0.5, seed: int = 0, **options: object) -> list[list[DevicePlan]]:
    """A run of rounds that were measured at random."""
    history, rng, plans = History(), random.Random(seed), []
    planner = ratio_and_rank_by_bandit(target, **options)  # type: ignore[arg-type]
    for round in range(rounds):
        plan = make_plan((everyone(), planner), round, situation(history, rounds, seed=seed))
        assert plan == make_plan((everyone(), planner), round, situation(history, rounds, seed=seed)), (
            "it keeps nothing"
        )
        plans.append(list(plan.devices))
        for device in plan.devices:
            loss, busy_seconds, change = (rng.random() for _ in range(3))
            measured = {"loss": loss, "busy_seconds": busy_seconds, "ranks": device.ranks}
            history.records.append(record(device.device, round, prune=ratio(device), change=change, **measured))
    return plans


@pytest.mark.parametrize("rounds", [2, 5, 30])
@pytest.mark.parametrize("seed", range(4))
def test_ratios_never_fall_and_reach_the_target(rounds: int, seed: int) -> None:
    plans = run(rounds, seed=seed)
    for index in range(3):
        ratios = [ratio(plan[index]) for plan in plans]
        assert ratios == sorted(ratios)
        assert (ratios[0], ratios[-1]) == (0.0, 0.5)
        assert max(np.diff(ratios)) <= 2 * 0.5 / (rounds - 1) + 1e-9


def test_devices_are_agents_of_their_own_and_seeds_differ() -> None:
    plans = run(8)
    assert len({tuple(ratio(plan[index]) for plan in plans) for index in range(3)}) == 3
    assert run(8, seed=1) != plans
    assert run(8) == plans


def test_ranks_are_powers_of_two_up_to_the_runs() -> None:
    assert {rank for plan in run(30) for device in plan for rank in device.ranks} == {2, 4, 8}
    planner = ratio_and_rank_by_bandit(0.0)
    for rank, some in ((3, {2, 3}), (1, {1}), (64, {2, 4, 8, 16, 64})):
        chosen = set()
        for seed in range(40):
            plan = make_plan((everyone(), planner), 0, situation(History(), 5, rank=rank, seed=seed))
            chosen |= {rank for device in plan.devices for rank in device.ranks}
        assert chosen == some


def test_nothing_to_prune_is_nothing_to_score() -> None:
    for device in (device for plan in run(4, target=0.0, rank=8) for device in plan):
        assert (device.clause(Prune), device.ranks) == (None, (8, 8, 8))
    assert all((prune := device.clause(Prune)) and prune.score for plan in run(4) for device in plan)
