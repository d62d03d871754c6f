"""Gradients that are applied some steps late, so that neither end waits for the other: w(t+1) = w(t) - eta g(w(t - d)).

The lateness is of steps, not of time: the forward pass of step t uses the adapter after exactly max(0, t - d) steps of
the round, on every part of the model, however fast anybody is. So a run is the same on every fleet.
"""

from __future__ import annotations

from dataclasses import dataclass

from cutlayer.errors import ConfigError
from cutlayer.policies.plan import Planner, Situation
from cutlayer.types import Clause, DevicePlan, RoundPlan


@dataclass(frozen=True, slots=True)
class Delay(Clause):
    """A device goes on to later steps before earlier ones are done.

    Attributes:
      steps: how many it may be ahead, at least 1.
    """

    steps: int


def delayed(steps: int) -> Planner:
    """Every device applies gradients so many steps late, within a round.

    Args:
      steps: 0 for none.

    Raises:
      ConfigError: Fewer than none.

    Example:
      >>> from cutlayer import delayed, everyone
      >>> from cutlayer.testing.playground import planned
      >>> [[device.clauses for device in planned(everyone(), delayed(n), num_devices=1).devices] for n in (0, 2)]
      [[()], [(Delay(steps=2),)]]
    """
    if steps < 0:
        raise ConfigError(f"method.delay: expected at least 0 steps, got {steps}. Change method.delay.")

    def planner(plan: RoundPlan, situation: Situation) -> RoundPlan:  # noqa: ARG001
        return plan.with_each(lambda device: device.having(Delay(steps))) if steps else plan

    return planner


def delay_of(plan: DevicePlan) -> int:
    """The number of steps by which gradients are late under a plan; 0 where nobody says anything."""
    delay = plan.clause(Delay)
    return 0 if delay is None else delay.steps
