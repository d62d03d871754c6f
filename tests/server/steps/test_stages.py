"""Stages and the decomposed backward pass: the loss and the gradients of the ordinary one, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from bases import moved_adapter, open_base
from cutlayer.errors import ModelError
from cutlayer.model.base import Base
from cutlayer.server.steps.schedule import schedule
from cutlayer.server.steps.stages import Stages
from cutlayer.testing.tiny import BLOCKS, random_batch
from cutlayer.types import Adapter, Batch
from ends import activations_for
from turns import CASES, by_turns

ModelMaker = Callable[[str, str], Path]


def gradients(base: Base, batch: Batch, stages: Stages | None, cut: int = 0) -> tuple[float, Adapter]:
    """Loss and gradients by these stages, or by the one server part and `Tensor.backward`."""
    arrived = activations_for(base, batch, cut)
    given = (arrived.h_BTD, arrived.mask_BT, arrived.labels.long())
    values = moved_adapter(base)
    adapter = {name: nn.Parameter(values[name]) for name in base.server_names(cut)}
    if stages is None:
        part = base.server_part(cut)
        part.use(adapter)
        tensor = part.loss(*given)
        tensor.backward()
        loss = float(tensor.detach())
    else:
        stages.use(adapter)
        loss = stages.backward(*given)
    assert [name for name, parameter in adapter.items() if parameter.grad is None] == []
    return loss, {name: parameter.grad for name, parameter in adapter.items() if parameter.grad is not None}


def assert_same(one: Adapter, other: Adapter) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.parametrize(("family", "task"), list(by_turns(CASES, one_of=2)))
def test_gradients_are_those_of_ordinary_backward_in_every_family(
    family: str, task: str, tiny_model: ModelMaker
) -> None:
    base, batch = open_base(tiny_model(family, task), task), random_batch(task)
    plain = gradients(base, batch, None)
    for stages in (1, 2, 3):
        for decomposed in (False, True):
            if decomposed and base.family.shared_table is not None:
                with pytest.raises(ModelError, match=r"method\.decomposed: expected false for deberta-v2"):
                    Stages(base, 0, None, stages=stages, decomposed=decomposed)
                continue
            loss, grads = gradients(base, batch, Stages(base, 0, None, stages=stages, decomposed=decomposed))
            assert loss == plain[0]
            assert_same(grads, plain[1])


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("task", ["classification", "causal-lm"])
def test_micro_batches_are_the_batch_but_for_rounding(task: str, checkpoint: bool, tiny_model: ModelMaker) -> None:
    """Shares are by weight: samples, or tokens where micro-batches have unequally many. Recomputing changes nothing."""
    family = "bert" if task == "classification" else "llama"
    base = open_base(tiny_model(family, task), task, checkpoint_server=checkpoint)
    batch = random_batch(task, samples=7)
    plain = gradients(base, batch, None, cut=1)
    for micro_batches in (2, 3, 7, 9):
        for decomposed in (False, True):
            stages = Stages(base, 1, None, stages=2, micro_batches=micro_batches, decomposed=decomposed)
            loss, grads = gradients(base, batch, stages, cut=1)
            assert loss == pytest.approx(plain[0], rel=1e-6)
            for name, grad in grads.items():
                torch.testing.assert_close(grad, plain[1][name], rtol=1e-4, atol=1e-6)


def test_a_micro_batch_without_targets_adds_nothing(tiny_model: ModelMaker) -> None:
    """Its mean loss would be that of no tokens at all."""
    base, batch = open_base(tiny_model("llama", "causal-lm"), "causal-lm"), random_batch("causal-lm", samples=4)
    batch.labels[2:] = -100
    loss, grads = gradients(base, batch, Stages(base, 0, None, micro_batches=2))
    plain = gradients(base, batch, None)
    assert loss == pytest.approx(plain[0])
    for name, grad in grads.items():
        torch.testing.assert_close(grad, plain[1][name], rtol=1e-4, atol=1e-6)


def test_weights_are_put_off_until_no_stage_waits(tiny_model: ModelMaker) -> None:
    """After the input halves alone no tensor of an upper stage has a gradient, and the lowest stage can go on."""
    base, batch = open_base(tiny_model("bert", "classification"), "classification"), random_batch("classification")
    stages = Stages(base, 0, None, stages=3, decomposed=True)
    adapter = {name: nn.Parameter(value) for name, value in moved_adapter(base).items()}
    stages.use(adapter)
    seen = {}
    back = stages._back

    def watched(stage: int, what: str, *rest: object) -> None:
        back(stage, what, *rest)  # type: ignore[arg-type]
        seen[stage, what] = {base.block_of(name) for name, p in adapter.items() if p.grad is not None}

    stages._back = watched  # type: ignore[assignment,method-assign]
    arrived = activations_for(base, batch, 0)
    stages.backward(arrived.h_BTD, arrived.mask_BT, arrived.labels.long())
    assert seen[2, "input"] == seen[1, "input"] == set()
    assert list(seen) == [(s.stage, s.what) for s in schedule(3, 1, decomposed=True) if s.what != "forward"]
    assert set.union(*seen.values()) == {None, 0, 1, 2}


def test_blocks_are_spread_over_stages(tiny_model: ModelMaker) -> None:
    base = open_base(tiny_model("bert", "classification"), "classification")
    stages = Stages(base, 0, None, stages=2)
    held = [base.blocks_in(part.names) for part in stages._parts]
    assert held == [{0, 1}, {2}]
    assert not any(base.block_of(name) is None for name in stages._parts[0].names)
    Stages(base, BLOCKS, None)  # the head alone
