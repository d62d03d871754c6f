"""The pruning ratio and the LoRA rank of each device: a bandit per device, on a tree of arms.

FedSpine (arXiv 2501.02438) names its bandit S-UCB: actions are (pruning ratio, rank), and a decision tree partitions
their space and refines it. Its formulas could not be read; the tree is that of E-UCB in the same group's FedMP
(Jiang et al., ICDE 2022), from memory:

    N(P) = sum over past arms in leaf P of discount^age             R(P) = their discounted mean reward
    choose the leaf with the highest R(P) + sqrt(2 ln(sum of all N) / N(P)); draw the arm evenly in it
    split that leaf at the arm while its diameter exceeds `smallest`

and the reward is our reading of what reviews say it is made of, in `rewards`.

The square: across, the ratio as a share of the target; up, the ranks to choose from, in equal bins. A leaf is cut
across the longer of its sides, a side of ranks only between two ranks. Ratios only grow, so only the leaves that the
device can still reach this round are played (`policies.prune.reachable`).

An agent is rebuilt from the history every round: its past arms are what the device really did.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cutlayer.errors import ConfigError
from cutlayer.policies.plan import Planner, Situation
from cutlayer.policies.prune import Prune, check_target, reachable
from cutlayer.types import DevicePlan, History, RoundPlan, StepRecord
from cutlayer.wire.messages import Update

RANKS = (2, 4, 8, 16)
EPSILON = 0.01
"""Least value of the reward's denominator: a device that ends with the others counts as this far from them."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """A rectangle of arms: shares of the target in [left, right), ranks number [low, high)."""

    left: float
    right: float
    low: int
    high: int

    def holds(self, arm: Arm) -> bool:
        """Whether the arm lies in the leaf; the right edge of the square belongs to the last leaf."""
        across = self.left <= arm.share < self.right or arm.share == self.right == 1.0
        return across and self.low <= arm.rank < self.high

    def diameter(self, num_ranks: int) -> float:
        """The longer side, in the unit square; one rank alone has none."""
        return max(self.right - self.left, self._height(num_ranks))

    def _height(self, num_ranks: int) -> float:
        return (self.high - self.low) / num_ranks if self.high - self.low > 1 else 0.0

    def split(self, arm: Arm, num_ranks: int) -> tuple[Leaf, Leaf]:
        """The two halves of the leaf, cut at the arm across the longer side; in the middle if the arm is on an edge."""
        if self._height(num_ranks) > self.right - self.left:
            at = arm.rank if arm.rank > self.low else arm.rank + 1
            return replace(self, high=at), replace(self, low=at)
        share = arm.share if self.left < arm.share < self.right else (self.left + self.right) / 2
        return replace(self, right=share), replace(self, left=share)


@dataclass(frozen=True, slots=True)
class Arm:
    """An action: the ratio as a share of the target, and the number of the rank in the list to choose from."""

    share: float
    rank: int


class Tree:
    """One agent: the leaves, and what their arms brought.

    Args:
      num_ranks: How many ranks there are to choose from.
      discount: Of a past arm, per round; 1 forgets nothing.
      smallest: Leaves of at most this diameter are not split.
    """

    def __init__(self, num_ranks: int, *, discount: float, smallest: float) -> None:
        self._num_ranks, self._discount, self._smallest = num_ranks, discount, smallest
        self.leaves = [Leaf(0.0, 1.0, 0, num_ranks)]
        self._played: list[tuple[Arm, float]] = []

    def learn(self, arm: Arm, reward: float) -> None:
        """An arm was played: its leaf is split, if it is large."""
        self._played.append((arm, reward))
        [index] = [index for index, leaf in enumerate(self.leaves) if leaf.holds(arm)]
        if self.leaves[index].diameter(self._num_ranks) > self._smallest:
            self.leaves[index : index + 1] = self.leaves[index].split(arm, self._num_ranks)

    def choose(self, lowest: float, highest: float, rng: np.random.Generator) -> Arm:
        """The next arm: drawn evenly from what can be reached of the leaf that promises most.

        Args:
          lowest, highest: The shares that can be reached.
          rng: For the draw.
        """
        within = [leaf for leaf in self.leaves if leaf.left <= highest and (lowest < leaf.right or leaf.right == 1.0)]
        bounds = self.bounds()
        best = max(within, key=lambda leaf: (bounds[leaf], leaf.right - leaf.left, leaf.high - leaf.low))
        share = rng.uniform(max(lowest, best.left), min(highest, best.right))
        return Arm(float(share), int(rng.integers(best.low, best.high)))

    def bounds(self) -> dict[Leaf, float]:
        """Mean reward and padding of every leaf; a leaf that was never played promises everything."""
        most = max((reward for _, reward in self._played), default=0.0) or 1.0  # a reward has no scale of its own
        count, gain = defaultdict[Leaf, float](float), defaultdict[Leaf, float](float)
        for age, (arm, reward) in enumerate(reversed(self._played)):
            [leaf] = [leaf for leaf in self.leaves if leaf.holds(arm)]
            count[leaf] += self._discount**age
            gain[leaf] += self._discount**age * reward / most
        spread = 2 * math.log(max(1.0, sum(count.values())))
        return {
            leaf: gain[leaf] / count[leaf] + math.sqrt(spread / count[leaf]) if leaf in count else math.inf
            for leaf in self.leaves
        }


