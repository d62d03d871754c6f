"""The loss of a language model, without the copies: logits are the largest tensor of a step by far.

They are asked of the head only where something is learned: a prompt, padding and the last token of a text have none
(`Learned`). The head is the model's own; a hook hands it those positions alone.

Cross entropy as torch computes it keeps the logits' log-softmax beside them, and its backward pass makes two more
tensors of that size. Here each takes the place of the one before it, some rows at a time, by the same kernels: the
numbers are those of transformers' own loss, bit for bit (`tests/model/test_loss.py`).

Shapes: B batch, T tokens, D hidden size, V vocabulary, N rows: B T of them, or those that are learned; R replicas.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

MASKED = -100
"""The label of a position that does not count."""
PIECE = 2**20
"""Elements that are worked on at a time: few enough for a processor's cache, many enough for a GPU."""

_MEAN = 1  # torch's number for reduction="mean"


@dataclass(frozen=True, slots=True)
class Learned:
    """The positions at which a batch of texts is learned, and the tokens to learn there.

    Attributes:
      positions_N: places in B T whose next token counts, ascending; int64.
      targets_N: those tokens.
    """

    positions_N: Tensor
    targets_N: Tensor

    @classmethod
    def of(cls, labels_BT: Tensor) -> Learned:
        """The positions and tokens that these labels say.

        Args:
          labels_BT: The tokens, `MASKED` where they do not count; int64.
        """
        next_N = _next(labels_BT)
        positions_N = (next_N != MASKED).nonzero().squeeze(1)
        return cls(positions_N, next_N[positions_N])

    def repeated(self, replicas: int, num_positions: int) -> Learned:
        """The same of a batch that is there so many times, one after the other.

        Args:
          replicas: How many times.
          num_positions: B T of one of them.
        """
        starts_R = torch.arange(replicas, device=self.positions_N.device) * num_positions
        return Learned((starts_R[:, None] + self.positions_N).flatten(), self.targets_N.repeat(replicas))

    @contextmanager
    def alone(self, model: nn.Module) -> Iterator[None]:
        """A context in which a causal LM's head makes logits, (1, N, V), of the learned positions and of no others."""
        head = model.get_output_embeddings()  # type: ignore[operator]
        handle = head.register_forward_pre_hook(
            lambda _module, inputs: inputs[0].flatten(0, 1).index_select(0, self.positions_N)[None]
        )
        try:
            yield
        finally:
            handle.remove()

    def loss(self, logits: Tensor) -> Tensor:
        """The mean cross entropy over learned positions; uses the logits up. See `token_loss`.

        Args:
          logits: (1, N, V), of the learned positions.
        """
        return _loss(logits[0], self.targets_N)


def token_loss(logits_BTV: Tensor, labels_BT: Tensor) -> Tensor:
    """The mean cross entropy of predicting each token from those before it; uses the logits up.

    Args:
      logits_BTV: Nobody may look at them afterwards: their memory becomes their gradient's. One backward pass at most.
      labels_BT: The tokens, `MASKED` where they do not count; int64.
    """
    return _loss(logits_BTV.flatten(0, 1), _next(labels_BT))


def replica_losses(logits: Tensor, labels: Tensor | Learned, replicas: int) -> Tensor:
    """The mean loss of each replica of a batch, over its own samples or learned positions; (R,).

    Args:
      logits: (R B, classes), or (1, R N, V), which is used up; replica after replica.
      labels: (B,) classes, or what is learned of one replica: the same of each.
      replicas: R.
    """
    if isinstance(labels, Learned):
        return torch.stack([labels.loss(part[None]) for part in logits[0].chunk(replicas)])
    return torch.stack([cross_entropy(part, labels) for part in logits.chunk(replicas)])


def _next(labels_BT: Tensor) -> Tensor:
    """The token that comes next at each position of B T, `MASKED` where none counts."""
    return pad(labels_BT, (0, 1), value=MASKED)[:, 1:].flatten()


def _loss(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    loss: Tensor = _TokenLoss.apply(logits_NV.float(), targets_N)  # type: ignore[no-untyped-call]
    return loss


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
