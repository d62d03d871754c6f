"""Means that one device cannot move far: what is made of contributions before the method's aggregate averages them.

    none           nothing: a device that sends its last step back times ten moves the mean ten times as far
    clip:FACTOR    a change whose norm is above FACTOR times the median of those that it is averaged with is scaled
                   down to that
    median         every number is the median over the devices that trained it, whatever their weights
    trimmed:F      of every number the largest and the smallest part F of the devices are left out, and the others
                   averaged by their weights

Norms are bounded as in Sun, Kairouz, Suresh, McMahan 2019 (arXiv 1911.07963), here against the round's median in place
of a fixed norm; median and trimmed mean are those of Yin, Chen, Ramchandran, Bartlett 2018 (arXiv 1803.01498). Both are
cited from general knowledge. What devices with unequal data send differs honestly, so each costs accuracy where nobody
is hostile; none withstands a majority.

A median or a trimmed mean is handed to the aggregate as what every device sent: the mean of equal values is that value,
to the last bit, so whatever the aggregate does beside averaging (momentum, age) it does with this mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median_low
from typing import TYPE_CHECKING

from cutlayer.errors import ConfigError

if TYPE_CHECKING:  # how a person spells a policy is read before torch is imported
    from torch import Tensor

    from cutlayer.policies.aggregate import Contribution
    from cutlayer.types import Adapter

SPELLED = "none, clip:FACTOR above 0, median or trimmed:F from 0 to below 0.5"


@dataclass(frozen=True, slots=True)
class Robust:
    """A policy for what is made of contributions.

    Attributes:
      factor: times the median norm, what a change's norm may be.
      trimmed: the part of the devices that is left out at each end of each number.
      median: whether the median stands for the mean.
    """

    factor: float = math.inf
    trimmed: float = 0.0
    median: bool = False

    @property
    def by_number(self) -> bool:
        """Whether numbers of several devices are held against each other one by one, which takes equal shapes."""
        return self.median or self.trimmed > 0

    @property
    def on(self) -> bool:
        """Whether anything is done at all."""
        return self.by_number or self.factor < math.inf

    def __call__(self, broadcast: Adapter, contributions: Sequence[Contribution]) -> list[Contribution]:
        """The contributions that the aggregate is given in place of those that were sent.

        Args:
          broadcast: From what the devices began.
          contributions: Of those that are averaged with each other.

        Example:
          >>> import torch
          >>> from cutlayer.policies.aggregate import Contribution
          >>> def of_one(value: float) -> Contribution:
          ...     return Contribution({"w": torch.tensor([value])}, {"w": 1.0})
          >>> parts = [of_one(value) for value in (1.0, 2.0, 90.0)]
          >>> [part.adapter["w"].item() for part in Robust(median=True)({"w": torch.zeros(1)}, parts)]
          [2.0, 2.0, 2.0]
          >>> [part.adapter["w"].item() for part in Robust(factor=3.0)({"w": torch.zeros(1)}, parts)]
          [1.0, 2.0, 6.0]
        """
        if self.by_number:
            return self._centred(contributions)
        return self._clipped(broadcast, contributions)

    def _clipped(self, broadcast: Adapter, contributions: Sequence[Contribution]) -> list[Contribution]:
        if self.factor == math.inf:
            return list(contributions)
        changes = [change(broadcast, part) for part in contributions]
        norms = [norm(one) for one in changes]
        moved = [own for own, one in zip(norms, changes, strict=True) if one]  # of those who hold something
        most = self.factor * median_low(moved) if moved else 0.0
        return [
            part if own <= most else _scaled(broadcast, part, most / own)
            for part, own in zip(contributions, norms, strict=True)
        ]

    def _centred(self, contributions: Sequence[Contribution]) -> list[Contribution]:
        names = dict.fromkeys(name for part in contributions for name in part.adapter)
        centres: Adapter = {}
        for name in names:
            parts = [(part.adapter[name], part.weights[name]) for part in contributions if _trained(part, name)]
            if len(parts) > 1:
                centres[name] = self._centre([value for value, _ in parts], [weight for _, weight in parts])
        return [
            replace(
                part,
                adapter={
                    name: centres[name] if name in centres and _trained(part, name) else value
                    for name, value in part.adapter.items()
                },
            )
            for part in contributions
        ]

    def _centre(self, values: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        """The middle of each number, or of the two in the middle the mean; or the mean without the ends."""
        import torch

        sorted_N, order_N = torch.stack([value.double() for value in values]).sort(dim=0)
        count = len(values)
        if self.median:
            middle = sorted_N[(count - 1) // 2], sorted_N[count // 2]
            return ((middle[0] + middle[1]) / 2).to(values[0].dtype)
        left_out = int(self.trimmed * count)
        kept = slice(left_out, count - left_out)
        weight_N = torch.tensor(weights, dtype=torch.float64, device=sorted_N.device)[order_N][kept]
        return ((sorted_N[kept] * weight_N).sum(0) / weight_N.sum(0)).to(values[0].dtype)


NONE = Robust()
"""Contributions count as they are."""


def robust_by_name(name: str) -> Robust:
    """The policy as a run file spells it.

    Raises:
      ConfigError: No such policy, or a number out of its range.

    Example:
      >>> robust_by_name("clip:3").factor, robust_by_name("trimmed:0.2").trimmed
      (3.0, 0.2)
    """
    kind, separator, number = name.partition(":")
    if not separator and kind in ("none", "median"):
        return Robust(median=kind == "median")
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if separator and kind == "clip" and value > 0:
        return Robust(factor=value)
    if separator and kind == "trimmed" and 0 <= value < 0.5:
        return Robust(trimmed=value)
    raise ConfigError(f"train.robust: expected a policy, got {name!r}. Write {SPELLED}.")


# ------------------------------------------------------------------ what somebody has changed


def change(broadcast: Adapter, part: Contribution) -> Adapter:
    """The change of what was broadcast that a contribution makes, by name, in the contribution's shapes; fp32.

    Args:
      broadcast: Whole tensors.
      part: Whose tensors may be parts of those: lower ranks, or places that it says.
    """
    return {
        name: value.to(broadcast[name].device).float() - broadcast[name][places_of(part, name)].float()
        for name, value in part.adapter.items()
        if name in broadcast and _trained(part, name)
    }


def places_of(part: Contribution, name: str) -> tuple[slice | Tensor, ...]:
    """The entries of the full tensor that a contribution's tensor has, axis by axis."""
    places: list[slice | Tensor] = [slice(size) for size in part.adapter[name].shape]
    if name in part.where:
        axis, positions = part.where[name]
        places[axis] = positions
    return tuple(places)


def norm(tensors: Mapping[str, Tensor]) -> float:
    """The norm of all of them together; their squares add up in fp64."""
    import torch

    norms = (float(torch.linalg.vector_norm(value, dtype=torch.float64)) for value in tensors.values())
    return math.sqrt(math.fsum(own**2 for own in norms))


def _trained(part: Contribution, name: str) -> bool:
    return name in part.adapter and part.weights[name] > 0


def _scaled(broadcast: Adapter, part: Contribution, factor: float) -> Contribution:
    """The contribution with a change that is so many times its own."""
    changes = change(broadcast, part)
    adapter = {
        name: (broadcast[name][places_of(part, name)].double() + changes[name].double() * factor).to(value)
        if name in changes
        else value
        for name, value in part.adapter.items()
    }
    return replace(part, adapter=adapter)
