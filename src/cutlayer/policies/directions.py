"""Random directions along which a device looks where it has no gradient of its own: how many, and how far."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from cutlayer.errors import ConfigError
from cutlayer.policies.plan import Planner, Situation
from cutlayer.types import Clause, DevicePlan, RoundPlan


@dataclass(frozen=True, slots=True)
class Directions(Clause):
    """Random directions along which a device looks, in place of running backward.

    Attributes:
      count: P, random directions in each local step.
      mu: how far along each of them it looks.
      scale: of its learning rate, as a part of the run's: a step along few directions is noisy.
      at_once: directions in one forward pass.
    """

    count: int
    mu: float
    scale: float
    at_once: int = 1


def along_directions(count: int, mu: float, scale: float, at_once: int) -> Planner:
    """Every device looks along so many directions.

    Args:
      count: Random directions in each local step.
      mu: How far along each of them a device looks.
      scale: Of its learning rate, as a part of the run's.
      at_once: Directions in one forward pass.

    Raises:
      ConfigError: A number out of its range.

    Example:
      >>> from cutlayer import along_directions, cut_at, everyone
      >>> from cutlayer.policies.directions import directions_of
      >>> from cutlayer.testing.playground import planned
      >>> plan = planned(everyone(), cut_at(1), along_directions(2, mu=1e-3, scale=1.0, at_once=1))
      >>> [directions_of(device).count for device in plan.devices]
      [2, 2, 2]
    """
    for name, value in (("directions", count), ("at_once", at_once)):
        if value < 1:
            raise ConfigError(f"method.{name}: expected at least 1, got {value}. Change method.{name}.")
    for name, number in (("mu", mu), ("scale", scale)):
        if not number > 0:
            raise ConfigError(f"method.{name}: expected above 0, got {number}. Change method.{name}.")
    if at_once > count:
        raise ConfigError(
            f"method.at_once: expected at most method.directions ({count}), got {at_once}. Lower method.at_once."
        )
    clause = Directions(count, mu, scale, at_once)

    def planner(plan: RoundPlan, situation: Situation) -> RoundPlan:  # noqa: ARG001
        return plan.with_each(lambda device: device.having(clause))

    return planner


def directions_of(plan: DevicePlan) -> Directions:
    """The clause, which the plan of every device of such a round has."""
    clause = plan.clause(Directions)
    assert clause is not None, "along_directions() is among the planners"
    return clause


def step_seeds(seed: int, device: str, round: int, step: int, count: int) -> tuple[int, ...]:
    """The seeds of the directions of one local step: both ends know them, and no other step has them.

    Args:
      seed: The run's.
      device: Whose step it is.
      round, step: When.
      count: Of directions.
    """
    key = f"{seed}/{device}/{round}/{step}"
    digests = (hashlib.sha256(f"{key}/{number}".encode()).digest() for number in range(count))
    return tuple(int.from_bytes(digest[:8], "little") >> 1 for digest in digests)
