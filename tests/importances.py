"""Importance that rounds have measured, and costs that go by ranks, made up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cutlayer.testing.playground import FlatCosts
from cutlayer.testing.tiny import BLOCKS
from cutlayer.types import Cost, DevicePlan, StepRecord

MODULES = 2 * BLOCKS  # of the playground's model, two a block


def record(round: int, device: str = "device-0", weight: int = 1, **scores: Sequence[float]) -> StepRecord:
    """A record of what a device and the server found: exact=..., proxy=... of each module."""
    facts = {f"{what}/{place}": value for what, values in scores.items() for place, value in enumerate(values)}
    return StepRecord(round, device, 1, weight, weight, 0.5, 1.0, 1.0, 0.0, 1, 1, facts=facts)


class RankCosts(FlatCosts):
    """A MiB for each block, and a KiB for each rank of the first module of a block, three for the second."""

    def device(self, plan: DevicePlan, num_samples: int, num_tokens: int) -> Cost:
        cost = super().device(plan, num_samples, num_tokens)
        return replace(cost, memory_bytes=2**20 * (1 + plan.cut) + self._adapter(plan, range(plan.cut)))

    def server(self, plan: DevicePlan, num_samples: int, num_tokens: int) -> Cost:
        cost = super().server(plan, num_samples, num_tokens)
        return replace(cost, memory_bytes=2**20 + self._adapter(plan, range(plan.cut, self.num_blocks)))

    def _adapter(self, plan: DevicePlan, blocks: range) -> int:
        each = len(plan.ranks) // self.num_blocks
        sizes = (1024, 3072) if each == 2 else (4096,)
        return sum(sizes[place] * plan.ranks[each * block + place] for block in blocks for place in range(each))
