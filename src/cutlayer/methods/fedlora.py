"""FedLoRA: federated averaging; every device trains the whole model's adapter, A and B averaged by samples (FedIT).

Towards Building the Federated GPT: Federated Instruction Tuning
    Jianyi Zhang, Saeed Vahidian, Martin Kuo, Chunyuan Li, Ruiyi Zhang, Tong Yu, Yufan Zhou, Guoyin Wang, Yiran Chen.
    ICASSP 2024. https://arxiv.org/abs/2305.05644

    the authors' code                                  here
    ----------------------------------------------     ------------------------------------------
    every client holds the whole model                 whole_model()
    clients train LoRA on their own data               local()
    a tenth of the clients joins a round               random_fraction(fraction)
    A and B averaged separately, weights n_k / n       mean_per_block(): by what was trained

Known bias: the mean of the products B A is not the product of the means. The authors draw a tenth of the clients in
each round; here everyone joins unless `fraction` says otherwise.

Evidence: the authors' code.
"""

from __future__ import annotations

from cutlayer.methods.method import Method
from cutlayer.policies.aggregate import mean_per_block, with_momentum
from cutlayer.policies.cut import whole_model
from cutlayer.policies.select import everyone, random_fraction
from cutlayer.rounds.local import local


def fedlora(*, fraction: float = 1.0, momentum: float = 0.0) -> Method:
    """Builds FedLoRA.

    Args:
      fraction: Of the fleet, drawn anew every round.
      momentum: Of the averaged updates, from round to round; 0 is the plain mean. An extension of ours.
    """
    return Method(
        plan=(everyone(), random_fraction(fraction), whole_model()),
        round=local(),
        aggregate=with_momentum(mean_per_block(), momentum),
    )
