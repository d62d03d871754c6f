"""Numbers that can be reckoned with: finite, or up to a magnitude; seen in one pass and without a copy.

A tensor without numbers, as a rehearsal has them, is both.
"""

from __future__ import annotations

import torch
from torch import Tensor


def finite(tensor: Tensor) -> bool:
    """Whether all numbers are finite: one that is none is neither least nor largest.

    Example:
      >>> finite(torch.tensor([1.0, -3e38])), finite(torch.tensor([1.0, torch.nan]))
      (True, False)
    """
    return tensor.numel() == 0 or tensor.is_meta or all(bool(torch.isfinite(end)) for end in torch.aminmax(tensor))


def within(tensor: Tensor, most: float) -> bool:
    """Whether all are numbers, and none of a magnitude above `most`.

    Example:
      >>> within(torch.tensor([1.0, -3.0]), 3.0), within(torch.tensor([1.0, torch.nan]), 3.0)
      (True, False)
    """
    return tensor.numel() == 0 or tensor.is_meta or all(abs(float(end)) <= most for end in torch.aminmax(tensor))
