"""Whether a sample's activations are the same every time, as whoever keeps them must be able to rely on."""

from __future__ import annotations

from dataclasses import dataclass

from cutlayer.errors import ConfigError
from cutlayer.policies.plan import Planner, Situation
from cutlayer.types import Clause, RoundPlan


@dataclass(frozen=True, slots=True)
class Repeat(Clause):
    """A sample's activations are the same in every epoch: the server keeps what it is sent, and is told its name."""


def activations_repeat() -> Planner:
    """Says that a device's activations are the same in every epoch; refuses what would make them differ.

    Raises (when planning):
      ConfigError: The base model's dropout is on, or something on a device trains.

    Example:
      >>> from cutlayer import ConfigError, activations_repeat, cut_at, everyone
      >>> from cutlayer.testing.playground import planned
      >>> try:
      ...     planned(everyone(), cut_at(1), activations_repeat())  # without ranks, every block has an adapter
      ... except ConfigError as error:
      ...     print(str(error).partition(",")[0])
      method.cache: expected no adapter on device device-0
    """

    def planner(plan: RoundPlan, situation: Situation) -> RoundPlan:
        if situation.base_dropout:
            raise ConfigError(
                "method.cache: expected model.base_dropout=false where activations are kept, got true: they would "
                "differ every time. Set model.base_dropout=false, or method.cache=false."
            )
        for device in plan.devices:
            blocks = range(situation.costs.num_blocks) if device.blocks is None else device.blocks
            if any(block < device.cut for block in blocks):
                raise ConfigError(
                    f"method.cache: expected no adapter on device {device.device}, got one below its cut {device.cut}. "
                    "Set method.cache=false."
                )
        return plan.with_each(lambda device: device.having(Repeat()))

    return planner
