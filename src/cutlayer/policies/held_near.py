"""Devices that are held near the adapter that was broadcast, by mu / 2 times the squared distance to it."""

from __future__ import annotations

from dataclasses import dataclass

from cutlayer.errors import ConfigError
from cutlayer.policies.plan import Planner, Situation
from cutlayer.types import Clause, RoundPlan


@dataclass(frozen=True, slots=True)
class HeldNear(Clause):
    """A term that a device adds to its loss, which holds it near what was broadcast.

    Attributes:
      mu: weight of half the squared distance; 0 adds nothing.
    """

    mu: float


def holding_near(mu: float) -> Planner:
    """Every device is held near what was broadcast.

    Args:
      mu: From 0 on; 0 is not held.

    Raises:
      ConfigError: A negative mu.

    Example:
      >>> from cutlayer import everyone, holding_near
      >>> from cutlayer.testing.playground import planned
      >>> planned(everyone(), holding_near(0.01)).devices[0].clauses
      (HeldNear(mu=0.01),)
    """
    if not mu >= 0:
        raise ConfigError(f"method.mu: expected at least 0, got {mu:g}. Change method.mu.")

    def planner(plan: RoundPlan, situation: Situation) -> RoundPlan:  # noqa: ARG001
        return plan.with_each(lambda device: device.having(HeldNear(mu)))

    return planner
