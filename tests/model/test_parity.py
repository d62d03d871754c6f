"""Law 1, its core: split at any cut = the whole model = plain transformers and PEFT, bit for bit on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cutlayer.model.base import Base
from cutlayer.model.families import FAMILIES
from cutlayer.model.part import model_inputs
from cutlayer.model.settings import ModelSettings
from cutlayer.testing.reference import plain_peft_model
from cutlayer.testing.tiny import BLOCKS, LABELS, random_batch
from cutlayer.types import Adapter, Batch
from turns import CASES


def settings_for(folder: Path, task: str, **changes: object) -> ModelSettings:
    labels = LABELS if task == "classification" else 0
    return ModelSettings(str(folder), task, num_labels=labels, **changes)  # type: ignore[arg-type]


def trained_adapter(base: Base) -> dict[str, nn.Parameter]:
    """An adapter as it is after some training: B is not zero."""
    generator = torch.Generator().manual_seed(1)
    return {
        name: nn.Parameter(value + 0.05 * torch.randn(value.shape, generator=generator))
        for name, value in base.initial_adapter(seed=0).items()
    }


def split_step(base: Base, adapter: dict[str, nn.Parameter], batch: Batch, cut: int) -> tuple[Tensor, Adapter]:
    device, server = base.device_part(cut), base.server_part(cut)
    device.use(adapter)
    server.use(adapter)
    h_BTD = device.forward(model_inputs(batch))
    fed_BTD = h_BTD.detach().requires_grad_(h_BTD.requires_grad)
    loss = server.loss(fed_BTD, batch.attention_mask_BT.bool(), batch.labels)
    loss.backward()
    if h_BTD.requires_grad:
        h_BTD.backward(fed_BTD.grad)
    return loss.detach(), take_gradients(adapter)


def take_gradients(adapter: dict[str, nn.Parameter]) -> Adapter:
    gradients = {}
    for name, parameter in adapter.items():
        assert parameter.grad is not None, f"{name} got no gradient"
        gradients[name] = parameter.grad
        parameter.grad = None
    return gradients


def plain_step(base: Base, adapter: Adapter, batch: Batch) -> tuple[Tensor, Adapter]:
    """The same step by transformers' from_pretrained and PEFT's get_peft_model, with none of our code."""
    model, inside = plain_peft_model(base)
    with torch.no_grad():
        for name, value in adapter.items():
            inside[name].copy_(value)
    loss = model(**model_inputs(batch), labels=batch.labels).loss
    loss.backward()
    return loss.detach(), {name: parameter.grad for name, parameter in inside.items()}


def assert_equal(one: Adapter, other: Adapter) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


@pytest.mark.parametrize(("family", "task"), CASES)
def test_split_at_every_cut_is_plain_peft(family: str, task: str, tiny_model: Callable[[str, str], Path]) -> None:
    base = Base(settings_for(tiny_model(family, task), task))
    adapter = trained_adapter(base)
    batch = random_batch(task)
    plain_loss, plain_gradients = plain_step(base, adapter, batch)
    assert base.num_blocks == BLOCKS
    assert any(bool(gradient.abs().max() > 1e-4) for gradient in plain_gradients.values())
    for cut in range(BLOCKS + 1):
        loss, gradients = split_step(base, adapter, batch, cut)
        assert torch.equal(loss, plain_loss), f"cut {cut}"
        assert_equal(gradients, plain_gradients)


@pytest.mark.parametrize(("family", "task"), CASES)
def test_each_side_holds_its_own_names(family: str, task: str, tiny_model: Callable[[str, str], Path]) -> None:
    base = Base(settings_for(tiny_model(family, task), task))
    for cut in range(BLOCKS + 1):
        assert set(base.device_part(cut).names) == set(base.device_names(cut))
        assert set(base.server_part(cut).names) == set(base.server_names(cut))
        assert set(base.device_names(cut)) | set(base.server_names(cut)) == set(base.shapes)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_every_pooling_splits(family: str, pooling: str, tiny_model: Callable[[str, str], Path]) -> None:
    if pooling not in FAMILIES[family].poolings:
        pytest.skip(f"{family} has no {pooling} pooling")
    base = Base(settings_for(tiny_model(family, "classification"), "classification", pooling=pooling))
    adapter, batch = trained_adapter(base), random_batch("classification")
    base.whole().use(adapter)
    loss = base.whole().loss(batch)
    loss.backward()
    whole_gradients = take_gradients(adapter)
    for cut in range(BLOCKS + 1):
        split_loss, gradients = split_step(base, adapter, batch, cut)
        assert torch.equal(split_loss, loss)
        assert_equal(gradients, whole_gradients)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize(("family", "task"), [("llama", "causal-lm"), ("bert", "classification")])
def test_half_precision_splits(family: str, task: str, dtype: str, tiny_model: Callable[[str, str], Path]) -> None:
    base = Base(settings_for(tiny_model(family, task), task, dtype=dtype))
    adapter, batch = trained_adapter(base), random_batch(task)
    base.whole().use(adapter)
    loss = base.whole().loss(batch)
    loss.backward()
    whole_gradients = take_gradients(adapter)
    for cut in range(BLOCKS + 1):
        split_loss, gradients = split_step(base, adapter, batch, cut)
        assert torch.equal(split_loss, loss)
        assert_equal(gradients, whole_gradients)
        assert base.device_part(cut).forward(model_inputs(batch)).dtype == base.dtype


@pytest.mark.parametrize(
    ("family", "task"), [("gpt2", "causal-lm"), ("llama", "causal-lm"), ("bert", "classification")]
)
def test_gradient_checkpointing_changes_nothing(family: str, task: str, tiny_model: Callable[[str, str], Path]) -> None:
    folder = tiny_model(family, task)
    plain = Base(settings_for(folder, task))
    thrifty = Base(settings_for(folder, task, checkpoint_device=True, checkpoint_server=True))
    batch = random_batch(task)
    adapter = trained_adapter(plain)
    loss, gradients = split_step(plain, adapter, batch, cut=2)
    thrifty_loss, thrifty_gradients = split_step(thrifty, adapter, batch, cut=2)
    assert torch.equal(loss, thrifty_loss)
    assert_equal(gradients, thrifty_gradients)
    assert _saved_bytes(thrifty, adapter, batch) < _saved_bytes(plain, adapter, batch)


def _saved_bytes(base: Base, adapter: dict[str, nn.Parameter], batch: Batch) -> int:
    saved = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel() * tensor.element_size())
        return tensor

    device = base.device_part(2)
    device.use(adapter)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        device.forward(model_inputs(batch))
    return sum(saved)


def test_gradients_go_to_the_adapter_that_was_used(tiny_model: Callable[[str, str], Path]) -> None:
    """Forward with one adapter, put another in, then backward: the first one's gradients are as if alone."""
    base = Base(settings_for(tiny_model("bert", "classification"), "classification"))
    one, other = (
        trained_adapter(base),
        {n: nn.Parameter(p.detach() * 3) for n, p in trained_adapter(base).items()},
    )
    batch = random_batch("classification")
    part = base.device_part(BLOCKS)

    def forward(adapter: dict[str, nn.Parameter]) -> Tensor:
        part.use(adapter)
        return part.forward(model_inputs(batch))

    alone = torch.autograd.grad(forward(one).sum(), [one[n] for n in part.names])
    first, second = forward(one), forward(other)
    first.sum().backward()
    for gradient, name in zip(alone, part.names, strict=True):
        assert torch.equal(gradient, one[name].grad)
        assert other[name].grad is None
    second.sum().backward()
