"""Which LoRA rank each block has on each device."""

from __future__ import annotations

import math
from dataclasses import replace

from cutlayer.errors import ConfigError
from cutlayer.policies.plan import Known, Planner
from cutlayer.types import DevicePlan, RoundPlan


def uniform_ranks(rank: int) -> Planner:
    """The same rank on every block of every device.

    Raises:
      ConfigError: A rank below 1.
    """
    if rank < 1:
        raise ConfigError(f"method.rank: expected at least 1, got {rank}. Change method.rank.")

    def planner(plan: RoundPlan, known: Known) -> RoundPlan:
        ranks = (rank,) * known.costs.num_blocks
        return replace(plan.with_each(lambda device: replace(device, ranks=ranks)), ranks=ranks)

    return planner


def arithmetic_ranks(first: int | None = None, step: int = 1) -> Planner:
    """Ranks that rise by `step` from each block to the next, the same on every device.

    Args:
      first: The rank of block 0; None for the largest, at least 1, with which the mean over the blocks is no higher
        than the run's rank.
      step: What each block has more than the one below it; 0 for equal ranks.

    Raises (when planning):
      ConfigError: A rank below 1.
    """

    def planner(plan: RoundPlan, known: Known) -> RoundPlan:
        blocks = known.costs.num_blocks
        rise = step * (blocks - 1)
        lowest = max(1, known.rank - math.ceil(rise / 2)) if first is None else first
        ranks = tuple(lowest + step * block for block in range(blocks))
        if min(ranks) < 1:
            raise ConfigError(
                f"method.first, method.step: expected ranks of at least 1 on all {blocks} blocks, got {ranks[0]} to "
                f"{ranks[-1]}. Raise one of them."
            )
        return replace(plan.with_each(lambda device: replace(device, ranks=ranks)), ranks=ranks)

    return planner


def ranks_above_deepest_cut() -> Planner:
    """The run's rank on the blocks that no device holds, no adapter on the others: devices then only run forward."""

    def planner(plan: RoundPlan, known: Known) -> RoundPlan:
        deepest = max(device.cut for device in plan.devices)
        ranks = tuple(known.rank if block >= deepest else 0 for block in range(known.costs.num_blocks))

        def frozen(device: DevicePlan) -> DevicePlan:
            return replace(device, ranks=ranks)

        return replace(plan.with_each(frozen), ranks=ranks)

    return planner
