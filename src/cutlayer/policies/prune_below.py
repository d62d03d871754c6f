"""The units of a device's part, below the cut, that are left out for some rounds: the smallest go, the largest stay.

    here                            FedSL (arXiv 2412.06414; structure from reviews)
    ----------------------------    -----------------------------------------------------------
    PruneBelow                      a share rho of the device-side model is pruned
    largest_below()                 what is smallest in magnitude goes
    an era of `refresh` rounds      pruning is dynamic: what was pruned is kept at the server,
                                      and may come back

Structured, as nothing else saves a device time: attention heads and FFN channels go, with every row and column that
belongs to them (`model/structure.py`), the same share of each block. Judged are the weights with what LoRA has learnt,
W + s B A, so that another unit may be the smallest later.
"""

from __future__ import annotations

from dataclasses import dataclass

from cutlayer.errors import ConfigError
from cutlayer.model.base import Base
from cutlayer.model.importance import magnitudes
from cutlayer.policies.plan import Planner, Situation
from cutlayer.policies.prune import check_target, most_important
from cutlayer.types import Adapter, Clause, Kept, RoundPlan


@dataclass(frozen=True, slots=True)
class PruneBelow(Clause):
    """A device leaves out some of what is below its cut.

    Attributes:
      ratio: the share of each block's heads and FFN channels, below 1.
      era: what is left is chosen anew by a device whose last choice was of another era.
    """

    ratio: float
    era: int


def pruning_below(ratio: float, refresh: int) -> Planner:
    """Every device leaves out this share of what it holds, chosen anew after so many rounds.

    Comes before cuts by memory, which then count what is left.

    Args:
      ratio: Of each block's heads and FFN channels; 0 plans nothing.
      refresh: Rounds for which what is left stays.

    Raises:
      ConfigError: A number out of its range.

    Example:
      >>> from cutlayer import cut_at, everyone, pruning_below
      >>> from cutlayer.testing.playground import planned
      >>> planned(everyone(), pruning_below(0.25, refresh=10), cut_at(1), round=12).devices[0].clauses
      (PruneBelow(ratio=0.25, era=1),)
    """
    check_target(ratio)
    if refresh < 1:
        raise ConfigError(f"method.refresh: expected at least 1, got {refresh}. Change method.refresh.")

    def planner(plan: RoundPlan, situation: Situation) -> RoundPlan:  # noqa: ARG001
        clause = PruneBelow(ratio, plan.round // refresh)
        return plan.with_each(lambda device: device.having(clause)) if ratio else plan

    return planner


def largest_below(base: Base, cut: int, adapter: Adapter, ratio: float) -> Kept:
    """The units that stay when this share of the blocks below a cut is left out: the largest there, all of the rest.

    Args:
      base: The model; the weights of the blocks below the cut are read.
      cut: The cut.
      adapter: What is on them, unpruned.
      ratio: The share.
    """
    structure = base.structure
    lowest = structure.lowest(cut)
    left = most_important(magnitudes(base, adapter, cut), lowest, structure.left(ratio))
    return structure.with_the_rest(left)
