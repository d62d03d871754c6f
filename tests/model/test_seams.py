"""Seams: a pass followed back block by block has the gradients of one backward pass, to the bit; it may stop at any."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bases import moved_adapter, open_base
from cutlayer.model.base import Base
from cutlayer.model.families import FAMILIES
from cutlayer.model.part import model_inputs
from cutlayer.model.seams import Seams
from cutlayer.testing.tiny import BLOCKS, random_batch

ModelMaker = Callable[[str, str], Path]
Gradients = dict[str, Tensor | None]


def parameters_for(base: Base, blocks: frozenset[int] | None = None) -> dict[str, nn.Parameter]:
    names = base.device_names(BLOCKS, blocks, top=BLOCKS)
    adapter = moved_adapter(base)
    return {name: nn.Parameter(adapter[name].clone()) for name in names}


def of(parameters: dict[str, nn.Parameter]) -> Gradients:
    return {name: parameter.grad for name, parameter in parameters.items()}


def at_once(base: Base, blocks: frozenset[int] | None = None) -> Gradients:
    part, parameters = base.whole(blocks), parameters_for(base, blocks)
    part.use(parameters)
    part.loss(random_batch(base.settings.task)).backward()
    return of(parameters)


def block_by_block(base: Base, down_to: int, blocks: frozenset[int] | None = None) -> Gradients:
    part, parameters, seams = base.whole(blocks), parameters_for(base, blocks), Seams(base.family.blocks)
    part.use(parameters)
    with seams.sewn(part, range(BLOCKS)):
        loss = part.loss(random_batch(base.settings.task))
    loss.backward()
    for block in range(BLOCKS - 1, down_to - 1, -1):
        seams.back(block)
    seams.forget()
    return of(parameters)


def assert_same(one: Gradients, other: Gradients) -> None:
    assert one.keys() == other.keys()
    for name, value in other.items():
        assert value is not None
        assert torch.equal(one[name], value), name  # type: ignore[arg-type]


@pytest.mark.parametrize(("family", "task"), [(row.name, row.tasks[-1]) for row in FAMILIES.values()])
def test_followed_to_its_end_it_is_one_backward_pass(family: str, task: str, tiny_model: ModelMaker) -> None:
    base = open_base(tiny_model(family, task), task)
    assert_same(block_by_block(base, 0), at_once(base))
    model = base.whole().model
    assert not [module for module in model.modules() if type(module).__name__ == "_Sewn"], "the blocks are back"


@pytest.fixture(scope="module")
def bert(tiny_model: ModelMaker) -> Base:
    return open_base(tiny_model("bert", "classification"), "classification")


@pytest.mark.parametrize("down_to", range(BLOCKS + 1))
def test_who_stops_has_the_gradients_down_to_there(down_to: int, bert: Base) -> None:
    found, whole = block_by_block(bert, down_to), at_once(bert)
    for name, value in found.items():
        block = bert.block_of(name)
        if block is None or block >= down_to:
            assert torch.equal(value, whole[name])  # type: ignore[arg-type]
        else:
            assert value is None


def test_below_the_lowest_adapter_there_is_no_seam(bert: Base) -> None:
    blocks = frozenset({1, 2})
    part, seams = bert.whole(blocks), Seams(bert.family.blocks)
    part.use(parameters_for(bert, blocks))
    with seams.sewn(part, range(BLOCKS)):
        part.loss(random_batch("classification"))
    with pytest.raises(KeyError):
        seams.back(0)
    assert_same(block_by_block(bert, 1, blocks), at_once(bert, blocks))


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_with_activations_that_are_recomputed(family: str, tiny_model: ModelMaker) -> None:
    task = "classification" if family == "bert" else "causal-lm"
    base = open_base(tiny_model(family, task), task, checkpoint_server=True)
    assert_same(block_by_block(base, 0), at_once(open_base(tiny_model(family, task), task)))


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_the_part_below_a_cut_begins_with_the_gradient_that_comes_down(family: str, tiny_model: ModelMaker) -> None:
    base = open_base(tiny_model(family, "classification"), "classification")
    part, cut, batch = base.device_part(2), 2, random_batch("classification")
    grads: list[Gradients] = []
    for sewn in (False, True):
        adapter = moved_adapter(base)
        parameters = {name: nn.Parameter(adapter[name].clone()) for name in base.device_names(cut)}
        part.use(parameters)
        seams = Seams(base.family.blocks)
        with seams.sewn(part, range(cut if sewn else 0)):
            h_BTD = part.forward(model_inputs(batch))
        h_BTD.backward(torch.randn(h_BTD.shape, generator=torch.Generator().manual_seed(3)))
        for block in (1, 0) if sewn else ():
            seams.back(block)
        grads.append(of(parameters))
    assert_same(*grads)


def test_the_blocks_are_back_after_an_error(bert: Base) -> None:
    part, seams = bert.whole(), Seams(bert.family.blocks)
    before = [id(module) for module in part.model.modules()]
    with pytest.raises(RuntimeError, match="no"), seams.sewn(part, range(BLOCKS)):
        raise RuntimeError("no")
    assert [id(module) for module in part.model.modules()] == before
