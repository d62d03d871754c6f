"""Batches made one batch: rows under rows, padded on the right to the longest text.

Shapes: B batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad


def concat(parts: Sequence[Tensor], fill: float = 0) -> Tensor:
    """Joins tensors along their first dimension, after padding the second one where they have it.

    Args:
      parts: (B_i, T_i, ...) each, alike in what follows T; or (B_i,) each.
      fill: what stands in the padding: 0 in activations and in a mask, `MASKED` in token labels.

    Returns:
      (sum of B_i, longest T_i, ...); or (sum of B_i,).
    """
    if parts[0].dim() == 1:
        return torch.cat(list(parts))
    longest = max(part.shape[1] for part in parts)
    return torch.cat([pad(part, _padding(part, longest), value=fill) for part in parts])


def _padding(part: Tensor, longest: int) -> list[int]:
    """The argument that `pad` takes: two numbers per dimension, from the last one forwards to the second."""
    return [0, 0] * (part.dim() - 2) + [0, longest - part.shape[1]]
