"""Several adapters in one pass are those adapters one after the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bases import moved_adapter, open_base
from cutlayer.errors import ModelError
from cutlayer.model.adapter import Slot
from cutlayer.model.base import Base
from cutlayer.model.families import FAMILIES
from cutlayer.model.part import Part, WholePart, model_inputs, repeated
from cutlayer.model.replicas import replicated
from cutlayer.testing.tiny import random_batch
from cutlayer.types import Adapter

ModelMaker = Callable[[str, str], Path]
ONE_AT_A_TIME = {"modernbert": "got one of LayerNorm", "deberta-v2": "got one that sees a table that all share"}
"""Families of which several adapters cannot run at once, and what is said."""
KINDS = [(row.name, task) for row in FAMILIES.values() if row.name not in ONE_AT_A_TIME for task in row.tasks]
COUNT = 3


def adapters(base: Base) -> list[Adapter]:
    return [moved_adapter(base, seed=seed) for seed in range(COUNT)]


def stacked(several: list[Adapter], names: list[str]) -> Adapter:
    return {name: torch.stack([adapter[name] for adapter in several]) for name in names}


def one_by_one(part: WholePart, several: list[Adapter], task: str) -> Tensor:
    losses = []
    for adapter in several:
        part.use(adapter)
        losses.append(part.loss(random_batch(task)))
    return torch.stack(losses)


@pytest.mark.parametrize(("family", "task"), KINDS)
def test_replicas_in_one_pass_are_adapters_one_after_the_other(family: str, task: str, tiny_model: ModelMaker) -> None:
    """To the last bits of fp32: a matrix product of more rows may be added up in another order."""
    base = open_base(tiny_model(family, task), task)
    part, several = base.whole(), adapters(base)
    with replicated(part, several[0], stacked(several, part.names)):
        together = part.losses(random_batch(task), COUNT)
    torch.testing.assert_close(together, one_by_one(part, several, task), atol=5e-7, rtol=2e-7)
    assert len(together.unique()) == COUNT


@pytest.mark.parametrize(("family", "says"), ONE_AT_A_TIME.items())
def test_what_cannot_be_told_apart_is_refused(family: str, says: str, tiny_model: ModelMaker) -> None:
    base = open_base(tiny_model(family, "classification"), "classification")
    part, several = base.whole(), adapters(base)
    with pytest.raises(ModelError, match=says), replicated(part, several[0], stacked(several, part.names)):
        part.losses(random_batch("classification"), COUNT)
    one = {name: value[:1] for name, value in stacked(several, part.names).items()}
    with replicated(part, several[0], one):
        assert part.losses(random_batch("classification"), 1).shape == (1,)


@pytest.mark.parametrize(("family", "task"), [("llama", "causal-lm"), ("gpt2", "classification")])
def test_tensors_without_replicas_are_the_same_for_all(family: str, task: str, tiny_model: ModelMaker) -> None:
    base = open_base(tiny_model(family, task), task)
    part, several = base.whole(), adapters(base)
    trained = [name for name in part.names if ".lora_B." in name]
    mixed = [{**several[0], **{name: adapter[name] for name in trained}} for adapter in several]
    with replicated(part, several[0], stacked(several, trained)):
        together = part.losses(random_batch(task), COUNT)
    torch.testing.assert_close(together, one_by_one(part, mixed, task), atol=5e-7, rtol=2e-7)


def test_a_bias_alone_can_have_replicas(tiny_model: ModelMaker) -> None:
    base = open_base(tiny_model("bert", "classification"), "classification")
    part, several = base.whole(), adapters(base)
    biases = [name for name in part.names if name.endswith("classifier.bias")]
    assert len(biases) == 1
    mixed = [{**several[0], biases[0]: adapter[biases[0]]} for adapter in several]
    with replicated(part, several[0], stacked(several, biases)):
        together = part.losses(random_batch("classification"), COUNT)
    torch.testing.assert_close(together, one_by_one(part, mixed, "classification"), atol=5e-7, rtol=2e-7)


@pytest.mark.parametrize(("family", "task"), [("llama", "causal-lm"), ("bert", "classification")])
def test_one_replica_is_the_adapter_bit_for_bit(family: str, task: str, tiny_model: ModelMaker) -> None:
    base = open_base(tiny_model(family, task), task)
    part, several = base.whole(), adapters(base)[:1]
    with replicated(part, adapters(base)[2], stacked(several, part.names)):
        loss = part.losses(random_batch(task), 1)
    assert torch.equal(loss, one_by_one(part, several, task))


@pytest.mark.parametrize(("family", "task"), [("llama", "causal-lm"), ("bert", "classification")])
def test_a_split_has_the_losses_of_the_whole(family: str, task: str, tiny_model: ModelMaker) -> None:
    """Replicas on the device; the server sees that many batches and has one adapter."""
    base, batch = open_base(tiny_model(family, task), task), random_batch(task)
    device, server, whole, several = base.device_part(2), base.server_part(2), base.whole(), adapters(base)
    with replicated(device, several[0], stacked(several, device.names)):
        h_BTD = device.forward(repeated(model_inputs(batch), COUNT))
    server.use(several[0])
    with torch.no_grad():
        split = server.losses(h_BTD, batch.attention_mask_BT.bool(), batch.labels, COUNT)
    with replicated(whole, several[0], stacked(several, device.names)):
        assert torch.equal(split, whole.losses(batch, COUNT))
    unpadded = torch.ones_like(batch.attention_mask_BT).bool()
    with torch.no_grad():
        without, ones = (server.losses(h_BTD, mask_BT, batch.labels, COUNT) for mask_BT in (None, unpadded))
    assert torch.equal(without, ones)


def test_afterwards_the_part_is_as_it_was(tiny_model: ModelMaker) -> None:
    base = open_base(tiny_model("bert", "classification"), "classification")
    part, several, batch = base.whole(), adapters(base), random_batch("classification")
    part.use({name: nn.Parameter(value) for name, value in several[1].items()})
    before = part.loss(batch)
    for count in (1, COUNT):
        with replicated(part, several[1], stacked(several[:count], part.names)):
            assert not part.losses(batch, count).requires_grad
            assert not part.model.training
        too_few = replace(batch, labels=batch.labels[1:])
        with (
            pytest.raises(ValueError, match="batch_size"),
            replicated(part, several[1], stacked(several[:count], part.names)),
        ):
            part.losses(too_few, count)
        assert torch.equal(part.loss(batch), before)
        assert part.model.training
        assert not any("forward" in vars(module) for module in part.model.modules())


def test_replicas_run_without_dropout(tiny_model: ModelMaker) -> None:
    base = open_base(tiny_model("bert", "classification"), "classification", base_dropout=True)
    part, several, batch = base.whole(), adapters(base), random_batch("classification")
    with replicated(part, several[0], stacked(several, part.names)):
        assert torch.equal(part.losses(batch, COUNT), part.losses(batch, COUNT))


def test_replicas_of_what_is_no_linear_layer_are_refused() -> None:
    norm = nn.LayerNorm(4)
    part = Part(norm, [Slot("a.weight", norm, "weight")])
    with (
        pytest.raises(ModelError, match=r"a\.weight: expected a tensor of a linear layer"),
        replicated(part, {"a.weight": torch.ones(4)}, {"a.weight": torch.ones(2, 4)}),
    ):
        pass
    assert norm.training
