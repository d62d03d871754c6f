"""Rows under rows, padded to the longest."""

from __future__ import annotations

import torch

from cutlayer.model.loss import MASKED
from cutlayer.server.concat import concat


def test_activations_of_unequal_lengths() -> None:
    one_BTD, other_BTD = torch.randn(2, 3, 4), torch.randn(1, 5, 4)
    whole_BTD = concat([one_BTD, other_BTD])
    assert whole_BTD.shape == (3, 5, 4)
    assert torch.equal(whole_BTD[:2, :3], one_BTD)
    assert torch.equal(whole_BTD[2:], other_BTD)
    assert not whole_BTD[:2, 3:].any()


def test_masks_stay_masks_and_padding_is_masked() -> None:
    whole_BT = concat([torch.ones(1, 2).bool(), torch.ones(2, 4).bool()])
    assert whole_BT.dtype is torch.bool
    assert whole_BT.tolist() == [[True, True, False, False], [True] * 4, [True] * 4]


def test_labels_of_tokens_and_of_samples() -> None:
    tokens_BT = [torch.tensor([[1, 2]], dtype=torch.int32), torch.tensor([[3, 4, 5]], dtype=torch.int32)]
    assert concat(tokens_BT, fill=MASKED).tolist() == [[1, 2, MASKED], [3, 4, 5]]
    assert concat(tokens_BT, fill=MASKED).dtype is torch.int32
    assert concat([torch.tensor([1, 2]), torch.tensor([0])], fill=MASKED).tolist() == [1, 2, 0]


def test_one_part_is_itself() -> None:
    h_BTD = torch.randn(2, 3, 4, dtype=torch.bfloat16)
    assert torch.equal(concat([h_BTD]), h_BTD)
    assert concat([h_BTD]).dtype is torch.bfloat16
