"""A device's local steps in FedKSeed, and what they come to.

Federated Full-Parameter Tuning of Billion-Sized Language Models with Communication Cost under 18 Kilobytes
    Zhen Qin, Daoyuan Chen, Bingchen Qian, Bolin Ding, Yaliang Li, Shuiguang Deng. ICML 2024.
    https://arxiv.org/abs/2312.06353

    the authors' code (read)                                  here
    -----------------------------------------------------     ---------------------------------
    w = w0 - lr sum_k G_k z(s_k)                              Standing.move(sums); c_k = lr G_k
    g = (l(w + eps z) - l(w - eps z)) / (2 eps)               Walk.step
    not a number, or |l+ - l-| above the clip: no step        Walk.step
    w <- w - lr g z;  G_k += g                                Walk.step; Walk.own_K
    sent: the pairs (seed, g)                                 Walk.facts, sums_of

Ours: a sum has the learning rates in it (c = sum of lr g), so that rates may differ from step to step; the authors
multiply when they replay, and so allow one rate only. Weight decay has no place in the sums, and is not offered.

All of it is fp32 arithmetic in one order, that of the steps, so device and server get the same sums.

Shapes: K seeds, T local steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from cutlayer.model.standing import Standing

SKIPPED = -1
"""The number in place of a seed's index, at a step that was not taken."""


class Walk:
    """The local steps of one device in one round.

    Others may move the weights between two steps: each begins by going to where this walk stands.

    Args:
      standing: The weights.
      sums_K: Where the round begins, fp32.

    Attributes:
      own_K: what the walk adds to the sums, fp32.
    """

    def __init__(self, standing: Standing, sums_K: Tensor) -> None:
        self.own_K = torch.zeros_like(sums_K)
        self._standing, self._start_K = standing, sums_K.clone()
        self._indices: list[int] = []
        self._scalars: list[float] = []

    @property
    def sums(self) -> Tensor:
        """The sums at which the walk stands: those that the server has after the round if nobody else takes part."""
        return self._start_K + self.own_K

    def step(self, index: int, loss: Callable[[], Tensor], *, epsilon: float, rate: float, clip: float = 0.0) -> float:
        """One local step; see `Standing.step`.

        Args:
          index: Which seed.
          loss: The loss of this step's batch at the weights as they then are; without dropout.
          epsilon: How far to go to either side.
          rate: The learning rate.
          clip: The step is not taken if the two losses differ by more; 0 is no limit.

        Returns:
          The mean of the two losses. It may be no number.
        """
        self._standing.move(self.sums)
        self._indices.append(SKIPPED)
        self._scalars.append(0.0)

        def decide(plus: float, minus: float) -> float:
            with np.errstate(over="ignore"):  # infinite then, and skipped
                scalar = np.float32((plus - minus) / (2 * epsilon))
            moved = self.own_K.clone()
            _add(moved, index, scalar, rate)
            total = float(self._start_K[index] + moved[index])
            if math.isfinite(total) and not 0 < clip < abs(plus - minus):
                self.own_K = moved
                self._indices[-1], self._scalars[-1] = index, float(scalar)
            return float(self.sums[index])

        losses = self._standing.step(index, loss, epsilon, decide)
        return sum(losses) / 2

    def facts(self) -> dict[str, Tensor]:
        """Tensors to send: `seed_indices`, int32 of shape (T,), `SKIPPED` where no step was taken; `scalars`, fp32."""
        return {
            "seed_indices": torch.tensor(self._indices, dtype=torch.int32),
            "scalars": torch.tensor(self._scalars, dtype=torch.float32),
        }


def sums_of(indices_T: Tensor, scalars_T: Tensor, rates: Sequence[float], count: int) -> Tensor:
    """A walk's `own_K` from what it sent, (K,).

    Args:
      indices_T, scalars_T: See `Walk.facts`.
      rates: The learning rate of each step.
      count: K.
    """
    own_K = torch.zeros(count)
    for index, scalar, rate in zip(indices_T.tolist(), scalars_T.numpy(), rates, strict=True):
        if index != SKIPPED:
            _add(own_K, index, scalar, rate)
    return own_K


def _add(own_K: Tensor, index: int, scalar: np.float32, rate: float) -> None:
    """Adds rate x scalar, rounded as fp32 rounds a product and then a sum."""
    with np.errstate(over="ignore", invalid="ignore"):
        own_K[index] += float(np.float32(rate) * scalar)
