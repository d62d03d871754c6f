"""SVD: the mean of the products B A, factored anew (FlexLoRA).

    here                                     FlexLoRA (arXiv 2402.11505, the authors' code)
    ------------------------------------     ----------------------------------------------------------------
    terms_of(), stacked()                    dW = sum of w_k (alpha / r_k) B_k A_k
    truncated()                              SVD of dW
    B = U S, A = V^T                         B = U S / (alpha / r), A = V^T
    at_rank(), in Server.assignment          a device starts from the r_k largest singular values

One scale holds for all ranks here (docs/decisions/0009-one-scale.md), so alpha / r, which the authors put in and take
out again, is left out of both.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cutlayer.model.low_rank import factor_names, stacked, truncated
from cutlayer.policies.aggregate import Aggregate, Contribution, mean_per_block, terms_of
from cutlayer.state import Stateless
from cutlayer.types import Adapter, RoundPlan


def svd() -> Aggregate:
    """The mean of the products, weighted by what was trained, as the nearest factors of the broadcast's rank.

    In fp64. Exact where that rank is at least the sum of the devices' ranks, or the module's smaller side. Singular
    values come largest first, so what a device of a lower rank is sent is the best it can hold. The head's tensors
    are averaged; what nobody trained keeps its broadcast value.

    The factors mean something else than those that were broadcast: let AdamW's moments begin anew
    (`policies.moments.fresh_moments`).

    Example:
      >>> import torch
      >>> from cutlayer import Contribution, RoundPlan, svd
      >>> def of_rank(rank: int) -> Contribution:
      ...     factors = {"q.lora_A.weight": torch.ones(rank, 2), "q.lora_B.weight": torch.ones(2, rank)}
      ...     return Contribution(factors, dict.fromkeys(factors, 1.0))
      >>> joined = svd()(of_rank(2).adapter, [of_rank(1), of_rank(2)], RoundPlan(0))
      >>> product = joined["q.lora_B.weight"] @ joined["q.lora_A.weight"]
      >>> product.round(decimals=4)  # the mean of a matrix of ones and one of twos
      tensor([[1.5000, 1.5000],
              [1.5000, 1.5000]])
    """
    return _Svd()


class _Svd(Stateless):
    name, mixed_ranks = "SVD", True

    def __init__(self) -> None:
        self._mean = mean_per_block()

    def __call__(self, broadcast: Adapter, contributions: Sequence[Contribution], plan: RoundPlan) -> Adapter:
        factored: Adapter = {}
        for b, a in factor_names(broadcast):
            terms = terms_of(contributions, b, a)
            if not terms:
                continue  # the mean over nobody is what was broadcast
            total = sum(weight for weight, _, _ in terms)
            mean = [(weight / total, b_k.double(), a_k.double()) for weight, b_k, a_k in terms]
            new_b, new_a = truncated(*stacked(mean), rank=broadcast[a].shape[0])
            rank = new_a.shape[0]
            # Beyond the rank that the sum can have, A keeps its rows: with B = 0 they change nothing, but can learn.
            factored[b], factored[a] = torch.zeros_like(broadcast[b]), broadcast[a].clone()
            factored[b][:, :rank], factored[a][:rank] = new_b, new_a
        head = self._mean(
            {name: value for name, value in broadcast.items() if name not in factored}, contributions, plan
        )
        return {name: factored[name] if name in factored else head[name] for name in broadcast}
