"""Who joins a round."""

from __future__ import annotations

from cutlayer.policies.plan import Known, Planner
from cutlayer.types import DevicePlan, RoundPlan


def everyone() -> Planner:
    """All devices of the fleet, with the run's batch size and local steps."""

    def planner(plan: RoundPlan, known: Known) -> RoundPlan:
        return RoundPlan(
            plan.round,
            tuple(
                DevicePlan(profile.name, batch_size=known.batch_size, local_steps=known.local_steps)
                for profile in known.fleet.devices
            ),
        )

    return planner
