"""P-RGE for an inference engine that only runs forward: restoring, stepping and perturbing are part of the next pass.

MobiZO (arXiv 2409.15520; the authors' code was read): the engine's graph holds B0 = B + eps z and B1 = B - eps z, and
is fed the learning rate, eps and the slope g of the pass before. It needs no seed of that pass: z is still in there.

    n = (B0 - B1) / 2                 eps z of the pass before
    u = lr g n / eps                  its step
    B0 <- B0 + eps z' - n - u         B - u + eps z'
    B1 <- B1 + n - u - eps z'         B - u - eps z'

and of q queries the step is the mean of theirs. Up to rounding it is `two_sided` and then `zeroth`: n is eps z as B0
and B1 have rounded it, so values part in their last bits at each step (`tests/model/test_recurrence.py` says how far).

Shapes: Q queries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from cutlayer.model.zeroth import directions
from cutlayer.types import Adapter


class Recurrence:
    """The two ends of each query, from pass to pass.

    Args:
      values: Where the trained tensors begin, by global name; copied.
      queries: Q.
      epsilon: How far the ends are from the middle.
    """

    def __init__(self, values: Mapping[str, Tensor], queries: int, epsilon: float) -> None:
        self._epsilon, self._queries = epsilon, queries
        self._plus_Q = {name: value.detach().repeat(queries, *[1] * value.dim()) for name, value in values.items()}
        self._minus_Q = {name: value.clone() for name, value in self._plus_Q.items()}

    def next(self, seeds: Sequence[int], rate: float = 0.0, slopes: Sequence[float] = ()) -> Adapter:
        """The tensors of the next pass, for `replicated`: by name (2 Q, ...), the + ends and then the - ends.

        Args:
          seeds: Of the new perturbations, one for each query.
          rate: The learning rate of the step that the pass before was for.
          slopes: Its slopes, one for each query; none at the first pass.
        """
        noise = directions({name: ends[0] for name, ends in self._plus_Q.items()}, self._plus_Q, seeds)
        for name, step in self._turn(rate, slopes).items():
            away_Q = noise[name].to(step.dtype) * self._epsilon
            self._plus_Q[name].add_(away_Q - step)
            self._minus_Q[name].sub_(away_Q + step)
        return {name: torch.cat([self._plus_Q[name], self._minus_Q[name]]) for name in self._plus_Q}

    def end(self, rate: float, slopes: Sequence[float]) -> Adapter:
        """Takes the last step and leaves no perturbation: the trained values. See `next`."""
        for name, step in self._turn(rate, slopes).items():
            self._plus_Q[name].sub_(step)
            self._minus_Q[name].sub_(step)
        return {name: ends[0].clone() for name, ends in self._plus_Q.items()}

    def _turn(self, rate: float, slopes: Sequence[float]) -> Adapter:
        """Brings both ends to the middle; the step from there, which all queries take."""
        steps = {}
        for name, plus_Q in self._plus_Q.items():
            away_Q = (plus_Q - self._minus_Q[name]) / 2
            plus_Q.sub_(away_Q)
            self._minus_Q[name].add_(away_Q)
            step = torch.zeros_like(plus_Q[0])
            for slope, away in zip(slopes, away_Q, strict=bool(slopes)):
                step += away * (rate * slope / (self._epsilon * self._queries))
            steps[name] = step
        return steps
