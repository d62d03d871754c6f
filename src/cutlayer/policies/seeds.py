"""The seed, of K, that a device tries next in FedKSeed: any, or (Pro) rather one along which the loss was steep.

Federated Full-Parameter Tuning of Billion-Sized Language Models with Communication Cost under 18 Kilobytes
    Zhen Qin, Daoyuan Chen, Bingchen Qian, Bolin Ding, Yaliang Li, Shuiguang Deng. ICML 2024.
    https://arxiv.org/abs/2312.06353

    the authors' code (read)                                             here
    ----------------------------------------------------------------     -----------------------------
    K seeds from 1 to 1e11                                               candidate_seeds
    each alike                                                           uniform
    a_k = mean |clip(g, +-1000)| over the history of seed k, which       SlopeHistory
      begins with one 0 that stays in the mean
    probabilities = softmax of a, scaled to [0, 1] by its least and      SlopeHistory.probabilities
      largest: the largest probability is at most e times the least

Where all a_k are equal, as at first, the scaling has no meaning; all seeds are then alike (ours).

Shapes: K seeds, T local steps.
"""

from __future__ import annotations

import hashlib
import itertools

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cutlayer.errors import ConfigError

MOST = 10**11
"""The largest seed."""
CLIP = 1000.0
"""A slope counts as at most this."""


def candidate_seeds(count: int, seed: int) -> tuple[int, ...]:
    """K different seeds from 1 to `MOST`.

    Args:
      count: K.
      seed: Of the draw, the run's.

    Raises:
      ConfigError: Less than one seed.
    """
    if count < 1:
        raise ConfigError(f"method.seeds: expected at least 1 seed, got {count}. Change method.seeds.")
    drawn: dict[int, None] = {}  # in the order in which they came
    for number in itertools.count():
        if len(drawn) == count:
            break
        drawn[1 + _word("seed", seed, number) % MOST] = None
    return tuple(drawn)


def uniform(count: int) -> Tensor:
    """Each of K seeds alike, fp32."""
    return torch.full((count,), 1 / count)


class SlopeHistory:
    """The steepness of the loss along each seed, over all devices and rounds.

    Args:
      count: K.
    """

    def __init__(self, count: int) -> None:
        self._sums_K: NDArray[np.float64] = np.zeros(count)
        self._counts_K: NDArray[np.float64] = np.ones(count)  # the 0 that every history begins with

    def observe(self, indices_T: Tensor, scalars_T: Tensor) -> None:
        """Adds what a device found.

        Args:
          indices_T: Which seed each step tried; negative where it was not taken, which counts for nothing.
          scalars_T: The slopes.
        """
        taken_T = indices_T >= 0
        indices = indices_T[taken_T].numpy()
        np.add.at(self._sums_K, indices, scalars_T[taken_T].double().abs().clamp(max=CLIP).numpy())
        np.add.at(self._counts_K, indices, 1.0)

    def probabilities(self) -> Tensor:
        """The probability of each seed, fp32, of shape (K,)."""
        steepness_K = self._sums_K / self._counts_K
        least, largest = steepness_K.min(), steepness_K.max()
        if least == largest:
            return uniform(len(steepness_K))
        odds_K = np.exp((steepness_K - least) / (largest - least))
        return torch.from_numpy(odds_K / odds_K.sum()).float()

    def state(self) -> dict[str, Tensor]:
        """The tensors that a checkpoint must keep."""
        return {
            "slope_sums": torch.from_numpy(self._sums_K.copy()),
            "slope_counts": torch.from_numpy(self._counts_K.copy()),
        }

    def load(self, state: dict[str, Tensor]) -> None:
        """Goes on from a `state`."""
        self._sums_K, self._counts_K = state["slope_sums"].numpy().copy(), state["slope_counts"].numpy().copy()


def draw(probabilities_K: Tensor, *key: object) -> int:
    """One seed's index, by these probabilities; the same for the same key.

    Args:
      probabilities_K: As they were sent; their sum need not be exactly 1.
      key: What the draw depends on, such as the run's seed, device, round, step.
    """
    upper_K = probabilities_K.double().cumsum(0)
    place = _word(*key) / 2**64 * float(upper_K[-1])
    return min(int(torch.searchsorted(upper_K, place, right=True)), len(probabilities_K) - 1)


def _word(*key: object) -> int:
    """64 random bits."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, key)).encode()).digest()[:8], "little")
