"""One full adapter of adapters of different shapes and ranks, after a round of pruned devices.

Each device's factors are scattered to the full indices, and every entry is averaged over those who have it:

    entry <- sum over its owners of (w_i / sum over its owners of w_j) * their value;  nobody's entry stays

A device has the columns of A and the rows of B that its structure left it, and the first rows of A and columns of B
that its rank gave it. So a unit that most have removed is not drawn to zero by them, and neither is a high rank.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cutlayer.model.structure import CHANNELS, HEADS, IMPORTANCE, KEPT
from cutlayer.policies.aggregate import Contribution
from cutlayer.policies.prune import most_important
from cutlayer.policies.robust import places_of
from cutlayer.state import State
from cutlayer.types import Adapter, Kept, RoundPlan


class Scatter:
    """The mean of each entry over its owners, and the structure that the devices have come to together.

    With equal ranks and nothing pruned it is `mean_per_block()`, bit for bit.

    Args:
      weighted: By what was trained; False counts everyone alike.
    """

    name, mixed_ranks = "the mean over owners", True

    def __init__(self, *, weighted: bool = True) -> None:
        self._weighted = weighted
        self._importance: Adapter = {}
        self._left = (0, 0)

    def __call__(self, broadcast: Adapter, contributions: Sequence[Contribution], plan: RoundPlan) -> Adapter:  # noqa: ARG002
        self._learn(contributions)
        return {name: self._mean(name, value, contributions) for name, value in broadcast.items()}

    def structure(self) -> Kept | None:
        """The structure of the one model that the round ends with; None before any device was pruned.

        Blocks have as many units left as they have on the devices on average, rounded up, and those that matter most
        to the devices on average, where a unit matters nothing to a device that has removed it.
        """
        if not self._importance:
            return None
        every = {name: tuple(range(len(scores))) for name, scores in self._importance.items()}
        blocks = range(len(every) // 2)
        everything = Kept(
            tuple(every[f"{block}.heads"] for block in blocks), tuple(every[f"{block}.channels"] for block in blocks)
        )
        return most_important(self._importance, everything, self._left)

    def _mean(self, name: str, value: Tensor, contributions: Sequence[Contribution]) -> Tensor:
        parts = [
            (part.adapter[name].double(), places_of(part, name), self._weight(part, name))
            for part in contributions
            if name in part.adapter and part.weights[name] > 0
        ]
        total, mean = (torch.zeros(value.shape, dtype=torch.float64, device=value.device) for _ in range(2))
        for _, places, weight in parts:
            total[places] += weight
        for tensor, places, weight in parts:  # a number over a tensor would be its reciprocal times the number
            mean[places] += tensor * (torch.tensor(weight, dtype=torch.float64) / total[places])
        return torch.where(total > 0, mean.to(value.dtype), value)

    def _weight(self, part: Contribution, name: str) -> float:
        return part.weights[name] if self._weighted else 1.0

    def _learn(self, contributions: Sequence[Contribution]) -> None:
        """Takes in what pruned devices say of their units, and how many they have left."""
        pruned = [
            (part.facts, importance, self._weight(part, next(iter(part.weights))))
            for part in contributions
            if (importance := _importance(part))
        ]
        total = sum(weight for _, _, weight in pruned)
        if not total:
            return
        heads, channels = (
            math.ceil(sum(weight * len(facts[f"{KEPT}0.{group}"]) for facts, _, weight in pruned) / total - 1e-9)
            for group in (HEADS, CHANNELS)
        )
        self._left = heads, channels
        first, *others = (
            {name: scores.double() * (weight / total) for name, scores in importance.items()}
            for _, importance, weight in pruned
        )
        self._importance = {name: sum((o[name] for o in others), start=first[name]).float() for name in first}

    def state(self) -> State:
        return State({"left": self._left}, dict(self._importance)) if self._importance else State()

    def load(self, state: State) -> None:
        self._importance = dict(state.tensors)
        if self._importance:
            heads, channels = state.facts["left"]
            self._left = heads, channels


def scatter(*, weighted: bool = True) -> Scatter:
    """Builds a `Scatter`.

    Example:
      >>> from cutlayer import scatter
      >>> scatter(weighted=False).name
      'the mean over owners'
    """
    return Scatter(weighted=weighted)


def _importance(part: Contribution) -> Adapter:
    """The importance of each unit that a pruned device says, by unit; none of a device that has not scored."""
    return {name.removeprefix(IMPORTANCE): v for name, v in part.facts.items() if name.startswith(IMPORTANCE)}
