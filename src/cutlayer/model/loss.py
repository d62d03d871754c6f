"""The loss of a language model, without the copies: logits are the largest tensor of a step by far.

Cross entropy as torch computes it keeps the logits' log-softmax beside them, and its backward pass makes two more
tensors of that size. Here each takes the place of the one before it, some rows at a time, by the same kernels: the
numbers are those of transformers' own loss, bit for bit (`tests/model/test_loss.py`).

Shapes: B batch, T tokens, V vocabulary, N = B T, R replicas of a batch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, pad

MASKED = -100
"""The label of a position that does not count."""
PIECE = 2**20
"""Elements that are worked on at a time: few enough for a processor's cache, many enough for a GPU."""

_MEAN = 1  # torch's number for reduction="mean"


def token_loss(logits_BTV: Tensor, labels_BT: Tensor) -> Tensor:
    """The mean cross entropy of predicting each token from those before it; uses the logits up.

    Args:
      logits_BTV: Nobody may look at them afterwards: their memory becomes their gradient's. One backward pass at most.
      labels_BT: The tokens, `MASKED` where they do not count; int64.
    """
    next_BT = pad(labels_BT, (0, 1), value=MASKED)[:, 1:]
    loss: Tensor = _TokenLoss.apply(logits_BTV.float().flatten(0, 1), next_BT.flatten())  # type: ignore[no-untyped-call]
    return loss


def replica_losses(logits: Tensor, labels: Tensor, replicas: int) -> Tensor:
    """The mean loss of each replica of a batch, over its own samples or unmasked target tokens; (R,).

    Args:
      logits: (R B, classes), or (R B, T, V), which is used up; replica after replica.
      labels: (B,) classes or (B, T) tokens, those of every replica.
      replicas: R.
    """
    loss = token_loss if labels.dim() == 2 else cross_entropy
    return torch.stack([loss(part, labels) for part in logits.chunk(replicas)])


class _TokenLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, targets_N: Tensor) -> Tensor:
        for piece in logits_NV.split(_rows(logits_NV)):
            piece.copy_(piece.log_softmax(-1))
        loss, weight = torch.ops.aten.nll_loss_forward(logits_NV, targets_N, None, _MEAN, MASKED)
        ctx.save_for_backward(logits_NV, targets_N, weight)
        return loss  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        log_NV, targets_N, weight = ctx.saved_tensors
        rows = _rows(log_NV)
        for piece, targets in zip(log_NV.split(rows), targets_N.split(rows), strict=True):
            picked = torch.ops.aten.nll_loss_backward(gradient, piece, targets, None, _MEAN, MASKED, weight)
            piece.copy_(torch.ops.aten._log_softmax_backward_data(picked, piece, -1, piece.dtype))
        return log_NV, None


def _rows(logits_NV: Tensor) -> int:
    return max(1, PIECE // logits_NV.shape[1])
