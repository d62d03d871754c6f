"""A batch of activations as its samples, each a batch of its own. What one of them counts in a loss.

Shapes: B batch, T tokens, D hidden size.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from cutlayer.model.loss import MASKED
from cutlayer.wire.messages import Activations


def one_by_one(arrived: Activations) -> list[Activations]:
    """The samples of a batch, each a batch of its own with its own weight. They share the batch's memory."""
    rows_B = arrived.rows_B
    return [
        replace(
            arrived,
            h_BTD=arrived.h_BTD[i : i + 1],
            mask_BT=arrived.mask_BT[i : i + 1],
            labels=arrived.targets[i : i + 1],
            weight=weight_of(arrived.targets[i]),
            rows_B=None if rows_B is None else rows_B[i : i + 1],
        )
        for i in range(len(arrived.h_BTD))
    ]


def weight_of(label: Tensor) -> int:
    """The weight of one sample in a loss: one, or the tokens that are predicted (the first of a text is not)."""
    return 1 if label.dim() == 0 else int((label[1:] != MASKED).sum())
