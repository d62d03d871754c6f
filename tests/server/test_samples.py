"""A batch as its samples: nothing is lost, every one keeps what it counts, and mixing them changes no mean."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bases import moved_adapter, open_base
from cutlayer.model.loss import MASKED
from cutlayer.server.concat import concat
from cutlayer.server.samples import one_by_one, weight_of
from cutlayer.testing.tiny import random_batch
from cutlayer.wire.messages import Activations
from ends import activations_for

ModelMaker = Callable[[str, str], Path]
TASKS = {"bert": "classification", "llama": "causal-lm", "gpt2": "causal-lm"}


@pytest.mark.parametrize("task", ["classification", "causal-lm"])
def test_taken_apart_and_joined_is_as_it_was(task: str) -> None:
    made = random_batch(task, seed=1)
    rows_B, h_BTD = torch.arange(10, 14, dtype=torch.int32), torch.randn(4, 12, 8)
    mask_BT, labels = made.attention_mask_BT.bool(), made.labels.int()
    batch = Activations("run", 0, 5, "device-0", h_BTD, mask_BT, labels, made.weight, rows_B)
    samples = one_by_one(batch)
    assert torch.equal(concat([sample.h_BTD for sample in samples]), h_BTD)
    assert torch.equal(concat([sample.mask_BT for sample in samples]), mask_BT)
    assert torch.equal(concat([sample.labels for sample in samples], MASKED), labels)
    assert sum(sample.weight for sample in samples) == batch.weight
    assert [int(sample.rows_B[0]) for sample in samples] == [10, 11, 12, 13]  # type: ignore[index]
    assert {(sample.device, sample.step) for sample in samples} == {("device-0", 5)}


@pytest.mark.parametrize("family", TASKS)
def test_mixed_samples_have_the_mean_of_their_batches(family: str, tiny_model: ModelMaker) -> None:
    """Loss and gradients of two batches in one are the means of theirs by weight, whatever was padded."""
    base = open_base(tiny_model(family, TASKS[family]), TASKS[family])
    batches = [
        activations_for(base, random_batch(TASKS[family], seed=seed, samples=3, tokens=tokens), 1)
        for seed, tokens in ((1, 8), (2, 12))
    ]
    part, adapter = base.server_part(1), moved_adapter(base)

    def loss_and_gradients(samples: list[Activations]) -> list[torch.Tensor]:
        parameters = {name: torch.nn.Parameter(adapter[name].clone()) for name in part.names}
        part.use(parameters)
        h_BTD, mask_BT = (concat([getattr(s, name) for s in samples]) for name in ("h_BTD", "mask_BT"))
        loss = part.loss(h_BTD, mask_BT, concat([s.labels for s in samples], MASKED).long())
        loss.backward()
        return [loss.detach(), *(p.grad for p in parameters.values() if p.grad is not None)]

    first, second = (loss_and_gradients(one_by_one(batch)) for batch in batches)
    together = loss_and_gradients([sample for batch in reversed(batches) for sample in one_by_one(batch)])
    share = batches[0].weight / sum(batch.weight for batch in batches)
    for whole, one, other in zip(together, first, second, strict=True):
        torch.testing.assert_close(whole, one * share + other * (1 - share), rtol=1e-4, atol=1e-6)


def test_the_first_token_is_not_predicted() -> None:
    assert weight_of(torch.tensor(2)) == 1
    assert weight_of(torch.tensor([5, MASKED, 7, 8])) == 2
    assert weight_of(torch.tensor([5, MASKED])) == 0
