"""The importance of matrices: exact scores beside autograd on unfrozen weights, the proxy beside its formula."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bases import moved_adapter, open_base
from cutlayer.model import matrix_importance
from cutlayer.model.adapter import PREFIX, LoraSettings
from cutlayer.model.base import Base
from cutlayer.model.low_rank import factor_names
from cutlayer.model.matrix_importance import Exactly, by_proxy, flops_of
from cutlayer.model.part import model_inputs
from cutlayer.testing.tiny import random_batch

ModelMaker = Callable[[str, str], Path]
CASES = [("bert", "classification"), ("gpt2", "causal-lm"), ("llama", "causal-lm")]
CUT = 2


def opened(tiny_model: ModelMaker, family: str, task: str) -> tuple[Base, dict[str, nn.Parameter]]:
    base = open_base(tiny_model(family, task), task, lora=LoraSettings(targets=("all-linear",)))
    return base, {name: nn.Parameter(value) for name, value in moved_adapter(base).items()}


def backward(base: Base, adapter: dict[str, nn.Parameter]) -> dict[str, float]:
    """A step of a device and the server, both weighed exactly."""
    batch = random_batch(base.settings.task)
    device, server = base.device_part(CUT), base.server_part(CUT)
    watches = [Exactly(base, device), Exactly(base, server)]
    device.use(adapter)
    server.use(adapter)
    with watches[0].watching():
        h_BTD = device.forward(model_inputs(batch))
    with watches[1].watching():
        loss = server.loss(h_BTD, batch.attention_mask_BT.bool(), batch.labels)
    device.forward(model_inputs(batch))  # of somebody else, who does not weigh
    loss.backward()
    return watches[0].scores | watches[1].scores


@pytest.mark.parametrize("chunk", [2**21, 40])
@pytest.mark.parametrize(("family", "task"), CASES)
def test_exact_scores_are_those_of_weights_that_are_not_frozen(
    family: str, task: str, chunk: int, tiny_model: ModelMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matrix_importance, "CHUNK_NUMBERS", chunk)
    base, adapter = opened(tiny_model, family, task)
    scores = backward(base, adapter)
    assert list(scores) != []
    assert set(scores) == set(base.modules)
    whole, batch = base.whole(), random_batch(task)
    whole.use(adapter)
    weights = {
        a: whole.model.get_parameter(a.removeprefix(PREFIX).replace(".lora_A.", ".base_layer."))
        for _, a in factor_names(base.shapes)
    }
    for weight in weights.values():
        weight.requires_grad_(True)
    whole.loss(batch).backward()
    for b, a in factor_names(base.shapes):
        weight = weights[a]
        assert weight.grad is not None
        expected = float((weight * weight.grad).detach().abs().sum()) / (16 * (base.shapes[b][0] + base.shapes[a][1]))
        assert scores[a] == pytest.approx(expected, rel=1e-4)
        assert expected > 0


def test_a_pass_that_is_not_watched_is_not_weighed(tiny_model: ModelMaker) -> None:
    base, adapter = opened(tiny_model, "bert", "classification")
    first = backward(base, adapter)
    assert backward(base, adapter) == first, "the hooks of the first are gone"
    assert not any(module._forward_hooks for module in base.device_part(CUT).model.modules())


def test_the_proxy_is_its_formula(tiny_model: ModelMaker) -> None:
    base, adapter = opened(tiny_model, "llama", "causal-lm")
    backward(base, adapter)
    scores = by_proxy(adapter)
    assert set(scores) == set(base.modules)
    for b, a in factor_names(adapter):
        B, A = adapter[b], adapter[a]
        assert B.grad is not None
        assert A.grad is not None
        total = float(((B * B.grad).abs().sum() + (A * A.grad).abs().sum()).detach())
        assert scores[a] == pytest.approx(total / (16 * 8 * (B.shape[0] + A.shape[1])))
        assert scores[a] > 0


def test_the_proxy_says_nothing_while_half_of_an_adapter_is_zero(tiny_model: ModelMaker) -> None:
    base, _ = opened(tiny_model, "bert", "classification")
    fresh = {name: nn.Parameter(value) for name, value in base.initial_adapter(0).items()}
    assert set(by_proxy(fresh).values()) == {0.0}, "before any gradient"
    assert all(score > 0 for score in backward(base, fresh).values())
    assert set(by_proxy(fresh).values()) == {0.0}


def test_what_an_exact_probe_takes(tiny_model: ModelMaker) -> None:
    """FLOPs of one part, counted: those of its backward pass beyond the pass of a step that is not weighed."""
    base, adapter = opened(tiny_model, "llama", "causal-lm")
    part, batch = base.device_part(CUT), random_batch("causal-lm")
    part.use(adapter)

    def flops(*, weighed: bool) -> float:
        watch = Exactly(base, part)
        if weighed:
            with watch.watching():
                h_BTD = part.forward(model_inputs(batch))
        else:
            h_BTD = part.forward(model_inputs(batch))
        with FlopCounterMode(display=False) as counter:
            h_BTD.backward(torch.ones_like(h_BTD))
        return float(counter.get_total_flops())

    assert flops(weighed=True) - flops(weighed=False) == flops_of(base, part.names, *batch.input_ids_BT.shape)
