"""FLoRA: federated, unequal ranks; adapters stacked, which is their exact mean, and merged into everyone's base.

FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous Low-Rank Adaptations
    Ziyao Wang, Zheyu Shen, Yexiao He, Guoheng Sun, Hongyi Wang, Lingjuan Lyu, Ang Li. NeurIPS 2024.
    https://arxiv.org/abs/2409.05976

    the authors' code                                 here
    ---------------------------------------------     ------------------------------------------
    unequal ranks, 64 to 4                            ranks_by_budget(by, lowest)
    A = concat of w_k A_k, B = concat of B_k          stack()
    merged into the base model                        Method.fold: Server.fold, and Device.begin by its assignment
    next round: fresh adapters, B = 0                 begin_anew(), fresh_moments()

The one method here that changes the base's weights, in memory, never on disk; each fold is rounded to `model.dtype`.
The exported adapter is on the original base: all stacks together, factored anew where they outgrow a module. Our
reading: who gets which rank, one draw of A for all devices, and AdamW beginning anew. Download is the stack, as with
the authors, and the fresh adapter too, which they draw on the device; a device that missed rounds is sent the stacks
of all of them, to fold one after the other.

Evidence: the authors' code; who gets which rank is our reading.
"""

from __future__ import annotations

from cutlayer.methods.method import Method
from cutlayer.policies.cut import whole_model
from cutlayer.policies.moments import fresh_moments
from cutlayer.policies.ranks import ranks_by_budget
from cutlayer.policies.select import everyone, random_fraction
from cutlayer.policies.stack import begin_anew, stack
from cutlayer.rounds.local import local


def flora(*, by: str = "speed", lowest: int = 1, fraction: float = 1.0, seed: int = 0) -> Method:
    """Builds FLoRA.

    Args:
      by: What ranks go by: speed, memory or uplink; the best device has the run's rank.
      lowest: The lowest rank; the run's rank makes all ranks equal.
      fraction: Of the fleet, drawn anew every round.
      seed: Of the fresh adapters.
    """
    return Method(
        plan=(
            everyone(),
            ranks_by_budget(by, lowest=lowest),
            random_fraction(fraction),
            whole_model(),
            fresh_moments(),
        ),
        round=local(),
        aggregate=begin_anew(seed),
        fold=stack,
    )
