"""The cut of each device: tabular Q-learning, one table for all devices, rebuilt from the history every round.

ReinDSplit (arXiv 2506.13935): a finite MDP and Q-learning choose each device's cut, to balance its workload against a
latency threshold. That much is sure; what its states and rewards are made of could not be read. Our reading:

    state      bins of what the device's last round measured: (speed, link, memory, cut, latency)
    action     a cut, among those that the device's memory holds and its owner lends
    reward     w_acc (L - L') / |L| - w_lat (T - 1)_+ - w_load ((u - HIGH)_+ + (LOW - u)_+)
    update     Q(s, a) += (1 + visits of (s, a))^-0.6 (reward + discount max_a' Q(s', a') - Q(s, a))
    choice     with the chance epsilon any action, else the best in its state

L is a moving average of the device's loss, T the seconds of its local step and u those in which it computed, both in
thresholds. The threshold, like the speed and the rate that bins are held against, is the median of the first round, in
which every device has the middle cut.

A planner keeps nothing: the past actions are the cuts that records say, the states what the records before them said.

Every number that stands in capitals here is ours, and so are the weights and the discount (docs/lab-log.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import NamedTuple

import numpy as np

from cutlayer.errors import ConfigError
from cutlayer.policies.cut import cut_by_memory
from cutlayer.policies.plan import Planner, Situation
from cutlayer.types import DevicePlan, History, RoundPlan, StepRecord

LOW, HIGH = 0.5, 0.9
"""A device that computes for less than the one part of the threshold is starved, for more than the other overloaded."""
KEEP = 0.8
"""Weight of the old value in the moving average of a loss."""
FIRST_EPSILON, LAST_EPSILON = 1.0, 0.05
"""Chances of any action, in the first round and when exploration is over."""
LATE = 2.0
"""Thresholds that a device is taken to need for a step, and to compute, where none of its round's steps counted."""
MIDDLE = 1
"""The bin of what was never measured."""


class State(NamedTuple):
    """The facts that the table knows of a device: each a bin of 0, 1 or 2, but for the cut.

    Attributes:
      speed: FLOP/s, beside the first round's median: below 2/3 of it, near it, above 3/2.
      link: bytes per second of transfers, likewise.
      memory: the part of the device's memory that its part of the model took: up to a third, two thirds, more.
      cut: blocks that it held.
      latency: of its step, in thresholds: up to LOW, up to 1, more.
    """

    speed: int
    link: int
    memory: int
    cut: int
    latency: int


@dataclass(frozen=True, slots=True)
class Reference:
    """Medians over the devices of the first round that measured any: what later ones are held against.

    Attributes:
      speed: FLOP/s.
      rate: bytes per second.
      seconds: of a local step.
    """

    speed: float
    rate: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Seen:
    """The outcome of a round at a cut for one device.

    Attributes:
      device: its name.
      round: its number.
      cut: blocks that it held.
      drop: of the average loss, as a part of what it was before.
      latency: seconds of its local step, in thresholds.
      load: seconds in which it computed for one, in thresholds.
      before: its state when the cut was chosen; None in its first round.
      after: its state now; None where nothing was ever measured of it.
    """

    device: str
    round: int
    cut: int
    drop: float
    latency: float
    load: float
    before: State | None
    after: State | None


@dataclass(frozen=True, slots=True)
class RewardWeights:
    """Weights of the three terms of a reward.

    Example:
      >>> from cutlayer import RewardWeights
      >>> RewardWeights(latency=2.0).load
      0.5
    """

    accuracy: float = 1.0
    latency: float = 1.0
    load: float = 0.5

    def reward(self, seen: Seen) -> float:
        """The reward of a round: what the loss fell, less what a step took too long, less too much or too little work.

        >>> RewardWeights().reward(Seen("pi", 1, 2, drop=0.1, latency=1.25, load=0.75, before=None, after=None))
        -0.15
        """
        late = max(0.0, seen.latency - 1)
        uneven = max(0.0, seen.load - HIGH) + max(0.0, LOW - seen.load)
        return self.accuracy * seen.drop - self.latency * late - self.load * uneven


class Table:
    """Q, of states and cuts. What was never tried is worth 0, more than most of what was: rewards are mostly penalties.

    Args:
      discount: What the next state's worth counts in this one's.
    """

    def __init__(self, discount: float) -> None:
        self._discount = discount
        self._values: dict[tuple[State, int], float] = {}
        self._visits: dict[tuple[State, int], int] = {}

    def value(self, state: State, cut: int) -> float:
        """The worth of this cut in this state."""
        return self._values.get((state, cut), 0.0)

    def learn(self, state: State, cut: int, reward: float, after: State, actions: Sequence[int]) -> None:
        """Takes in that `cut` in `state` brought `reward` and led to `after`, where `actions` may be taken."""
        entry = (state, cut)
        rate = (1 + self._visits.get(entry, 0)) ** -0.6
        aim = reward + self._discount * max(self.value(after, action) for action in actions)
        self._values[entry] = self.value(*entry) + rate * (aim - self.value(*entry))
        self._visits[entry] = self._visits.get(entry, 0) + 1

    def best(self, state: State, actions: Sequence[int]) -> list[int]:
        """Those of the actions that are worth most, in their order."""
        most = max(self.value(state, action) for action in actions)
        return [action for action in actions if self.value(state, action) == most]


