"""Stand-ins in the places that a part does not hold, and which places those are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from bases import open_base
from cutlayer.errors import ModelError
from cutlayer.model.cut import Feed, Pass, Skip, Zeros, check_cut
from cutlayer.testing.tiny import BLOCKS
from turns import CASES

ModelMaker = Callable[[str, str], Path]


def test_stand_ins_pass_on_what_they_are_given() -> None:
    h_BTD = torch.randn(2, 3, 4)
    assert Skip(nn.Identity())(h_BTD, "mask", use_cache=False) is h_BTD
    assert Pass()(h_BTD) is h_BTD
    feed = Feed()
    with pytest.raises(AssertionError):
        feed(torch.zeros(2, 3))
    feed.h_BTD = h_BTD
    assert feed(torch.zeros(2, 3)) is h_BTD
    assert torch.equal(h_BTD + Zeros(torch.float32)(None), h_BTD)
    assert Zeros(torch.bfloat16)().dtype is torch.bfloat16


@pytest.mark.parametrize("cut", [-1, 4])
def test_a_cut_outside_the_model(cut: int) -> None:
    with pytest.raises(ModelError, match=rf"plan: expected 0 to 3 .*, got {cut}\. "):
        check_cut(cut, 3, "plan")


def test_every_cut_inside_the_model() -> None:
    for cut in range(4):
        check_cut(cut, 3)


def test_a_base_refuses_a_cut_outside_it(tiny_model: ModelMaker) -> None:
    base = open_base(tiny_model("bert", "classification"), "classification")
    for cut in (-1, BLOCKS + 1):
        with pytest.raises(ModelError):
            base.device_part(cut)
        with pytest.raises(ModelError):
            base.server_part(cut)


@pytest.mark.parametrize(("family", "task"), CASES)
def test_the_two_sides_hold_every_block_once(family: str, task: str, tiny_model: ModelMaker) -> None:
    base = open_base(tiny_model(family, task), task)
    row = base.family

    def held(model: nn.Module) -> list[bool]:
        blocks = model.get_submodule(f"{base._prefix}.{row.blocks}")
        return [not isinstance(block, Skip) for block in blocks.children()]

    for cut in (1, BLOCKS):
        device, server = base.device_part(cut).model, base.server_part(cut).model
        assert held(device) == [index < cut for index in range(BLOCKS)]
        assert held(server) == [index >= cut for index in range(BLOCKS)]
        backbone = device.get_submodule(base._prefix)
        assert not isinstance(backbone.get_submodule(row.embeddings), Feed)
        for path in row.final:
            parent, _, name = path.rpartition(".")
            stands_in = getattr(backbone.get_submodule(parent), name)
            assert stands_in is None or isinstance(stands_in, Pass)
        if row.pooler is not None:
            assert isinstance(backbone.get_submodule(row.pooler), Pass)
        outside = [child for child in device.children() if child is not backbone]
        assert all(isinstance(child, Pass) for child in outside)
        assert isinstance(server.get_submodule(f"{base._prefix}.{row.embeddings}"), Feed)


def test_the_feed_lets_go_of_the_activations(tiny_model: ModelMaker) -> None:
    """Also where the model fails: activations of a large batch must not outlive their step."""
    base = open_base(tiny_model("bert", "classification"), "classification")
    part = base.server_part(1)
    part.use(base.initial_adapter(0))
    h_BTD = torch.randn(2, 5, 16)
    with torch.no_grad():
        part.loss(h_BTD, None, torch.tensor([0, 1]))
    assert part._feed.h_BTD is None
    with pytest.raises(IndexError):
        part.loss(h_BTD, None, torch.tensor([0, 99]))
    assert part._feed.h_BTD is None
