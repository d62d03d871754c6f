"""Weights that stand where a vector of sums says: w = w0 - sum_k c_k z(s_k), whatever way led there.

FedKSeed (arXiv 2312.06353) never sends weights. Everybody has w0 and the K seeds, and is told K sums; the weights of
a full model follow from them. Here they follow to the bit: each seed's share c_k z(s_k) is rounded by itself to the
tensor's grid (`model/grid.py`), on which adding up rounds nothing. So

- the weights are a function of w0 and the sums, the same for who stepped there, who was sent the sums in every round
  and who missed ten rounds, on a CPU and on an accelerator;
- a move makes the noise of those seeds only whose sum changed, once each, and needs no copy of the weights;
- w + eps z and back is exactly back, so a perturbation needs no copy either.

What is lost: a share smaller than half a unit of the grid (2^-25 in most tensors) is rounded away, so a sum below about
a third of a unit does less than it says, as a step that small does when fp32 adds it to a weight near 1.

Weights that all devices of one process share (a base's, or one adapter for all) have one `Standing`, and whoever
computes moves it to where that device stands.

Shapes: K seeds, S of them at once, N elements of a piece.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from cutlayer.errors import ConfigError, ModelError
from cutlayer.model.grid import Grid
from cutlayer.model.noise import in_groups, pieces

MOST_EPSILON = 0.03
"""A perturbation beyond it could leave the grid: 6.34, the largest noise, x 0.03 is below a quarter of its reach."""


class Standing:
    """Weights, and the sums at which they stand: at first all zero.

    Args:
      tensors: The weights by name, fp32. They are put on their grids at once, which rounds them, and move in place.
      seeds: The K seeds.

    Raises:
      ModelError: Weights that are not fp32, or do not lie in one piece.
    """

    def __init__(self, tensors: Mapping[str, Tensor], seeds: Sequence[int]) -> None:
        for name, tensor in tensors.items():
            if tensor.dtype is not torch.float32 or not tensor.is_contiguous():
                raise ModelError(
                    f"{name}: expected contiguous fp32 weights, on whose grid sums are exact, got {tensor.dtype} with "
                    f"strides {tensor.stride()}. Set model.dtype=fp32."
                )
        self.seeds = tuple(seeds)
        self.tensors = {name: tensor.detach() for name, tensor in tensors.items()}
        self._grids = {name: Grid.of(tensor) for name, tensor in self.tensors.items() if not tensor.is_meta}
        self._sums_K = torch.zeros(len(self.seeds))
        self._kept: tuple[Tensor, dict[str, Tensor]] | None = None
        for piece in pieces(self.tensors):
            self._grids[piece.name].snap(piece.values_N)

    @property
    def sums(self) -> Tensor:
        """The sums at which the weights stand, a copy; fp32."""
        return self._sums_K.clone()

    def move(self, sums_K: Tensor) -> None:
        """Moves the weights to these sums: one pass over them for each that differs.

        Args:
          sums_K: c, which has the learning rates in it already; fp32.

        Raises:
          ModelError: Sums that are not finite, or that take a weight beyond three quarters of its grid's reach; the
            weights are then of no use any more.
        """
        if sums_K.shape != self._sums_K.shape or not bool(sums_K.isfinite().all()):
            raise ModelError(
                f"sums of seeds: expected {len(self.seeds)} finite numbers, got {_described(sums_K)}. "
                "Lower the learning rate, or send the sums of these seeds."
            )
        if self._kept and bool((self._kept[0] != sums_K).sum() < (self._sums_K != sums_K).sum()):
            self._sums_K = self._kept[0].clone()
            for name, tensor in self.tensors.items():
                tensor.copy_(self._kept[1][name])
        changed = (self._sums_K != sums_K).nonzero().flatten().tolist()
        if changed:
            self._shift(changed, (1.0, self._sums_K[changed]), (-1.0, sums_K[changed].float()))
            self._check()
            self._sums_K.copy_(sums_K)

    def keep(self) -> None:
        """Copies the weights as they are: a move that starts best from here is then a copy and what differs from here.

        For a process that plays many devices, which all set out from the sums of the round: it costs the memory of
        the weights once more.
        """
        self._kept = self.sums, {name: tensor.clone() for name, tensor in self.tensors.items()}

    def step(
        self, index: int, loss: Callable[[], Tensor], epsilon: float, decide: Callable[[float, float], float]
    ) -> tuple[float, float]:
        """Takes the loss at w + eps z and at w - eps z, and moves to what is decided: three passes over the weights.

        Args:
          index: Which seed z is of.
          loss: The loss at the weights as they then are.
          epsilon: Above 0 and at most `MOST_EPSILON`.
          decide: (loss at w + eps z, loss at w - eps z) -> the seed's sum from now on, a number of fp32.

        Returns:
          The two losses. If `loss` raises, the weights are as they were.

        Raises:
          ConfigError: An epsilon out of its range.
          ModelError: See `move`.
        """
        if not 0 < epsilon <= MOST_EPSILON:
            raise ConfigError(
                f"method.epsilon: expected above 0 and at most {MOST_EPSILON}, got {epsilon}. Change method.epsilon."
            )
        away, before, after = torch.tensor([epsilon]), self._sums_K[[index]], self._sums_K[[index]]
        side = 0.0
        losses = []
        try:
            for target in (1.0, -1.0):
                self._shift([index], (target - side, away))
                side = target
                losses.append(float(loss()))
            after = torch.tensor([decide(*losses)])
        finally:
            self._shift([index], (-side, away), (1.0, before), (-1.0, after))
        self._sums_K[index] = after[0]
        self._check()
        return losses[0], losses[1]

    def _shift(self, indices: Sequence[int], *moves: tuple[float, Tensor]) -> None:
        """Adds `times` x the grid steps of scale x noise, for each of these seeds and each move (times, scale_S)."""
        furthest = 7 * sum(abs(times) * float(scale_S.abs().sum()) for times, scale_S in moves)  # no noise is above 6.4
        for piece in pieces(self.tensors):
            grid = self._grids[piece.name]
            # sums of steps are whole numbers: exact in fp32 as long as none can be larger than it holds, else in fp64
            dtype = torch.float32 if furthest < 0.9 * grid.reach else torch.float64
            steps_N = torch.zeros(len(piece.values_N), dtype=dtype, device=piece.values_N.device)
            for some in in_groups(range(len(indices)), len(piece.values_N)):
                z_SN = piece.normal([self.seeds[indices[place]] for place in some])
                for times, scale_S in moves:
                    scale_S1 = scale_S[some[0] : some[-1] + 1, None].to(z_SN.device)
                    steps_N.add_(grid.steps(z_SN, scale_S1).sum(0, dtype=dtype), alpha=times)
            piece.values_N.copy_(steps_N.mul_(grid.unit).add_(piece.values_N))

    def _check(self) -> None:
        for piece in pieces(self.tensors):
            if not self._grids[piece.name].holds(piece.values_N):
                reach = 0.75 * self._grids[piece.name].reach
                raise ModelError(
                    f"{piece.name}: expected weights up to {reach:g}, at least 1.5 times the largest at first, got "
                    f"{float(piece.values_N.abs().max()):g}. Training diverges: lower the learning rate."
                )


def _described(sums_K: Tensor) -> str:
    wrong = int((~sums_K.isfinite()).sum())
    return f"{tuple(sums_K.shape)}" + (f" with {wrong} that are not finite" if wrong else "")
