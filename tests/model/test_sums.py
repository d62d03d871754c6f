"""Sums of parts are the metrics of the whole."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from cutlayer.model.sums import Sums
from cutlayer.report.metrics import ClassificationMetrics
from cutlayer.run.judging import metrics_of


def batches(seed: int, number: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    sizes = [2 + place % 3 for place in range(number)]
    return [
        (torch.randn(size, 4, generator=generator), torch.randint(0, 4, (size,), generator=generator)) for size in sizes
    ]


def test_two_devices_are_one_that_has_all_rows() -> None:
    whole, expected, each = Sums(4), ClassificationMetrics(4), [Sums(4), Sums(4)]
    for device, sums in enumerate(each):
        for logits, labels in batches(device, 3):
            sums.add(logits, labels, len(labels))
            expected.add(logits, labels, float(cross_entropy(logits, labels)) * len(labels))
        whole.take(sums)
    assert metrics_of(whole) == expected.result()
    assert whole.samples == whole.weight == sum(sums.samples for sums in each) == 18


def test_classes_that_are_not_told_apart() -> None:
    """The same accuracy and loss, and no F1; nobody learns how many samples there are of a class."""
    apart, together = Sums(4), Sums(1)
    for logits, labels in batches(0, 3):
        for sums in (apart, together):
            sums.add(logits, labels, len(labels))
    expected = metrics_of(apart)
    assert together.counts_3C.shape == (3, 1)
    assert metrics_of(together) == {name: expected[name] for name in ("accuracy", "loss")}


class Uniform(torch.nn.Module):
    """A language model that knows nothing, and how many logits it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.asked = torch.nn.Linear(4, 8, bias=False), 0
        torch.nn.init.zeros_(self.head.weight)

    def get_output_embeddings(self) -> torch.nn.Module:
        return self.head

    def forward(self, h_BTD: torch.Tensor) -> torch.Tensor:
        assert not self.training
        logits: torch.Tensor = self.head(h_BTD)
        self.asked += logits.numel()
        return logits


def test_tokens_count_where_they_are_predicted() -> None:
    """And there alone are logits made."""
    sums, model, labels = Sums(0), Uniform(), torch.tensor([[1, 2, -100], [1, -100, 3]])
    sums.judge(model, lambda: model(torch.ones(2, 3, 4)), labels, 2)
    assert metrics_of(sums) == {"loss": pytest.approx(math.log(8)), "perplexity": pytest.approx(8.0), "tokens": 2}
    assert (sums.samples, model.asked, model.training) == (2, 2 * 8, True)
