"""Gradients in few bits: a device rounds them at random before it steps, and sends what it learnt in as few (FedSL).

    here                                FedSL (arXiv 2412.06414; structure from reviews, formulas in their usual form)
    --------------------------------    ----------------------------------------------------------------------------
    quantised() (model/optimizers)      q_i = |g|_max sgn(g_i) xi_i / s, xi_i a whole number whose mean is
                                          s |g_i| / |g|_max, s = 2^(b-1) - 1; variance at most d |g|_max^2 / (4 s^2)
    the rule of a device's step         gradients are rounded before the step, to make it cheap
    FewBits.codec, StochasticSteps      the same on the wire

After one step of plain gradient descent what is sent is the gradient that was applied, in the same steps; after
several, or one of AdamW, the round's change is rounded by the same rule, once more without bias.
"""

from __future__ import annotations

from dataclasses import dataclass

from cutlayer.errors import ConfigError
from cutlayer.policies.plan import Planner, Situation
from cutlayer.types import Clause, RoundPlan
from cutlayer.wire.codecs import NONE, Codec, StochasticSteps
from cutlayer.wire.messages import Role

MOST_BITS = 16


@dataclass(frozen=True, slots=True)
class FewBits(Clause):
    """A device rounds its gradients at random, and the change of its adapter that it sends.

    Attributes:
      bits: of one number.
      seed: of the draws.
    """

    bits: int
    seed: int

    def codec(self, role: Role, codec: Codec, at: str) -> Codec:
        """See `packing.ChoosesCodecs.codec`. A codec that the run file asks for stays."""
        return StochasticSteps(self.bits, f"{self.seed}/{at}") if role == "update" and codec is NONE else codec


def rounding_to(bits: int | None, *, seed: int) -> Planner:
    """Every device rounds to this many bits.

    Args:
      bits: 2 to 16; None plans nothing.
      seed: Of the draws.

    Raises:
      ConfigError: Fewer or more.

    Example:
      >>> from cutlayer import everyone, rounding_to
      >>> from cutlayer.testing.playground import planned
      >>> planned(everyone(), rounding_to(8, seed=7)).devices[0].clauses
      (FewBits(bits=8, seed=7),)
    """
    if bits is not None and not 2 <= bits <= MOST_BITS:
        raise ConfigError(f"method.bits: expected 2 to {MOST_BITS}, or null for none, got {bits}. Change method.bits.")

    def planner(plan: RoundPlan, situation: Situation) -> RoundPlan:  # noqa: ARG001
        return plan if bits is None else plan.with_each(lambda device: device.having(FewBits(bits, seed)))

    return planner
