"""The yardstick is transformers' own loss and nothing else: it may not drift with what is measured by it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bases import moved_adapter, open_base
from cutlayer.model.base import Base
from cutlayer.model.families import FAMILIES
from cutlayer.model.part import model_inputs
from cutlayer.testing import reference
from cutlayer.testing.tiny import random_batch
from cutlayer.types import Batch

ModelMaker = Callable[[str, str], Path]
OFTEN = (("gpt2", "causal-lm"), ("llama", "causal-lm"), ("gpt2", "classification"), ("bert", "classification"))


def every_family() -> list[Any]:
    cases = [(row.name, task) for row in FAMILIES.values() for task in row.tasks]
    return [pytest.param(*case, marks=() if case in OFTEN else pytest.mark.slow) for case in cases]


def loss_and_gradients(base: Base, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    model, inside = reference.plain_peft_model(base)
    with torch.no_grad():
        for name, value in moved_adapter(base).items():
            inside[name].copy_(value)
    loss = model(**model_inputs(batch), labels=batch.labels).loss
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in inside.items() if parameter.grad is not None}
    assert gradients.keys() == inside.keys()
    return loss.detach(), gradients


@pytest.mark.parametrize(("family", "task"), every_family())
def test_the_yardstick_is_transformers_own_loss_within_rounding(
    family: str, task: str, tiny_model: ModelMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The yardstick of a causal LM has logits at learned positions alone; of a classifier nothing is touched."""
    base, batch = open_base(tiny_model(family, task), task), random_batch(task)
    loss, gradients = loss_and_gradients(base, batch)
    monkeypatch.setattr(reference, "_only_what_is_taught", lambda model: None)
    own_loss, own_gradients = loss_and_gradients(base, batch)
    if task == "causal-lm":
        assert int((batch.labels[:, 1:] == -100).sum()) > 0, "or all positions were learned"
    torch.testing.assert_close(loss, own_loss, rtol=1e-6, atol=0.0)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, own_gradients[name], rtol=1e-4, atol=1e-7, msg=name)
    assert max(float(gradient.abs().max()) for gradient in gradients.values()) > 1e-4
    if task == "classification":
        assert torch.equal(loss, own_loss)


def test_the_yardstick_asks_the_head_for_what_is_learned_alone(tiny_model: ModelMaker) -> None:
    base, batch = open_base(tiny_model("llama", "causal-lm"), "causal-lm"), random_batch("causal-lm")
    model, _ = reference.plain_peft_model(base)
    logits = model(**model_inputs(batch), labels=batch.labels).logits
    assert logits.shape[:2] == (1, batch.weight)
    assert model(**model_inputs(batch)).logits.shape[:2] == batch.input_ids_BT.shape
