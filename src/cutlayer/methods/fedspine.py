"""FedSpine: federated on models that shrink; heads and channels pruned, ratio and rank chosen per device by a bandit.

Efficient Deployment of Large Language Models on Resource-constrained Devices
    Zhiwei Yao, Yang Xu, Hongli Xu, Yunming Liao, Zuan Xie. 2025. https://arxiv.org/abs/2501.02438

    the paper                                            here
    -------------------------------------------------    ------------------------------------------
    1 ratio and rank from past observations (S-UCB)      ratio_and_rank_by_bandit(prune)
    2 LoRA distribution, cut to the device's rank        Server.assignment: the first rows of A, columns of B
    3 the least important structures are removed         device.talks.pruned.Pruning: heads, FFN channels
    4 local fine-tuning, importance from LoRA gradients  pruned(); model.importance.unit_scores at every step
    5 aggregation of different ranks and structures      scatter(): every entry over those who have it

What is certain (abstract, reviews, notes): federated, iterative and structured (heads, FFN channels, what depends on
them goes too), importance from LoRA gradients alone and smoothed, ratio and rank by a bandit on a tree, updates made
compatible before they are weighted. Our reading: the importance is LoRAPrune's (its public code), the bandit FedMP's
E-UCB from memory, its reward (`policies/bandit.py`), that each block loses the same share, that ratios grow from 0 to
the target, the weights of the aggregation and its mean over owners, and that the one model at the end keeps the units
that matter most to the devices on average. What S-UCB adds to E-UCB is not known here.

Neutral: prune=0.0, rank=8.

Evidence: reviews; importance from LoRAPrune's code, bandit from memory, its reward is our reading.
"""

from __future__ import annotations

from cutlayer.methods.method import Method
from cutlayer.policies.bandit import pruning, ratio_and_rank_by_bandit
from cutlayer.policies.cut import whole_model
from cutlayer.policies.scatter import scatter
from cutlayer.policies.select import everyone, random_fraction
from cutlayer.rounds.pruned import pruned


def fedspine(
    *,
    prune: float = 0.5,
    rank: int | None = None,
    pace: float | None = None,
    discount: float = 0.95,
    smallest: float = 0.25,
    progress: float = 1.0,
    weighted: bool = True,
    fraction: float = 1.0,
) -> Method:
    """Builds FedSpine. It needs LoRA on every matrix that it prunes: lora.targets=[all-linear].

    Args:
      prune: The share of each block's heads and FFN channels that is gone in the last round; 0 prunes nothing.
      rank: LoRA rank of every device; None lets the bandit choose among 2, 4, 8, 16 and the run's, up to the run's.
      pace: The most that one round may prune; None is twice what even steps would take.
      discount: What the bandit's memory of a round is worth one round later.
      smallest: Side of the bandit's leaves at which they are split no further.
      progress: What pruning faster adds to the bandit's reward.
      weighted: Whether devices count by what they trained; False counts them alike.
      fraction: Of the fleet, drawn anew every round.
    """
    aggregate = scatter(weighted=weighted)
    return Method(
        plan=(
            everyone(),
            random_fraction(fraction),
            whole_model(),
            ratio_and_rank_by_bandit(
                prune, rank=rank, pace=pace, discount=discount, smallest=smallest, progress=progress
            ),
        ),
        round=pruned(),
        aggregate=aggregate,
        structure=aggregate.structure,
        observe=pruning,
    )
