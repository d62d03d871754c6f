"""After a round: many adapters to one.

A round hands over contributions: tensors by global name, each with the weight of what was trained into it. Because
names are global, devices with different cuts need no mapping, and a tensor is averaged over exactly those who
trained it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from cutlayer.types import Adapter


@dataclass(frozen=True, slots=True)
class Contribution:
    """Somebody's tensors after a round.

    Attributes:
      adapter: values by global name.
      weights: by the same names, the loss normaliser (samples, or target tokens) that was trained into each.
    """

    adapter: Adapter
    weights: Mapping[str, float]


class Aggregate(Protocol):
    """Makes the next full adapter from the one that was broadcast and the contributions to it."""

    def __call__(self, broadcast: Adapter, contributions: Sequence[Contribution]) -> Adapter: ...


def mean_per_block(*, weighted: bool = True) -> Aggregate:
    """The mean of each tensor over those who trained it: A and B averaged separately, as in FedAvg.

    Sums are in fp64 and begin with the first contribution, so the mean of equal values is that value and the mean
    of one contribution is itself, bit for bit. A tensor that nobody trained keeps its broadcast value.

    Args:
      weighted: by what was trained; False counts everyone who trained anything alike.
    """

    def aggregate(broadcast: Adapter, contributions: Sequence[Contribution]) -> Adapter:
        result = {}
        for name, value in broadcast.items():
            parts = [
                (c.adapter[name], c.weights[name] if weighted else 1.0)
                for c in contributions
                if name in c.adapter and c.weights[name] > 0
            ]
            total = sum(weight for _, weight in parts)
            if not parts:
                result[name] = value
                continue
            mean = torch.zeros_like(value, dtype=torch.float64)
            for tensor, weight in parts:
                mean += tensor.double() * (weight / total)
            result[name] = mean.to(value.dtype)
        return result

    return aggregate
