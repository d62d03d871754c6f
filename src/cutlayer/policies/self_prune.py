"""A device prunes its own rank: the last rows of its LoRA factors are held small, and go once a round shrank them.

    here                                     HETLoRA (arXiv 2401.06432, from general knowledge of the paper)
    ------------------------------------     ----------------------------------------------------------------
    SelfPrune.ranks, of the rank r_k         gamma r_k
    tail_norm(), times lam, in the loss      lam ||B[:, gamma r_k:]|| ||A[gamma r_k:, :]||
    a smaller tail_norm() after the round    the device prunes to gamma r_k, and sends what is left
    than before it
    the next plan: the record's ranks        the device goes on at gamma r_k

Our reading: Frobenius norms; the sum over all modules, so that a device prunes all of its blocks or none; "before" is
what the round began from, the truncated global adapter; gamma r_k is rounded down, and never below a lowest rank.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cutlayer.errors import ConfigError
from cutlayer.model.low_rank import factor_names
from cutlayer.policies.plan import Planner, Situation
from cutlayer.types import Clause, DevicePlan, RoundPlan
from cutlayer.wire.messages import Update


@dataclass(frozen=True, slots=True)
class SelfPrune(Clause):
    """The ranks to which a device may prune its own.

    Attributes:
      ranks: LoRA rank on each block that is left if it does.
      penalty: weight in the loss of the norm of what it would then lose.
    """

    ranks: tuple[int, ...]
    penalty: float = 0.0

    @property
    def other_ranks(self) -> tuple[tuple[int, ...], ...]:
        """See `Clause.other_ranks`."""
        return (self.ranks,)


def self_pruning(gamma: float, lam: float, *, lowest: int = 1) -> Planner:
    """Devices train at the ranks that they left themselves, and may prune them further in this round.

    Comes after the planners of ranks, which give each device the most that it may have, and of cuts.

    Args:
      gamma: The part of its rank that a device keeps when it prunes; 1 plans nothing.
      lam: Weight of the tail's norm in the loss.
      lowest: Nobody prunes below this rank.

    Raises:
      ConfigError: A gamma that is not above 0 and at most 1, a negative lam, or one without a tail; when planning, a
        device that does not hold the whole model.

    Example:
      >>> from cutlayer import everyone, self_pruning, whole_model
      >>> from cutlayer.testing.playground import planned
      >>> plan = planned(everyone(), whole_model(), self_pruning(0.5, 0.01), rank=8)
      >>> plan.devices[0].ranks, plan.devices[0].clauses
      ((8, 8, 8), (SelfPrune(ranks=(4, 4, 4), penalty=0.01),))
    """
    if not 0 < gamma <= 1:
        raise ConfigError(f"method.gamma: expected above 0 and at most 1, got {gamma}. Change method.gamma.")
    if not lam >= 0:
        raise ConfigError(f"method.lam: expected at least 0, got {lam}. Change method.lam.")
    if lam > 0 and gamma == 1:
        raise ConfigError(
            f"method.lam: expected 0 where method.gamma is 1, which leaves no rows to hold small, got {lam}. "
            "Lower method.gamma, or set method.lam=0."
        )

    def planner(plan: RoundPlan, situation: Situation) -> RoundPlan:
        def pruned(device: DevicePlan) -> DevicePlan:
            if not device.alone:
                raise ConfigError(
                    f"method.gamma: expected the whole model on every device that prunes its rank, got a cut at "
                    f"{device.cut} on {device.device}. Plan whole_model() first, or set method.gamma=1."
                )
            most = device.ranks or (situation.rank,) * situation.costs.num_blocks
            ranks = tuple(map(min, most, ranks_left(device.device, situation) or most))
            prune_to = tuple(min(rank, max(lowest, int(round(gamma * rank, 9)))) for rank in ranks)
            if prune_to == ranks:
                return replace(device, ranks=ranks)
            return replace(device, ranks=ranks).having(SelfPrune(prune_to, lam))

        return plan.with_each(pruned)

    return (lambda plan, _situation: plan) if gamma == 1 else planner


def ranks_that_are_left(_plan: DevicePlan, update: Update) -> dict[str, Any]:
    """The facts of an update that the next plan goes by: the ranks that a device has left itself.

    Example:
      >>> import torch
      >>> from cutlayer import DevicePlan, ranks_that_are_left
      >>> from cutlayer.wire.messages import Update
      >>> update = Update("run", 0, "pi", {}, 1, 1, 1, 0.5, 0.5, facts={"ranks_left": torch.tensor([4, 2])})
      >>> ranks_that_are_left(DevicePlan("pi", cut=2), update)
      {'ranks_left': [4, 2]}
    """
    return {"ranks_left": update.facts["ranks_left"].tolist()} if "ranks_left" in update.facts else {}


def ranks_left(device: str, situation: Situation) -> tuple[int, ...]:
    """The ranks that the device ended its last round with in which it might prune; none if there was no such round."""
    records = reversed(situation.history.of(device))
    return next((tuple(record.facts["ranks_left"]) for record in records if "ranks_left" in record.facts), ())


def tail_norm(adapter: Mapping[str, Tensor], ranks: Sequence[int], block_of: Callable[[str], int | None]) -> Tensor:
    """The sum over LoRA modules of ||B[:, r:]|| ||A[r:]||, r the module's part of `ranks`; a scalar.

    Args:
      adapter: Factors of any rank, by global name; 0 where none is above its r.
      ranks: Of each block.
      block_of: Global name -> its block.
    """
    total = torch.zeros(())
    for b, a in factor_names(adapter):
        block = block_of(a)
        assert block is not None, "LoRA is on blocks only"
        b_MR, a_RN = adapter[b][:, ranks[block] :], adapter[a][ranks[block] :]
        total = total + torch.linalg.vector_norm(b_MR) * torch.linalg.vector_norm(a_RN)
    return total
