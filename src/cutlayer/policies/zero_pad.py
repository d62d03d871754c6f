"""Zero-padding: adapters of different ranks filled up with zeros and averaged, A and B each for itself (HETLoRA).

here                                     HETLoRA (arXiv 2401.06432, from general knowledge of the paper)
------------------------------------     ----------------------------------------------------------------
at_rank(), in Server.assignment          a device starts from the first r_k rows of A and columns of B
_padded()                                zero-padding to the largest rank
by_norm: weight ||B_k A_k||              sparsity-weighted aggregation
owners_only (not the paper's)            rows that few devices have are not diluted by the zeros of the others
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median_low

import torch
from torch import Tensor

from cutlayer.model.low_rank import Term, factor_names
from cutlayer.policies.aggregate import Aggregate, Contribution, mean_per_block, terms_of
from cutlayer.state import Stateless
from cutlayer.types import Adapter, RoundPlan

MOST = 4.0
"""Times the median norm, with which a device counts at most."""


def zero_pad(*, by_norm: bool = True, owners_only: bool = False) -> Aggregate:
    """Pads every A with rows and every B with columns of zeros up to the broadcast's rank, then takes their mean.

    Sums are in fp64: the mean of one contribution of full rank is itself, to the last bit. The head's tensors, which
    have no rank, are averaged by what was trained. What nobody trained keeps its broadcast value.

    Args:
      by_norm: A device counts, module by module, with the Frobenius norm of its product B A, at most with four times
        the median one (ours: else one device decides alone), and where all of them are zero like the others; False
        counts devices by what they trained.
      owners_only: Each row of A and column of B is averaged over the devices whose rank reaches it, as RBLA and
        raFLoRA do; False lets the zeros of the others count, and so shrinks the highest rows.

    Example:
      >>> import torch
      >>> from cutlayer import Contribution, RoundPlan, zero_pad
      >>> def of_rank(rank: int) -> Contribution:
      ...     factors = {"q.lora_A.weight": torch.ones(rank, 2), "q.lora_B.weight": torch.ones(2, rank)}
      ...     return Contribution(factors, dict.fromkeys(factors, 1.0))
      >>> padded = zero_pad(by_norm=False)(of_rank(2).adapter, [of_rank(1), of_rank(2)], RoundPlan(0))
      >>> padded["q.lora_A.weight"]  # the second row: one device's and a row of zeros
      tensor([[1.0000, 1.0000],
              [0.5000, 0.5000]])
    """
    return _ZeroPad(by_norm, owners_only)


class _ZeroPad(Stateless):
    name, mixed_ranks = "zero-padding", True

    def __init__(self, by_norm: bool, owners_only: bool) -> None:
        self._by_norm, self._owners_only = by_norm, owners_only
        self._mean = mean_per_block()

    def __call__(self, broadcast: Adapter, contributions: Sequence[Contribution], plan: RoundPlan) -> Adapter:
        padded: Adapter = {}
        for b, a in factor_names(broadcast):
            terms = terms_of(contributions, b, a)
            if self._by_norm:
                terms = _weighted_by_norm(terms)
            padded[b] = self._average(broadcast[b], [(weight, value) for weight, value, _ in terms])
            padded[a] = self._average(broadcast[a], [(weight, value) for weight, _, value in terms])
        head = self._mean({name: value for name, value in broadcast.items() if name not in padded}, contributions, plan)
        return {name: padded[name] if name in padded else head[name] for name in broadcast}

    def _average(self, broadcast: Tensor, parts: Sequence[tuple[float, Tensor]]) -> Tensor:
        if not parts:
            return broadcast
        total = sum(weight for weight, _ in parts)
        shares = [(weight / total, value.double()) for weight, value in parts]
        mean = _sum(broadcast, [share * value for share, value in shares])
        if self._owners_only:
            reached = _sum(broadcast, [torch.full_like(value, share) for share, value in shares])
            mean = torch.where(reached > 0, mean / reached, broadcast.double())
        return mean.to(broadcast.dtype)


def _sum(like: Tensor, values: Sequence[Tensor]) -> Tensor:
    """The sum in fp64, each value in the upper left corner of zeros of the shape of `like`."""
    total = torch.zeros_like(like, dtype=torch.float64)
    for value in values:
        total[: value.shape[0], : value.shape[1]] += value
    return total


def _weighted_by_norm(terms: Sequence[Term]) -> list[Term]:
    """Each with its norm, and at most `MOST` times the median one: a factor times a thousand decides nothing alone."""
    norms = [_norm(b, a) for _, b, a in terms]
    if any(norms):
        most = MOST * median_low([norm for norm in norms if norm])
        norms = [min(norm, most) for norm in norms]
    return [(norm if any(norms) else 1.0, b, a) for norm, (_, b, a) in zip(norms, terms, strict=True)]


def _norm(b_MR: Tensor, a_RN: Tensor) -> float:
    """||B A||: its square is the sum of (B^T B) * (A A^T), which needs no M x N matrix."""
    b_MR, a_RN = b_MR.double(), a_RN.double()
    return float(((b_MR.T @ b_MR) * (a_RN @ a_RN.T)).sum().clamp(min=0).sqrt())
