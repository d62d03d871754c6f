"""The devices that join a round, and their order."""

from __future__ import annotations

from dataclasses import replace

from cutlayer.errors import ConfigError
from cutlayer.policies.plan import Planner, Situation
from cutlayer.types import DevicePlan, RoundPlan


def everyone() -> Planner:
    """All devices of the fleet, with the run's batch size, micro-batches and local steps.

    Example:
      >>> from cutlayer import everyone
      >>> from cutlayer.testing.playground import planned
      >>> plan = planned(everyone())
      >>> [device.device for device in plan.devices]
      ['device-0', 'device-1', 'device-2']
    """

    def planner(plan: RoundPlan, situation: Situation) -> RoundPlan:
        return RoundPlan(
            plan.round,
            tuple(
                DevicePlan(
                    profile.name,
                    batch_size=situation.batch_size,
                    local_steps=situation.local_steps,
                    micro_batches=situation.micro_batches,
                    overlap=situation.overlap,
                )
                for profile in situation.fleet.devices
            ),
        )

    return planner


def random_fraction(fraction: float) -> Planner:
    """A part of the devices in the plan, drawn anew every round; those that are drawn keep the plan's order.

    Args:
      fraction: Above 0 and at most 1; of the devices, rounded, but at least one device.

    Raises:
      ConfigError: Another fraction.

    Example:
      >>> from cutlayer import everyone, random_fraction
      >>> from cutlayer.testing.playground import planned
      >>> plan = planned(everyone(), random_fraction(0.5), num_devices=4)
      >>> [device.device for device in plan.devices]
      ['device-1', 'device-2']
    """
    check_fraction(fraction)

    def planner(plan: RoundPlan, situation: Situation) -> RoundPlan:
        random = situation.random(plan.round, "random_fraction")
        drawn = random.choice(len(plan.devices), number_of(fraction, plan), replace=False)
        return replace(plan, devices=tuple(plan.devices[index] for index in sorted(drawn)))

    return planner


def check_fraction(fraction: float) -> None:
    """Raises ConfigError for a part of the fleet that is none, or more than all."""
    if not 0 < fraction <= 1:
        raise ConfigError(
            f"method.fraction: expected above 0 and at most 1, got {fraction}. Change method.fraction, 1 is everyone."
        )


def number_of(fraction: float, plan: RoundPlan) -> int:
    """The number of devices in this part of the plan: rounded, at least one."""
    return max(1, round(fraction * len(plan.devices)))


def in_random_order() -> Planner:
    """The devices of the plan in an order that is drawn anew every round: for rounds that take them in turn.

    Example:
      >>> from cutlayer import everyone, in_random_order
      >>> from cutlayer.testing.playground import planned
      >>> plan = planned(everyone(), in_random_order())
      >>> [device.device for device in plan.devices]
      ['device-2', 'device-1', 'device-0']
    """

    def planner(plan: RoundPlan, situation: Situation) -> RoundPlan:
        order = situation.random(plan.round, "in_random_order").permutation(len(plan.devices))
        return replace(plan, devices=tuple(plan.devices[index] for index in order))

    return planner
