"""Rules that make one adapter of many after a round.

A round hands over contributions: tensors by global name, each with the weight of what was trained into it. Because
names are global, devices with different cuts need no mapping, and a tensor is averaged over exactly those who
trained it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from cutlayer.errors import ConfigError
from cutlayer.model.low_rank import Term
from cutlayer.state import State, Stateless
from cutlayer.types import Adapter, RoundPlan


@dataclass(frozen=True, slots=True)
class Contribution:
    """Somebody's tensors after a round.

    Attributes:
      adapter: values by global name.
      weights: by the same names, the loss normaliser (samples, or target tokens) that was trained into each.
      device: whose they are; empty where several devices trained them.
      round: the round in which they were begun.
      where: of tensors that hold a part of the full one: the axis, and which positions along it they hold.
      facts: what else the device said, by name (`Update.facts`).

    Example:
      >>> import torch
      >>> from cutlayer import Contribution
      >>> Contribution({"head.weight": torch.ones(2)}, {"head.weight": 8.0}, device="device-0").weights
      {'head.weight': 8.0}
    """

    adapter: Adapter
    weights: Mapping[str, float]
    device: str = ""
    round: int = 0
    where: Mapping[str, tuple[int, Tensor]] = field(default_factory=dict)
    facts: Adapter = field(default_factory=dict)


def terms_of(contributions: Sequence[Contribution], b: str, a: str) -> list[Term]:
    """The factors named `b` and `a` of everybody who trained them, each pair with its weight."""
    return [
        (part.weights[a], part.adapter[b], part.adapter[a])
        for part in contributions
        if a in part.adapter and part.weights[a] > 0
    ]


class Aggregate(Protocol):
    """Makes the next full adapter from the one that was broadcast and the contributions to it.

    Attributes:
      name: as an error calls it.
      mixed_ranks: whether it joins adapters of different ranks on one block.

    Example:
      >>> import torch
      >>> from cutlayer import Aggregate, Contribution, RoundPlan
      >>> class Last:  # whoever comes last is right
      ...     name, mixed_ranks = "the last one", False
      ...     def __call__(self, broadcast, contributions, plan):
      ...         return {**broadcast, **contributions[-1].adapter}
      ...     def state(self):
      ...         return State()
      ...     def load(self, state):
      ...         pass
      >>> from cutlayer.state import State
      >>> last: Aggregate = Last()
      >>> parts = [Contribution({"w": torch.tensor([float(n)])}, {"w": 1.0}) for n in range(3)]
      >>> last({"w": torch.zeros(1)}, parts, RoundPlan(0))
      {'w': tensor([2.])}
    """

    name: str
    mixed_ranks: bool

    def __call__(self, broadcast: Adapter, contributions: Sequence[Contribution], plan: RoundPlan) -> Adapter:
        """The next adapter.

        Args:
          broadcast: From what the round's devices began.
          contributions: Of those who did not leave.
          plan: The round's, those who left included.
        """

    def state(self) -> State:
        """The state that a resumed run needs to aggregate as this one would have."""

    def load(self, state: State) -> None:
        """Goes on from a `state`."""


def mean_per_block(*, weighted: bool = True) -> Aggregate:
    """The mean of each tensor over those who trained it: A and B averaged separately, as in FedAvg.

    Sums are in fp64, so the mean of equal values is that value and the mean of one contribution is itself, bit for
    bit. A tensor that nobody trained keeps its broadcast value.

    Args:
      weighted: by what was trained; False counts everyone who trained anything alike.

    Example:
      >>> import torch
      >>> from cutlayer import Contribution, RoundPlan, mean_per_block
      >>> def of_one(value: float, samples: float) -> Contribution:
      ...     return Contribution({"head.weight": torch.tensor([value])}, {"head.weight": samples})
      >>> aggregate = mean_per_block()
      >>> aggregate({"head.weight": torch.tensor([0.0])}, [of_one(1.0, 30), of_one(5.0, 10)], RoundPlan(0))
      {'head.weight': tensor([2.])}
    """
    return _Mean(weighted)


def with_momentum(aggregate: Aggregate, momentum: float) -> Aggregate:
    """Lets the mean of the updates gather momentum from round to round: many small averaged steps go further.

    The change that a round brings is taken as a gradient and handed to Nesterov momentum, as the outer optimizer of
    DiLoCo (Douillard et al. 2023, arXiv 2311.08105) and SlowMo (Wang et al. 2020, arXiv 1910.00643) do, at rate 1:

        velocity <- momentum * velocity + (mean - broadcast)
        next     <- broadcast + (mean - broadcast) + momentum * velocity

    Args:
      aggregate: What makes the mean.
      momentum: Below 1; 0 is `aggregate` itself.

    Raises:
      ConfigError: A momentum that is negative or would grow for ever.

    Example:
      >>> import torch
      >>> from cutlayer import Contribution, RoundPlan, mean_per_block, with_momentum
      >>> def of_one(value: float, samples: float) -> Contribution:
      ...     return Contribution({"head.weight": torch.tensor([value])}, {"head.weight": samples})
      >>> aggregate = with_momentum(mean_per_block(), 0.5)
      >>> aggregate({"head.weight": torch.tensor([0.0])}, [of_one(1.0, 30), of_one(5.0, 10)], RoundPlan(0))
      {'head.weight': tensor([3.])}
    """
    if not 0 <= momentum < 1:
        raise ConfigError(f"method.momentum: expected at least 0 and below 1, got {momentum}. Change method.momentum.")
    return _Momentum(aggregate, momentum) if momentum else aggregate


class _Mean(Stateless):
    name, mixed_ranks = "the mean per block", False

    def __init__(self, weighted: bool) -> None:
        self._weighted = weighted

    def __call__(self, broadcast: Adapter, contributions: Sequence[Contribution], plan: RoundPlan) -> Adapter:  # noqa: ARG002
        return {name: self._mean(name, value, contributions) for name, value in broadcast.items()}

    def _mean(self, name: str, value: Tensor, contributions: Sequence[Contribution]) -> Tensor:
        parts = [
            (part.adapter[name], part.weights[name] if self._weighted else 1.0)
            for part in contributions
            if name in part.adapter and part.weights[name] > 0
        ]
        if not parts:
            return value
        total = sum(weight for _, weight in parts)
        first, *others = (tensor.double() * (weight / total) for tensor, weight in parts)
        return sum(others, start=first).to(value.dtype)


class _Momentum:
    def __init__(self, aggregate: Aggregate, momentum: float) -> None:
        self.name, self.mixed_ranks = aggregate.name, aggregate.mixed_ranks
        self._aggregate, self._momentum = aggregate, momentum
        self._velocity: Adapter = {}

    def __call__(self, broadcast: Adapter, contributions: Sequence[Contribution], plan: RoundPlan) -> Adapter:
        mean, result = self._aggregate(broadcast, contributions, plan), {}
        for name, value in broadcast.items():
            change = mean[name] - value
            velocity = self._momentum * self._velocity.get(name, torch.zeros_like(value)) + change
            self._velocity[name] = velocity
            result[name] = value + change + self._momentum * velocity
        return result

    def state(self) -> State:
        return State(tensors=dict(self._velocity))

    def load(self, state: State) -> None:
        self._velocity = dict(state.tensors)
