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
    """

    momentum: float = 0.0


def rule_of(plan: DevicePlan, settings: OptimizerSettings) -> Rule:
    """The rule under a plan: the clause's, or AdamW with the run's settings.

    Args:
      plan: A device's.
      settings: Of AdamW; the weight decay is for both.
    """
    trains = plan.clause(Trains)
    if trains is None:
        return adamw(settings)
    return sgd(momentum=trains.momentum, weight_decay=settings.weight_decay)
