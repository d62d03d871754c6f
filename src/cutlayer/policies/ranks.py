"""Which LoRA rank each block has on each device."""

from __future__ import annotations

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


def ranks_above_deepest_cut() -> Planner:
    """The run's rank on the blocks that no device holds, no adapter on the others: devices then only run forward."""

    def planner(plan: RoundPlan, known: Known) -> RoundPlan:
        deepest = max(device.cut for device in plan.devices)
        ranks = tuple(known.rank if block >= deepest else 0 for block in range(known.costs.num_blocks))

        def frozen(device: DevicePlan) -> DevicePlan:
            return replace(device, ranks=ranks)

        return replace(plan.with_each(frozen), ranks=ranks)

    return planner
