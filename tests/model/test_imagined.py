"""Imagined tensors beside torch's own way of imagining them, and beside real ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.flop_counter import FlopCounterMode

from bases import settings_for
from cutlayer.model import imagined
from cutlayer.model.adapter import LoraSettings
from cutlayer.model.counting import Counter, Held
from cutlayer.model.imagined import BY_SHAPE, FUSED_ATTENTION, Imagined
from cutlayer.testing.tiny import BLOCKS
from turns import CASES

ModelMaker = Callable[[str, str], Path]
OFTEN = (("gpt2", "causal-lm"), ("bert", "classification"), ("llama", "causal-lm"))


def every_family() -> list[object]:
    cases = CASES
    return [pytest.param(*case, marks=() if case in OFTEN else pytest.mark.slow) for case in cases]


@pytest.mark.parametrize(("family", "task"), every_family())
def test_the_short_way_is_torchs_own(family: str, task: str, tiny_model: ModelMaker) -> None:
    """FLOPs, bytes kept and the largest tensor, of a step with a backward pass, to the last of them."""
    settings = settings_for(tiny_model(family, task), task, lora=LoraSettings(targets=("all-linear",)))
    parts = [Held("device", 1, (8,) * BLOCKS), Held("server", 2, (0, 0, 8))]
    short = [Counter(settings).once(held, 16) for held in parts]
    with mock.patch.object(imagined, "BY_SHAPE", frozenset()):
        assert [Counter(settings).once(held, 16) for held in parts] == short


def values(shape: tuple[int, ...], *, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def layer(x_BTD: Tensor, w_DD: Tensor, bias_D: Tensor) -> Tensor:
    heads = torch.nn.functional.linear(x_BTD, w_DD, bias_D).unflatten(-1, (2, -1)).transpose(1, 2)
    mixed = torch.nn.functional.scaled_dot_product_attention(heads, heads, heads, is_causal=True)
    return torch.nn.functional.silu(torch.cat([mixed, -mixed], -1)).pow(2).mean(-1, keepdim=True)


def test_what_is_imagined_has_the_form_and_the_flops_of_what_is_real() -> None:
    shapes = ((2, 5, 8), (8, 8), (8,))
    real = [values(shape) for shape in shapes]
    with FlopCounterMode(display=False, custom_mapping=FUSED_ATTENTION) as counted:
        expected = layer(*real)
        expected.backward(torch.ones_like(expected))
    with Imagined() as mode:
        inputs = [torch.empty(shape, requires_grad=True) for shape in shapes]
        out = layer(*inputs)
        assert isinstance(out, FakeTensor)
        assert (out.shape, out.stride(), out.dtype, out.device) == (
            expected.shape,
            expected.stride(),
            expected.dtype,
            expected.device,
        )
        out.backward(torch.empty_like(out))
    assert mode.flops == counted.get_total_flops() > 0
    for one, other in zip(inputs, real, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert one.grad.shape == other.grad.shape


def test_a_view_shares_its_storage() -> None:
    with Imagined():
        whole = torch.empty(4, 6)
        views = [whole.view(24), whole.t(), whole[1:], whole.detach(), whole.unsqueeze(0).expand(3, 4, 6)]
        assert {view.untyped_storage()._cdata for view in views} == {whole.untyped_storage()._cdata}
        assert (whole * 2).untyped_storage()._cdata != whole.untyped_storage()._cdata


def test_known_values_are_computed_with() -> None:
    """A number that a model writes into a tensor, and asks for again."""
    with Imagined():
        two = torch.tensor(2.0)
        assert (two * 3 + 1).item() == 7.0
        assert two.view(1).neg().detach().item() == -2.0


def test_nothing_is_counted_twice() -> None:
    """An operator that torch makes of others counts by its own formula, and outside no operator does."""
    mode = Imagined()
    x_NC, w_CC = torch.empty(1, 3, 8, 8), torch.empty(3, 3, 2, 2)
    torch.nn.functional.conv2d(x_NC, w_CC)
    assert mode.flops == 0
    with mode:
        torch.nn.functional.conv2d(torch.empty(1, 3, 8, 8), torch.empty(3, 3, 2, 2))
    with FlopCounterMode(display=False) as counted:
        torch.nn.functional.conv2d(x_NC, w_CC)
    assert mode.flops == counted.get_total_flops()


def test_only_operators_without_a_side_effect_go_the_short_way() -> None:
    assert not [str(func) for func in BY_SHAPE if func._schema.is_mutable]
    assert not [str(func) for func in BY_SHAPE if len(func._schema.returns) != 1]
