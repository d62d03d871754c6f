"""Parts as they run: which adapter they use, what they take and give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from bases import moved_adapter, open_base
from cutlayer.errors import ModelError
from cutlayer.model.base import Base
from cutlayer.model.part import model_inputs
from cutlayer.testing.tiny import BLOCKS, VOCABULARY, random_batch
from turns import CASES, by_turns

ModelMaker = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def bert(tiny_model: ModelMaker) -> Base:
    return open_base(tiny_model("bert", "classification"), "classification")


def test_a_part_uses_the_adapter_that_was_put_in_last(bert: Base) -> None:
    part, inputs = bert.device_part(2), model_inputs(random_batch("classification"))

    def forward(seed: int) -> torch.Tensor:
        part.use(moved_adapter(bert, seed=seed))
        return part.forward(inputs)

    one, other = forward(1), forward(2)
    assert not torch.equal(one, other)
    assert torch.equal(forward(1), one)


def test_values_that_are_no_parameters_get_no_gradient(bert: Base) -> None:
    """An adapter for evaluation: tensors, not Parameters."""
    part, inputs = bert.device_part(2), model_inputs(random_batch("classification"))
    part.use(moved_adapter(bert))
    assert not part.forward(inputs).requires_grad
    part.use({name: nn.Parameter(value) for name, value in moved_adapter(bert).items()})
    assert part.forward(inputs).requires_grad


def test_a_device_without_blocks_has_no_graph(bert: Base) -> None:
    part = bert.device_part(0)
    part.use({})
    assert part.names == []
    assert not part.forward(model_inputs(random_batch("classification"))).requires_grad


def test_inputs_are_what_the_batch_has() -> None:
    batch = random_batch("classification")
    assert model_inputs(batch).keys() == {"input_ids", "attention_mask"}
    types_BT = torch.ones_like(batch.input_ids_BT)
    inputs = model_inputs(replace(batch, token_type_ids_BT=types_BT))
    assert torch.equal(inputs["token_type_ids"], types_BT)
    assert torch.equal(inputs["input_ids"], batch.input_ids_BT)
    assert torch.equal(inputs["attention_mask"], batch.attention_mask_BT)


def test_token_types_reach_the_embeddings(bert: Base) -> None:
    part, batch = bert.device_part(1), random_batch("classification")
    part.use(moved_adapter(bert))
    without = part.forward(model_inputs(batch))
    zeros_BT = torch.zeros_like(batch.input_ids_BT)
    assert torch.equal(without, part.forward(model_inputs(replace(batch, token_type_ids_BT=zeros_BT))))
    assert not torch.equal(without, part.forward(model_inputs(replace(batch, token_type_ids_BT=zeros_BT + 1))))


def test_no_mask_is_a_mask_of_ones(bert: Base) -> None:
    part = bert.server_part(1)
    part.use(moved_adapter(bert))
    generator = torch.Generator().manual_seed(0)
    h_BTD, labels = torch.randn(2, 5, 16, generator=generator), torch.tensor([0, 2])
    assert torch.equal(part.loss(h_BTD, None, labels), part.loss(h_BTD, torch.ones(2, 5, dtype=torch.bool), labels))
    mask_BT = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    assert not torch.equal(part.loss(h_BTD, None, labels), part.loss(h_BTD, mask_BT, labels))


@pytest.mark.parametrize("pad_id", [0, 7, VOCABULARY - 1])
def test_any_pad_id_finds_the_last_token(pad_id: int, tiny_model: ModelMaker) -> None:
    """A decoder classifies by its last token; the server sees no ids, only where the padding is."""
    base = open_base(tiny_model("llama", "classification"), "classification", pad_id=pad_id)
    batch = random_batch("classification")
    ids_BT = batch.input_ids_BT.masked_fill(batch.input_ids_BT == pad_id, 1).masked_fill(
        batch.attention_mask_BT == 0, pad_id
    )
    batch = replace(batch, input_ids_BT=ids_BT)
    adapter = moved_adapter(base)
    device, server, whole = base.device_part(1), base.server_part(1), base.whole()
    for part in (device, server, whole):
        part.use(adapter)
    loss = server.loss(device.forward(model_inputs(batch)), batch.attention_mask_BT.bool(), batch.labels)
    assert torch.equal(loss, whole.loss(batch))


def test_the_whole_gives_loss_and_logits(bert: Base, tiny_model: ModelMaker) -> None:
    batch = random_batch("classification")
    bert.whole().use(moved_adapter(bert))
    loss, logits = bert.whole().loss_and_logits(batch)
    assert logits.shape == (4, 3)
    torch.testing.assert_close(loss, nn.functional.cross_entropy(logits, batch.labels))
    llama = open_base(tiny_model("llama", "causal-lm"), "causal-lm")
    batch = random_batch("causal-lm")
    llama.whole().use(moved_adapter(llama))
    loss, logits = llama.whole().loss_and_logits(batch)
    assert logits.shape == (4, 12, VOCABULARY)
    torch.testing.assert_close(
        loss, nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten())
    )


@pytest.mark.parametrize(("family", "task"), list(by_turns(CASES, one_of=2)))
def test_the_middle_is_what_lies_between_two_cuts(family: str, task: str, tiny_model: ModelMaker) -> None:
    """A device's blocks and those after them are a deeper device's, bit for bit, wherever the two cuts are."""
    base, batch = open_base(tiny_model(family, task), task), random_batch(task)
    adapter = moved_adapter(base)

    def at(cut: int) -> torch.Tensor:
        part = base.device_part(cut)
        part.use(adapter)
        return part.forward(model_inputs(batch))

    for first in range(BLOCKS + 1):
        for end in range(first, BLOCKS + 1):
            middle = base.middle_part(first, end)
            middle.use(adapter)
            assert base.blocks_in(middle.names) == set(range(first, end))
            assert torch.equal(middle.forward(at(first), batch.attention_mask_BT.bool()), at(end))


def test_a_middle_without_adapters_is_frozen(bert: Base) -> None:
    part = bert.middle_part(1, 2, frozenset())
    assert part.names == []
    assert bert.middle_part(1, 2, frozenset({0})) is part, "parts that hold the same are one object"
    assert not part.forward(torch.ones(1, 3, 16), None).requires_grad


@pytest.mark.parametrize(("first", "end"), [(2, 1), (-1, 2), (0, BLOCKS + 1)])
def test_a_middle_lies_within_the_model(first: int, end: int, bert: Base) -> None:
    with pytest.raises(ModelError):
        bert.middle_part(first, end)
