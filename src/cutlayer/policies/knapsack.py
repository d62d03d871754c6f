"""The cut of a device, when blocks and ranks are packed into one memory: the knapsack of HSplitLoRA.

    here                                 HSplitLoRA (arXiv 2505.02795; from reviews, no code is public)
    ---------------------------------    ----------------------------------------------------------------
    the candidates: cuts whose blocks    the split point is chosen under the device's memory, by the
      fit with adapters of the lowest      importance of the weights on either side
      rank
    ranks_within() at each               what memory is left goes into ranks, most important first
    worth()                              the objective; the paper's is not known here

Our reading, all of the objective: a matrix on the device is worth its importance times how far its rank has come up the
ladder, one rung as much as another, since each doubles the rank; one on the server, where an adapter is trained by
everybody's activations in turn, is worth a share of that. So a device takes one more block while what the block brings
is more than what the ranks below it lose.
"""

from __future__ import annotations

import math
from dataclasses import replace

from cutlayer.errors import ConfigError
from cutlayer.policies.cut import check_range, cuts_that_fit
from cutlayer.policies.importance_ranks import (
    check_threshold,
    importance_for,
    ladder,
    ranks_on_server,
    ranks_within,
)
from cutlayer.policies.plan import Planner, Situation
from cutlayer.policies.ranks import check_lowest
from cutlayer.types import DevicePlan, RoundPlan


def cut_by_knapsack(*, lowest: int = 1, threshold: float = 0.1, server_share: float = 0.5, least: int = 1) -> Planner:
    """Cuts each device where the matrices that it and the server train are worth most, within its memory.

    Of equal cuts the shallowest, with which the device has least to do. Ranks are `ranks_by_importance`'s, which comes
    after it, with the same `lowest` and `threshold`.

    Args:
      lowest: The ladder's lowest rank.
      threshold: By how much importance must have moved before cuts change.
      server_share: What a matrix on the server is worth beside one of the same rank on the device: 1 leaves as much as
        possible to the server, 0 counts nothing that is there.
      least: The fewest blocks that a device must be able to hold.

    Raises:
      ConfigError: A share that is not from 0 to 1, or a negative threshold; when planning, a `least` or `lowest` out of
        its range.
      BudgetError (when planning): A device cannot hold `least` blocks with adapters of the lowest rank.

    Example:
      >>> from cutlayer import cut_by_knapsack, everyone
      >>> from cutlayer.testing.playground import planned
      >>> [device.cut for device in planned(everyone(), cut_by_knapsack()).devices]  # as many as their owners lend
      [1, 2, 3]
      >>> [device.cut for device in planned(everyone(), cut_by_knapsack(server_share=1.0)).devices]
      [1, 1, 1]
    """
    check_threshold(threshold)
    if not 0 <= server_share <= 1:
        raise ConfigError(f"method.server_share: expected from 0 to 1, got {server_share}. Change method.server_share.")

    def planner(plan: RoundPlan, situation: Situation) -> RoundPlan:
        check_range("least", least, situation)
        check_lowest(lowest, situation)
        rungs, importance = ladder(lowest, situation.rank), importance_for(situation, threshold)
        shallow = plan.with_each(lambda device: replace(device, cut=least))
        of_server = ranks_on_server(shallow, situation, importance, rungs)

        def worth(device: DevicePlan) -> float:
            own = ranks_within(device, situation, importance, rungs)
            ranks, shares = (*own, *of_server[len(own) :]), [1.0] * len(own) + [server_share] * len(importance)
            return math.fsum(
                share * value * (rungs.index(rank) + 1) / len(rungs)
                for share, value, rank in zip(shares, importance, ranks, strict=False)
            )

        def choose(device: DevicePlan) -> DevicePlan:
            bare = replace(device, ranks=(rungs[0],) * situation.costs.num_blocks)
            cuts = sorted(cuts_that_fit(bare, situation, least))
            return replace(device, cut=max(cuts, key=lambda cut: worth(replace(bare, cut=cut))))

        return plan.with_each(choose)

    return planner
