"""Whether AdamW's moments outlive the end of a round."""

from __future__ import annotations

from dataclasses import dataclass

from cutlayer.policies.plan import Planner, Situation
from cutlayer.types import Clause, RoundPlan


@dataclass(frozen=True, slots=True)
class FreshMoments(Clause):
    """AdamW's moments begin anew in this round, on the device and on the server."""


def fresh_moments() -> Planner:
    """Moments begin anew in every round, whatever `train.keep_moments` says of other methods.

    For aggregates after which a factor's entries are not the ones that the moments were gathered for: an SVD
    rotates them, a stack that was folded away leaves new ones.

    Example:
      >>> from cutlayer import everyone, fresh_moments
      >>> from cutlayer.testing.playground import planned
      >>> plan = planned(everyone(), fresh_moments())
      >>> plan.devices[0].clauses
      (FreshMoments(),)
    """

    def planner(plan: RoundPlan, situation: Situation) -> RoundPlan:  # noqa: ARG001
        return plan.with_each(lambda device: device.having(FreshMoments()))

    return planner
