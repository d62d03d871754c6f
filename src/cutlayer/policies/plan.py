"""Planners: each takes the plan so far and returns a better one. `plan=(everyone(), cut_by_memory())` is a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from cutlayer.fleet.profile import DeviceProfile, Fleet
from cutlayer.policies.robust import NONE, Robust
from cutlayer.policies.stragglers import Stragglers
from cutlayer.types import Costs, DevicePlan, History, RoundPlan


@dataclass(frozen=True, slots=True)
class Situation:
    """Facts that a planner may look at.

    Attributes:
      fleet: the machines, as declared.
      costs: what a step costs.
      history: what earlier rounds measured.
      num_tokens: the longest batch there can be.
      batch_size: samples per local step, as the run asks.
      local_steps: steps per round, as the run asks.
      rank: of LoRA, as the run asks.
      seed: for what a planner draws. A planner keeps nothing from round to round: it draws from the seed and the
        round, and learns from the history, so a resumed run plans as the stopped one would have.
      label_counts: by device, its samples of each class; empty where there are no classes (causal LM).
      base_dropout: whether the base model's own dropout is on.
      rounds: of the whole run.
      micro_batches: into which a step's batch is cut, as the run asks.
      overlap: whether a device computes while one is on its way, as the run asks.
      num_modules: LoRA modules of the model, as many in each block; 0 where that is not known.
      stragglers: how long rounds wait, as the run asks; None leaves it to the method.
      quantised: the form of the base's frozen weights; None for plain numbers.
      robust: how much one device may move the mean, as the run asks.

    Example:
      >>> from cutlayer import everyone
      >>> from cutlayer.testing.playground import planned
      >>> def shown(plan, situation):  # a planner that looks around
      ...     print(situation.costs.num_blocks, situation.batch_size, len(situation.fleet.devices))
      ...     return plan
      >>> _ = planned(everyone(), shown, num_devices=2)
      3 4 2
    """

    fleet: Fleet
    costs: Costs
    history: History
    num_tokens: int
    batch_size: int
    local_steps: int
    rank: int = 8
    seed: int = 0
    label_counts: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    base_dropout: bool = False
    rounds: int = 1
    micro_batches: int = 1
    overlap: bool = True
    num_modules: int = 0
    stragglers: Stragglers | None = None
    quantised: str | None = None
    robust: Robust = NONE

    def of(self, fleet: Fleet) -> Situation:
        """The situation in which a part of the fleet is there."""
        if fleet is self.fleet:
            return self
        names = {device.name for device in fleet.devices}
        counts = {name: counts for name, counts in self.label_counts.items() if name in names}
        return replace(self, fleet=fleet, label_counts=counts)

    def profile(self, device: str) -> DeviceProfile:
        return next(profile for profile in self.fleet.devices if profile.name == device)

    def random(self, round: int, what: str) -> np.random.Generator:
        """A generator for the draws of one planner in one round: by the run's seed, whatever else is drawn."""
        return np.random.default_rng([self.seed, round, *what.encode()])

    def device_bytes(self, device: DevicePlan) -> int:
        """Memory that the device's part needs at its largest batch: as much of it as it holds at a time."""
        return self.costs.device(device, device.samples_in_flight, self.num_tokens).memory_bytes


class Planner(Protocol):
    """Maps the plan so far to a better one. Must not change what it is given.

    Example:
      >>> from dataclasses import replace
      >>> from cutlayer import DevicePlan, Planner, RoundPlan, Situation, everyone
      >>> from cutlayer.testing.playground import planned
      >>> def slow_ones_hold_little(slow: float) -> Planner:
      ...     def planner(plan: RoundPlan, situation: Situation) -> RoundPlan:
      ...         def cut(device: DevicePlan) -> DevicePlan:
      ...             flops_per_second = situation.profile(device.device).effective_flops
      ...             return replace(device, cut=1 if flops_per_second < slow else 3)
      ...         return plan.with_each(cut)
      ...     return planner
      >>> [device.cut for device in planned(everyone(), slow_ones_hold_little(2e9)).devices]
      [1, 3, 3]
    """

    def __call__(self, plan: RoundPlan, situation: Situation) -> RoundPlan: ...


def make_plan(planners: tuple[Planner, ...], round: int, situation: Situation) -> RoundPlan:
    """Runs the planners in order, from a plan without devices."""
    plan = RoundPlan(round)
    for planner in planners:
        plan = planner(plan, situation)
    return plan
