"""The number of a paper's rounds that pass between two aggregations."""

from __future__ import annotations

from dataclasses import replace

from cutlayer.errors import ConfigError
from cutlayer.policies.plan import Planner, Situation
from cutlayer.types import RoundPlan


def aggregating_every(rounds: int) -> Planner:
    """Makes one round of so many: devices and the server train on with what they have, and are averaged at its end.

    Rounds without an aggregation are nothing but more local steps, of `train.local_steps` each: nothing else happens at
    their ends.

    Args:
      rounds: I, at least 1, which changes nothing.

    Raises:
      ConfigError: Fewer.

    Example:
      >>> from cutlayer import aggregating_every, everyone
      >>> from cutlayer.testing.playground import planned
      >>> planned(everyone(), aggregating_every(3), local_steps=2).devices[0].local_steps
      6
    """
    if rounds < 1:
        raise ConfigError(f"method.interval: expected at least 1, got {rounds}. Change method.interval.")

    def planner(plan: RoundPlan, situation: Situation) -> RoundPlan:  # noqa: ARG001
        return plan.with_each(lambda device: replace(device, local_steps=rounds * device.local_steps))

    return planner
