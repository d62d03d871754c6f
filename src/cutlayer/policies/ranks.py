"""The LoRA rank of each block on each device."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from cutlayer.errors import ConfigError
from cutlayer.fleet.profile import DeviceProfile
from cutlayer.policies.plan import Planner, Situation
from cutlayer.types import DevicePlan, RoundPlan

RESOURCES: dict[str, Callable[[DeviceProfile], float]] = {
    "speed": lambda profile: profile.effective_flops,
    "memory": lambda profile: profile.memory_bytes,
    "uplink": lambda profile: profile.up_bits_per_second,
}
"""Facts that a device's rank may go by: floating-point operations per second, bytes, bits per second; as declared."""


def uniform_ranks(rank: int) -> Planner:
    """The same rank on every block of every device.

    Raises:
      ConfigError: A rank below 1.

    Example:
      >>> from cutlayer import everyone, uniform_ranks
      >>> from cutlayer.testing.playground import planned
      >>> plan = planned(everyone(), uniform_ranks(4))
      >>> plan.devices[0].ranks
      (4, 4, 4)
    """
    if rank < 1:
        raise ConfigError(f"method.rank: expected at least 1, got {rank}. Change method.rank.")

    def planner(plan: RoundPlan, situation: Situation) -> RoundPlan:
        ranks = (rank,) * situation.costs.num_blocks
        return replace(plan.with_each(lambda device: replace(device, ranks=ranks)), ranks=ranks)

    return planner


def arithmetic_ranks(first: int | None = None, step: int = 1) -> Planner:
    """Ranks that rise by `step` from each block to the next, the same on every device.

    Args:
      first: The rank of block 0; None for the largest with which the mean over the blocks is no higher than the run's
        rank.
      step: What each block has more than the one below it; 0 for equal ranks. Where `first` is None and such a list
        would begin below 1, as it does on many blocks at a low rank, ranks rise by less: evenly from 1 to twice the
        run's rank less 1, whose mean is the run's rank.

    Raises (when planning):
      ConfigError: A rank below 1.

    Example:
      >>> from cutlayer import arithmetic_ranks, everyone
      >>> from cutlayer.testing.playground import planned
      >>> plan = planned(everyone(), arithmetic_ranks(2, step=3))
      >>> plan.ranks
      (2, 5, 8)
    """

    def planner(plan: RoundPlan, situation: Situation) -> RoundPlan:
        blocks = situation.costs.num_blocks
        lowest = situation.rank - math.ceil(step * (blocks - 1) / 2) if first is None else first
        ranks = tuple(lowest + step * block for block in range(blocks))
        if first is None and min(ranks) < 1:
            ranks = evenly(situation.rank, blocks)[:: 1 if step > 0 else -1]
        if min(ranks) < 1:
            raise ConfigError(
                f"method.first, method.step: expected ranks of at least 1 on all {blocks} blocks, got {ranks[0]} to "
                f"{ranks[-1]}. Raise one of them."
            )
        return replace(plan.with_each(lambda device: replace(device, ranks=ranks)), ranks=ranks)

    return planner


def evenly(mean: int, blocks: int) -> tuple[int, ...]:
    """Ranks from 1 to `2 * mean - 1`, as evenly as whole numbers are: `mean` on average, exactly.

    Example:
      >>> evenly(3, 7)
      (1, 2, 2, 3, 4, 4, 5)
    """
    lower = [1 + (2 * (mean - 1) * block * 2 + blocks - 1) // (2 * (blocks - 1)) for block in range(blocks // 2)]
    return (*lower, *(mean,) * (blocks % 2), *(2 * mean - rank for rank in reversed(lower)))


def ranks_above_deepest_cut(*, least: int = 1) -> Planner:
    """The run's rank on the blocks that no device holds, no adapter on the others: devices then only run forward.

    Args:
      least: The fewest blocks that must be left to the server, one for each of its stages.

    Raises (when planning):
      ConfigError: Fewer are left.

    Example:
      >>> from cutlayer import cut_by_memory, everyone, ranks_above_deepest_cut
      >>> from cutlayer.testing.playground import planned
      >>> plan = planned(everyone(), cut_by_memory(), ranks_above_deepest_cut(), num_devices=2)
      >>> plan.ranks
      (0, 0, 8)
    """

    def planner(plan: RoundPlan, situation: Situation) -> RoundPlan:
        deepest = max(device.cut for device in plan.devices)
        if situation.costs.num_blocks - deepest < least:
            raise ConfigError(
                f"method.cut: expected at most {situation.costs.num_blocks - least}, which leaves the server a block "
                f"to train for each of {least} stages, got {deepest}. Lower method.cut, method.deepest or "
                "method.stages."
            )
        ranks = tuple(situation.rank if block >= deepest else 0 for block in range(situation.costs.num_blocks))

        def frozen(device: DevicePlan) -> DevicePlan:
            return replace(device, ranks=ranks)

        return replace(plan.with_each(frozen), ranks=ranks)

    return planner


def check_lowest(lowest: int, situation: Situation) -> None:
    """Raises ConfigError unless the lowest rank is between 1 and the highest, the run's."""
    if not 1 <= lowest <= situation.rank:
        raise ConfigError(
            f"method.lowest: expected 1 to {situation.rank}, which is lora.rank, got {lowest}. "
            "Change method.lowest, or raise lora.rank."
        )


def ranks_by_budget(by: str = "speed", *, lowest: int = 1) -> Planner:
    """The run's rank for the best device of the fleet; half of it, a quarter, ... for those that have less.

    A device that has at least half of the best one's resource gets half of the rank, at least a quarter a quarter, and
    so on, the same on every block and in every round. Our reading: the papers give ranks by resources, each by lists
    of its own.

    Args:
      by: The resource: speed, memory or uplink.
      lowest: No device gets less; the run's rank makes all ranks equal.

    Raises:
      ConfigError: Another resource; when planning, a `lowest` that is not between 1 and the run's rank.

    Example:
      >>> from cutlayer import everyone, ranks_by_budget
      >>> from cutlayer.testing.playground import planned
      >>> plan = planned(everyone(), ranks_by_budget("speed"), rank=8)
      >>> [device.ranks[0] for device in plan.devices]
      [1, 4, 8]
    """
    if by not in RESOURCES:
        raise ConfigError(f"method.by: expected one of {', '.join(RESOURCES)}, got {by!r}. Change method.by.")

    def planner(plan: RoundPlan, situation: Situation) -> RoundPlan:
        check_lowest(lowest, situation)
        best = max(RESOURCES[by](profile) for profile in situation.fleet.devices)

        def at_its_rank(device: DevicePlan) -> DevicePlan:
            share, part = RESOURCES[by](situation.profile(device.device)) / best, 1.0
            while part > share:
                part /= 2
            return replace(device, ranks=(max(lowest, int(situation.rank * part)),) * situation.costs.num_blocks)

        return replace(plan.with_each(at_its_rank), ranks=(situation.rank,) * situation.costs.num_blocks)

    return planner
