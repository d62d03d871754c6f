"""Whether a sample's activations are the same every time, as whoever keeps them must be able to rely on."""

from __future__ import annotations

from dataclasses import dataclass

from cutlayer.policies.plan import Planner, Situation
from cutlayer.types import Clause, RoundPlan


@dataclass(frozen=True, slots=True)
class Repeat(Clause):
    """A sample's activations are the same in every epoch: the server keeps what it is sent, and is told its name."""


def activations_repeat() -> Planner:
    """Says that a device's activations are the same in every epoch.

    What would make them differ, dropout or something on a device that trains, is refused where a round keeps them
    (`methods/contradictions.py`).

    Example:
      >>> from cutlayer import activations_repeat, cut_at, everyone
      >>> from cutlayer.testing.playground import planned
      >>> [device.clauses for device in planned(everyone(), cut_at(1), activations_repeat(), num_devices=1).devices]
      [(Repeat(),)]
    """

    def planner(plan: RoundPlan, situation: Situation) -> RoundPlan:  # noqa: ARG001
        return plan.with_each(lambda device: device.having(Repeat()))

    return planner
