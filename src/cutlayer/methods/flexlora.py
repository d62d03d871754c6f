"""FlexLoRA: federated, unequal ranks; the products B A averaged and factored anew by SVD to each device's rank.

Federated Fine-tuning of Large Language Models under Heterogeneous Tasks and Client Resources
    Jiamu Bai, Daoyuan Chen, Bingchen Qian, Liuyi Yao, Yaliang Li. NeurIPS 2024. https://arxiv.org/abs/2402.11505

    the authors' code                                 here
    ---------------------------------------------     ------------------------------------------
    rank r_k by the device's resources                ranks_by_budget(by, lowest)
    dW = sum of w_k (alpha / r_k) B_k A_k             svd(): one scale, so the factors alpha / r cancel
    SVD; B = U_r S_r / (alpha / r), A = V_r^T         svd(), then Server.assignment takes the first r_k

Our reading: who gets which rank, and that AdamW begins anew each round, its moments belonging to factors that are
gone. Their clients are 5 % of 1,613, drawn anew each round; here everyone joins.

Evidence: the authors' code; who gets which rank is our reading.
"""

from __future__ import annotations

from cutlayer.methods.method import Method
from cutlayer.policies.cut import whole_model
from cutlayer.policies.moments import fresh_moments
from cutlayer.policies.ranks import ranks_by_budget
from cutlayer.policies.select import everyone, random_fraction
from cutlayer.policies.svd import svd
from cutlayer.rounds.local import local


def flexlora(*, by: str = "speed", lowest: int = 1, fraction: float = 1.0) -> Method:
    """Builds FlexLoRA.

    Args:
      by: What ranks go by: speed, memory or uplink; the best device has the run's rank.
      lowest: The lowest rank; the run's rank makes all ranks equal.
      fraction: Of the fleet, drawn anew every round.
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
        aggregate=svd(),
    )
