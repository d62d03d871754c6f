"""HETLoRA: federated, unequal ranks; adapters truncated on the way down, zero-padded and averaged on the way up.

Heterogeneous LoRA for Federated Fine-tuning of On-Device Foundation Models
    Yae Jee Cho, Luyang Liu, Zheng Xu, Aldi Fahrezi, Gauri Joshi. EMNLP 2024. https://arxiv.org/abs/2401.06432

    the paper                                         here
    ---------------------------------------------     ------------------------------------------
    rank r_k by the device's resources                ranks_by_budget(by, lowest)
    download: the global adapter truncated to r_k     Server.assignment: first rows of A, columns of B
    zero-pad to r_max, average A and B                zero_pad()
    sparsity-weighted: weight ~ ||B_k A_k||           zero_pad(by_norm=True)
    rank self-pruning by gamma and lambda             self_pruning(gamma, lam, lowest)

From general knowledge of the paper and third-party code, not from its text. Our reading: the norm is taken module by
module, who gets which rank, and that a device prunes all of its blocks or none (`policies/self_prune.py`). The paper's
gamma and lambda are not known here, so pruning is off by default. `owners_only` is not the paper's.

Evidence: general knowledge of the paper, third-party code.
"""

from __future__ import annotations

from cutlayer.methods.method import Method
from cutlayer.policies.cut import whole_model
from cutlayer.policies.ranks import ranks_by_budget
from cutlayer.policies.select import everyone, random_fraction
from cutlayer.policies.self_prune import ranks_that_are_left, self_pruning
from cutlayer.policies.zero_pad import zero_pad
from cutlayer.rounds.shrinking import shrinking


def hetlora(
    *,
    by: str = "speed",
    lowest: int = 1,
    gamma: float = 1.0,
    lam: float = 0.0,
    by_norm: bool = True,
    owners_only: bool = False,
    fraction: float = 1.0,
) -> Method:
    """Builds HETLoRA.

    Args:
      by: What ranks go by: speed, memory or uplink; the best device has the run's rank.
      lowest: The lowest rank, pruned ones too; the run's rank makes all ranks equal.
      gamma: The part of its rank to which a device prunes itself when what is above shrank in a round; 1 is never.
      lam: Weight in a device's loss of the norm of what it would prune.
      by_norm: Whether a device counts with the norm of its product B A; False counts it by what it trained.
      owners_only: Whether rows of high rank are averaged over those who have them, instead of diluted by zeros.
      fraction: Of the fleet, drawn anew every round.
    """
    return Method(
        plan=(
            everyone(),
            ranks_by_budget(by, lowest=lowest),
            random_fraction(fraction),
            whole_model(),
            self_pruning(gamma, lam, lowest=lowest),
        ),
        round=shrinking(),
        aggregate=zero_pad(by_norm=by_norm, owners_only=owners_only),
        observe=ranks_that_are_left,
    )
