"""The device's end of the shrinking round (`rounds/shrinking.py`): it trains alone, and may prune its own LoRA ranks.

The rows that it may lose are held small by a term of the loss; it loses them if the round has shrunk them
(`policies/self_prune.py`, which names the paper).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from cutlayer.device.attentive import Attentive
from cutlayer.device.device import Device
from cutlayer.device.follow import RoundTalk
from cutlayer.device.shape import Shape
from cutlayer.device.talks.local import steps_alone
from cutlayer.model.base import Base
from cutlayer.packing import StartedFrom
from cutlayer.policies.self_prune import SelfPrune, tail_norm
from cutlayer.types import Adapter
from cutlayer.wire.messages import Assignment, Message, Update

RANKS_LEFT = "ranks_left"
"""The fact of an update: int32, the rank of the adapter on each block."""


class Shrinking(RoundTalk):
    """Trains alone at ranks of its own choice.

    Args:
      device: The device.
    """

    def __init__(self, device: Device) -> None:
        super().__init__(device)
        self._may: SelfPrune | None = None
        self._shrank = False  # the tail of its LoRA factors, in this round

    async def work(self, heard: Attentive, assignment: Assignment) -> Message | None:
        """See `RoundTalk.work`."""
        self._device.begin(assignment)
        self._may, self._shrank = assignment.plan.clause(SelfPrune), False
        return await steps_alone(
            self._device, heard, assignment, before_step=self._hold_small, after_step=self._compare
        )

    def _hold_small(self) -> None:
        if self._may is not None and self._may.penalty:
            (self._may.penalty * self._tail(self._device.trainable.parameters, self._may)).backward()

    def _compare(self) -> None:
        if self._may is not None:
            now, before = self._device.trainable.values(), self._device.broadcast
            self._shrank = bool(self._tail(now, self._may) < self._tail(before, self._may))

    def _tail(self, adapter: Mapping[str, Tensor], may: SelfPrune) -> Tensor:
        """The norm of what the device would lose of this adapter if it pruned its ranks."""
        return tail_norm(adapter, may.ranks, self._device.base.block_of)

    def update(self) -> Update:
        """The update with what the device trained in this round, at the ranks that it has not pruned."""
        device, may = self._device, self._may
        if may is None:
            return device.update()
        if self._shrank:
            device.trainable.shrink(lambda tensors: device.base.at_ranks(tensors, may.ranks))
        ranks = may.ranks if self._shrank else device.now.plan.ranks
        return device.update({RANKS_LEFT: torch.tensor(ranks, dtype=torch.int32)})


def _started_from(base: Base) -> StartedFrom:
    """Devices train what they are sent, and the first rows of it if they pruned."""

    def started_from(broadcast: Adapter, update: Update) -> Adapter:
        ranks = update.facts.get(RANKS_LEFT)
        return broadcast if ranks is None else base.at_ranks(broadcast, ranks.tolist())

    return started_from


SHAPE = Shape("shrinking", Shrinking, started_from=_started_from, devices="alone")
