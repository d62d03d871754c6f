"""The sums of seeds after a round of FedKSeed: each device's own sums, by weight, are added.

    the authors' code (read)               here
    ----------------------------------     -----------------------------------------------------------------------
    G_k <- G_k + sum_c p_c gsum_c[k]       gathered; p by the number of a device's batches (at batch size 1, samples)

FATE-LLM adds devices up without weights, a larger step; weights of 1 each do that here.

Shapes: K seeds.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def by_share(weights: Sequence[float]) -> list[float]:
    """Weights whose sum is 1: exactly 1 for one device alone."""
    total = sum(weights)
    return [weight / total for weight in weights]


def gathered(sums_K: Tensor, contributions: Sequence[tuple[float, Tensor]]) -> Tensor:
    """The next sums: fp64 arithmetic in the order of the contributions, rounded to fp32 once.

    Of one device with weight 1 they are those at which its own steps left it, bit for bit.

    Args:
      sums_K: So far, fp32.
      contributions: A weight and what a device adds (`kseed.sums_of`); in an order that is not that of their arrival.
    """
    total_K = sums_K.double()
    for weight, own_K in contributions:
        total_K = total_K + weight * own_K.double()
    return total_K.to(torch.float32)