def cut_by_qlearning(
    *,
    least: int = 1,
    deepest: int | None = None,
    choices: int = 6,
    threshold: float | None = None,
    explore: float = 0.3,
    discount: float = 0.5,
    weights: RewardWeights | None = None,
) -> Planner:
    """Cuts each device where the table promises most, or, to explore, anywhere. Put it before what thins the cohort.

    A device of which nothing is known yet has the middle one of the cuts, or the deepest below it that it can hold; if
    it was late with that, the least.

    Args:
      least: The fewest blocks to choose; a device that cannot hold them is an error.
      deepest: The most blocks to choose; None for all but one.
      choices: The most cuts to choose among: evenly spread over these, both ends among them.
      threshold: Seconds that a local step should take at most; None for the first round's median.
      explore: The part of the rounds over which the chance of any cut falls; 0 for no such chance at all.
      discount: See `Table`.
      weights: Of the reward; None for the usual ones.

    Raises:
      ConfigError: An option that is out of its range, some of them when planning.
      BudgetError: When planning, a device that cannot hold `least` blocks.

    Example:
      >>> from cutlayer import cut_by_qlearning, everyone
      >>> from cutlayer.testing.playground import planned
      >>> [device.cut for device in planned(everyone(), cut_by_qlearning()).devices]  # the first round: in the middle
      [1, 1, 1]
    """
    _check("choices", choices, choices >= 1, "at least 1")
    _check("threshold", threshold, threshold is None or threshold > 0, "seconds above 0, or null")
    _check("explore", explore, 0 <= explore <= 1, "0 to 1")
    _check("discount", discount, 0 <= discount < 1, "at least 0 and below 1")
    weights = weights or RewardWeights()
    for name, weight in (("w_acc", weights.accuracy), ("w_lat", weights.latency), ("w_load", weights.load)):
        _check(name, weight, 0 <= weight < float("inf"), "at least 0")

    def planner(plan: RoundPlan, situation: Situation) -> RoundPlan:
        every = cuts_between(least, deepest, choices, situation.costs.num_blocks)
        actions = allowed(every, plan, situation)
        table, states = learnt(situation, actions, threshold=threshold, discount=discount, weights=weights)
        known = {record.device for record in situation.history.records}
        chance = epsilon(plan.round, explore * situation.rounds)

        def choose(device: DevicePlan) -> DevicePlan:
            mine, state = actions[device.device], states.get(device.device)
            if state is None:
                middle = max(action for action in mine if action <= every[(len(every) - 1) // 2])
                return replace(device, cut=mine[0] if device.device in known else middle)
            random = situation.random(plan.round, f"cut of {device.device}")
            among = mine if random.random() < chance else table.best(state, mine)
            return replace(device, cut=among[random.integers(len(among))])

        return plan.with_each(choose)

    return planner


def cuts_between(least: int, deepest: int | None, choices: int, num_blocks: int) -> list[int]:
    """The cuts to choose among, from the least to the deepest.

    >>> cuts_between(1, None, 6, 32)
    [1, 7, 13, 19, 25, 31]

    Raises:
      ConfigError: Fewer blocks than none, more than there are, or less at most than at least.
    """
    most = max(least, num_blocks - 1) if deepest is None else deepest
    _check("least", least, 0 <= least <= num_blocks, f"0 to {num_blocks}, the model's blocks")
    _check("deepest", most, least <= most <= num_blocks, f"method.least, {least}, to {num_blocks}, the model's blocks")
    return sorted({round(cut) for cut in np.linspace(least, most, choices).tolist()})


def allowed(cuts: Sequence[int], plan: RoundPlan, situation: Situation) -> dict[str, list[int]]:
    """The cuts that the memory of each device holds and its owner lends, by its name: the least at any rate.

    Raises:
      ConfigError: A device's owner lends less than the least of them.
      BudgetError: A device cannot hold the least of them.
    """
    deepest = cut_by_memory(least=cuts[0])(plan, situation)
    return {device.device: [cut for cut in cuts if cut <= device.cut] for device in deepest.devices}


def epsilon(round: int, rounds: float) -> float:
    """The chance of any action in a round, where exploration lasts so many rounds.

    >>> [epsilon(round, 4) for round in (0, 2, 4, 5)]
    [1.0, 0.525, 0.05, 0.05]
    """
    if rounds == 0:
        return 0.0
    passed = min(1.0, round / rounds)
    return (1 - passed) * FIRST_EPSILON + passed * LAST_EPSILON


def learnt(
    situation: Situation,
    actions: Mapping[str, Sequence[int]],
    *,
    threshold: float | None = None,
    discount: float = 0.5,
    weights: RewardWeights | None = None,
) -> tuple[Table, dict[str, State]]:
    """The table after all that the history says, and the state in which it leaves each device.

    Nothing is learnt of a device that is not here any more: what it could have done instead is not known.

    Args:
      situation: Whose history it is.
      actions: By device that is here, its cuts.
      threshold: See `cut_by_qlearning`.
      discount: See `Table`.
      weights: Of the reward; None for the usual ones.
    """
    table, states, weights = Table(discount), dict[str, State](), weights or RewardWeights()
    memories = {profile.name: profile.memory_bytes for profile in situation.fleet.devices if profile.name in actions}
    for seen in observed(situation.history, memories, threshold):
        if seen.after is None:
            continue
        if seen.before is not None:
            table.learn(seen.before, seen.cut, weights.reward(seen), seen.after, actions[seen.device])
        states[seen.device] = seen.after
    return table, states


def observed(history: History, memories: Mapping[str, int], threshold: float | None = None) -> Iterator[Seen]:
    """Yields the outcome of each round for each device, in the order of rounds, from the first that measured anything.

    Args:
      history: What rounds measured.
      memories: Bytes that a device offers, by name; of others nothing is said.
      threshold: Seconds of a local step; None for the first round's median.
    """
    reference = reference_of(history)
    if reference is None:
        return
    threshold = threshold or reference.seconds
    states, losses = dict[str, State](), dict[str, float]()
    for record in sorted(history.records, key=lambda record: record.round):
        device = record.device
        if device not in memories:
            continue
        before, drop, latency, load = states.get(device), 0.0, LATE, LATE
        if record.steps:
            latency, load = step_seconds(record) / threshold, record.busy_seconds / record.steps / threshold
            states[device] = _state(record, memories[device], reference, latency, before)
            old = losses.get(device, record.loss)
            losses[device] = KEEP * old + (1 - KEEP) * record.loss
            drop = (old - losses[device]) / abs(old) if old else 0.0
        elif before is not None:
            states[device] = before._replace(cut=record.cut, latency=2)
        yield Seen(device, record.round, record.cut, drop, latency, load, before, states.get(device))


def step_seconds(record: StepRecord) -> float:
    """Seconds of a local step: the round's computing and transfers over its steps.

    What the device waited is left out. With all of it everybody's round takes as long as the slowest's, and what of it
    was for the server is not known: on a real fleet it holds the building of parts, too.
    """
    return (record.busy_seconds + record.network_seconds) / record.steps


def reference_of(history: History) -> Reference | None:
    """The medians that later rounds are held against; None while nothing has been measured."""
    first = min((record.round for record in history.records if record.steps), default=None)
    counted = [record for record in history.records if record.round == first and record.steps]
    if not counted:
        return None
    return Reference(
        speed=median(_over(record.flops, record.busy_seconds) for record in counted),
        rate=median(_over(_num_bytes(record), record.network_seconds) for record in counted),
        seconds=median(map(step_seconds, counted)) or 1.0,
    )


def _state(record: StepRecord, memory_bytes: int, reference: Reference, latency: float, before: State | None) -> State:
    """The bins of what a round measured; what it did not stays as it was."""
    speed, link = (MIDDLE, MIDDLE) if before is None else (before.speed, before.link)
    if record.busy_seconds:
        speed = _beside(record.flops / record.busy_seconds, reference.speed)
    if record.network_seconds:
        link = _beside(_num_bytes(record) / record.network_seconds, reference.rate)
    return State(
        speed=speed,
        link=link,
        memory=_bin(record.memory_bytes / memory_bytes, 1 / 3, 2 / 3),
        cut=record.cut,
        latency=_bin(latency, LOW, 1.0),
    )


def _num_bytes(record: StepRecord) -> int:
    return record.bytes_up + record.bytes_down


def _over(amount: float, seconds: float) -> float:
    return amount / seconds if seconds else 0.0


def _beside(value: float, reference: float) -> int:
    """The bin of a value beside that of the first round's median; the middle where there was none."""
    return _bin(value / reference, 2 / 3, 3 / 2) if reference else MIDDLE


def _bin(value: float, low: float, high: float) -> int:
    return int(value > low) + int(value > high)


def _check(option: str, value: object, holds: bool, expected: str) -> None:
    if not holds:
        raise ConfigError(f"method.{option}: expected {expected}, got {value}. Change method.{option}.")
