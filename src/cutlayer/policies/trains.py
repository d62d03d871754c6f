"""The rule by which adapters are stepped, where a method decides it: on the device and on the server alike."""

from __future__ import annotations

from dataclasses import dataclass

from cutlayer.model.optimizers import OptimizerSettings, Rule, adamw, sgd
from cutlayer.types import Clause, DevicePlan


@dataclass(frozen=True, slots=True)
class Trains(Clause):
    """Gradient descent in place of AdamW.

    Attributes:
      momentum: what is left of the last step's direction in the next.

    Example:
      >>> from cutlayer import Method, Trains, cut_at, everyone, mean_per_block, relay
      >>> method = Method((everyone(), cut_at(1)), relay(), mean_per_block(), trains=Trains(momentum=0.9))
      >>> method.trains.momentum
      0.9
    """

    momentum: float = 0.0


def rule_of(plan: DevicePlan, settings: OptimizerSettings) -> Rule:
    """The rule under a plan: the clause's, or AdamW with the run's settings.

    Args:
      plan: A device's.
      settings: Of AdamW; the weight decay and the largest norm of a gradient are for both.
    """
    trains = plan.clause(Trains)
    if trains is None:
        return adamw(settings)
    return sgd(momentum=trains.momentum, weight_decay=settings.weight_decay, clip=settings.clip)
