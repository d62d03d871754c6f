"""Updates of unequal age: the older one counts less, and together they move the adapter only a part of the way.

    S(d) = (d + 1)^-a                                 d: rounds since the update's task was begun
    u    = sum_c S(d_c) n_c w_c / sum_c S(d_c) n_c
    next = (1 - alpha_t) w + alpha_t u                alpha_t = alpha S(mean d_c)

S is one of the functions of FedAsync (Xie, Koyejo, Gupta 2019, arXiv 1903.03934), which mixes one update at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

from cutlayer.errors import ConfigError
from cutlayer.policies.aggregate import Aggregate, Contribution, mean_per_block
from cutlayer.state import Stateless
from cutlayer.types import Adapter, RoundPlan


def staleness_weighted(*, mixing: float, power: float) -> Aggregate:
    """The mean of each tensor by what was trained and by age, mixed into what was there.

    Args:
      mixing: How far the adapter goes to the mean of updates that are not stale: alpha, above 0 and at most 1.
      power: How fast an update loses weight with its age: a, from 0 on; 0 does not look at age.

    With mixing 1 and power 0 it is the mean per block, bit for bit.

    Raises:
      ConfigError: Another mixing or power.

    Example:
      >>> import torch
      >>> from cutlayer import Contribution, RoundPlan, staleness_weighted
      >>> def begun_in(round: int, value: float) -> Contribution:
      ...     return Contribution({"w": torch.tensor([value])}, {"w": 4.0}, round=round)
      >>> aggregate = staleness_weighted(mixing=1.0, power=1.0)
      >>> aggregate({"w": torch.tensor([0.0])}, [begun_in(5, 3.0), begun_in(4, 6.0)], RoundPlan(5))["w"].item()
      2.6666667461395264
    """
    if not 0 < mixing <= 1:
        raise ConfigError(f"method.alpha: expected above 0 and at most 1, got {mixing:g}. Change method.alpha.")
    if not power >= 0:
        raise ConfigError(f"method.power: expected at least 0, got {power:g}. Change method.power.")
    return _StalenessWeighted(mixing, power)


class _StalenessWeighted(Stateless):
    name, mixed_ranks = "the mean by age", False

    def __init__(self, mixing: float, power: float) -> None:
        self._mixing, self._power, self._mean = mixing, power, mean_per_block()

    def __call__(self, broadcast: Adapter, contributions: Sequence[Contribution], plan: RoundPlan) -> Adapter:
        ages = [plan.round - part.round for part in contributions]
        aged = [
            replace(part, weights={name: weight * self._share(age) for name, weight in part.weights.items()})
            for part, age in zip(contributions, ages, strict=True)
        ]
        mean, mixing = self._mean(broadcast, aged, plan), self._mixing * self._share(fmean(ages or [0]))
        if mixing == 1.0:
            return mean
        return {
            name: ((1 - mixing) * value.double() + mixing * mean[name].double()).to(value.dtype)
            for name, value in broadcast.items()
        }

    def _share(self, age: float) -> float:
        return float((age + 1) ** -self._power)
