"""Channels that cross the cut: some are dropped at random in each message, and may come back in the next (FedSL).

    here                               FedSL (arXiv 2412.06414; structure from reviews)
    -------------------------------    -----------------------------------------------------------
    DropChannels, SomeNumbers          random dropout of the activations at the cut
    the seed is in the plan            what was dropped need not be sent
    the gradients of the channels      the gradient comes down at the surviving positions
      that were sent

Whole channels of the hidden width are dropped, not tokens, whose labels would lose their text; as many in each message,
so that its length is known before it comes (our reading: the paper's draws may be independent). What stays is
multiplied by D over their number, so the mean is the activation. Only what crosses is dropped: the device's own pass is
whole.
"""

from __future__ import annotations

from dataclasses import dataclass

from cutlayer.errors import ConfigError
from cutlayer.policies.plan import Planner, Situation
from cutlayer.types import Clause, RoundPlan
from cutlayer.wire.codecs import Codec, SomeNumbers
from cutlayer.wire.messages import Role


@dataclass(frozen=True, slots=True)
class DropChannels(Clause):
    """Some channels do not cross the cut, others in each message.

    Attributes:
      rate: the share that is dropped, below 1.
      seed: from which both ends draw them.
    """

    rate: float
    seed: int

    def codec(self, role: Role, codec: Codec, at: str) -> Codec:
        """See `packing.ChoosesCodecs.codec`."""
        if role not in ("activations", "gradients"):
            return codec
        return SomeNumbers(codec, 1 - self.rate, f"{self.seed}/{at}", on_arrival=role == "gradients")


def dropping_channels(rate: float, *, seed: int) -> Planner:
    """Every device drops this share of the channels at its cut.

    Args:
      rate: The share; 0 plans nothing.
      seed: Of the draws.

    Raises:
      ConfigError: A share that is not from 0 to below 1.

    Example:
      >>> from cutlayer import dropping_channels, everyone
      >>> from cutlayer.testing.playground import planned
      >>> planned(everyone(), dropping_channels(0.25, seed=7)).devices[0].clauses
      (DropChannels(rate=0.25, seed=7),)
    """
    if not 0 <= rate < 1:
        raise ConfigError(f"method.dropout: expected from 0 to below 1, got {rate}. Change method.dropout.")

    def planner(plan: RoundPlan, situation: Situation) -> RoundPlan:  # noqa: ARG001
        return plan.with_each(lambda device: device.having(DropChannels(rate, seed))) if rate else plan

    return planner