def ratio_and_rank_by_bandit(
    target: float,
    *,
    rank: int | None = None,
    pace: float | None = None,
    discount: float = 0.95,
    smallest: float = 0.25,
    progress: float = 1.0,
) -> Planner:
    """A pruning ratio that grows to the target, and a rank, for each device and round.

    Args:
      target: Of the last round; 0 leaves the bandit the rank alone.
      rank: Every device's; None lets the bandit choose among 2, 4, 8, 16 and the run's, up to the run's.
      pace: The most that one round may prune; None is twice what even steps would.
      discount: Of what was learnt, per round.
      smallest: Diameter at which leaves are not split further.
      progress: The weight of pruning progress in the reward.

    Raises:
      ConfigError: A target outside [0, 1); when planning, a rank above the run's, or a target out of reach.

    Example:
      >>> from cutlayer import everyone, ratio_and_rank_by_bandit, whole_model
      >>> from cutlayer.testing.playground import planned
      >>> plan = planned(everyone(), whole_model(), ratio_and_rank_by_bandit(0.5, rank=8), rounds=4)
      >>> plan.devices[0].ranks, plan.devices[0].clauses  # who takes part for the first time prunes nothing, and scores
      ((8, 8, 8), (Prune(ratio=0.0, score=True),))
    """
    check_target(target)

    def planner(plan: RoundPlan, situation: Situation) -> RoundPlan:
        ranks = _ranks(rank, situation)
        step = _pace(target, pace, situation)
        brought = rewards(situation.history, progress=progress)

        def choose(device: DevicePlan) -> DevicePlan:
            tree, records = Tree(len(ranks), discount=discount, smallest=smallest), situation.history.of(device.device)
            for record in records:
                if (device.device, record.round) in brought:
                    share = min(1.0, _ratio(record) / target) if target else 0.0
                    tree.learn(Arm(share, ranks.index(record.ranks[0])), brought[device.device, record.round])
            so_far = _ratio(records[-1]) if records else None
            lowest, highest = (
                ratio / target if target else 0.0
                for ratio in reachable(target, so_far, step, plan.round, situation.rounds)
            )
            arm = tree.choose(lowest, highest, situation.random(plan.round, f"bandit of {device.device}"))
            chosen = (ranks[arm.rank],) * situation.costs.num_blocks
            device = replace(device, ranks=chosen)
            return device.having(Prune(max(so_far or 0.0, target * arm.share))) if target > 0 else device

        return plan.with_each(choose)

    return planner


def _ranks(rank: int | None, situation: Situation) -> tuple[int, ...]:
    """The ranks to choose from."""
    if rank is None:
        return (*(choice for choice in RANKS if choice < situation.rank), situation.rank)
    if not 1 <= rank <= situation.rank:
        raise ConfigError(
            f"method.rank: expected 1 to {situation.rank}, the run's (lora.rank), got {rank}. Change method.rank."
        )
    return (rank,)


def _pace(target: float, pace: float | None, situation: Situation) -> float:
    """The most that one round may prune."""
    even = target / (situation.rounds - 1) if situation.rounds > 1 else math.inf
    if target and situation.rounds == 1:
        raise ConfigError(
            f"train.rounds: expected at least 2 to prune {target:g} (the first scores, later ones prune), got 1. "
            "Raise train.rounds, or set method.prune=0."
        )
    if pace is not None and pace < even:
        raise ConfigError(
            f"method.pace: expected at least {even:.3g}, to prune {target:g} by the last of {situation.rounds} rounds, "
            f"got {pace}. Raise method.pace."
        )
    return 2 * even if pace is None else pace


def rewards(history: History, *, progress: float) -> dict[tuple[str, int], float]:
    """The reward of each device's choice, by device and round.

        (loss before - loss after)_+ (1 + progress * ratio added) * change / mean change
            / (0.01 + |time - mean time| / mean time)

    The loss is the mean over the device's steps of a round, before it that of the round in which it trained last, so
    its first round says nothing. The change is the norm of its LoRA update, the time that of its computing and its
    transfers; means are over the round's cohort. Of a device whose round did not count nothing is learnt.

    Args:
      history: What rounds measured.
      progress: The weight of pruning progress.
    """
    found, last = {}, dict[str, StepRecord]()
    for cohort in by_round(history).values():
        mean_change = float(np.mean([_change(record) for record in cohort])) or 1.0
        mean_seconds = float(np.mean([_seconds(record) for record in cohort])) or 1.0
        for record in cohort:
            before, last[record.device] = last.get(record.device), record
            if before is None:
                continue
            gain = max(0.0, before.loss - record.loss) * (1 + progress * (_ratio(record) - _ratio(before)))
            apart = abs(_seconds(record) - mean_seconds) / mean_seconds
            found[record.device, record.round] = gain * _change(record) / mean_change / (EPSILON + apart)
    return found


def by_round(history: History) -> Mapping[int, list[StepRecord]]:
    """The records of each round, of those whose work counts, in the order of the rounds."""
    rounds = defaultdict[int, list[StepRecord]](list)
    for record in sorted(history.records, key=lambda record: record.round):
        if record.samples:
            rounds[record.round].append(record)
    return rounds


def _seconds(record: StepRecord) -> float:
    return record.busy_seconds + record.network_seconds


def pruning(plan: DevicePlan, update: Update) -> dict[str, Any]:
    """The facts of a round that the bandit learns from: the ratio that was planned, and how far the adapter moved.

    Example:
      >>> from cutlayer import DevicePlan, pruning
      >>> from cutlayer.wire.messages import Update
      >>> pruning(DevicePlan("pi", cut=2), Update("run", 0, "pi", {}, 1, 1, 1, 0.5, 0.5))  # it prunes nothing
      {}
    """
    prune = plan.clause(Prune)
    return {} if prune is None else {"prune": prune.ratio, "change": float(update.facts["change"])}


def _ratio(record: StepRecord) -> float:
    """The share of its model that a device had pruned."""
    return float(record.facts.get("prune", 0.0))


def _change(record: StepRecord) -> float:
    """The Frobenius norm of what a round changed in a device's LoRA factors; 0 where the device did not score."""
    return float(record.facts.get("change", 0.0))
