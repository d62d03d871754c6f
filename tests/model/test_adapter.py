"""Adapters: which modules they attach to, where their tensors sit, where they start."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from bases import open_base
from cutlayer.errors import AdapterError
from cutlayer.model.adapter import (
    PREFIX,
    LoraSettings,
    Slot,
    find_slots,
    initial_tensor,
    inside_block,
    put,
    split_adapter,
)
from cutlayer.testing.tiny import BLOCKS

ModelMaker = Callable[[str, str], Path]
A, B = f"{PREFIX}h.0.attn.lora_A.weight", f"{PREFIX}h.0.attn.lora_B.weight"


# ------------------------------------------------------------------ targets


@pytest.mark.parametrize(
    ("family", "task", "targets", "modules"),
    [
        ("gpt2", "causal-lm", (), {"attn.c_attn", "attn.c_proj"}),
        ("gpt2", "causal-lm", ("c_proj",), {"attn.c_proj", "mlp.c_proj"}),
        ("gpt2", "causal-lm", ("all-linear",), {"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"}),
        ("llama", "causal-lm", ("up_proj", "self_attn.q_proj"), {"mlp.up_proj", "self_attn.q_proj"}),
        (
            "bert",
            "classification",
            (),
            {f"attention.{name}" for name in ("self.query", "self.key", "self.value", "output.dense")},
        ),
        ("bert", "classification", ("intermediate.dense",), {"intermediate.dense"}),
    ],
)
def test_targets_are_modules_inside_the_blocks(
    family: str, task: str, targets: tuple[str, ...], modules: set[str], tiny_model: ModelMaker
) -> None:
    base = open_base(tiny_model(family, task), task, lora=LoraSettings(rank=3, targets=targets))
    lora = {name for name in base.shapes if ".lora_" in name}
    assert {base.block_of(name) for name in lora} == set(range(BLOCKS))
    found = {inside_block(name.split(".lora_")[0].removeprefix(PREFIX), base._blocks) for name in lora}
    assert found == modules
    assert len(lora) == 2 * BLOCKS * len(modules)
    for name in lora:
        assert base.shapes[name][0 if ".lora_A." in name else 1] == 3


@pytest.mark.parametrize(
    ("target", "hint"),
    [("q_porj", "Did you mean 'q_proj'?"), ("zzz", "Choose among them, or all-linear."), ("proj", "Did you mean")],
)
def test_a_target_that_attaches_to_nothing(target: str, hint: str, tiny_model: ModelMaker) -> None:
    with pytest.raises(AdapterError) as error:
        open_base(tiny_model("llama", "causal-lm"), "causal-lm", lora=LoraSettings(targets=("k_proj", target)))
    message = str(error.value)
    assert "\n" not in message
    assert repr(target) in message
    assert "self_attn.q_proj" in message
    assert hint in message


def test_a_module_outside_the_blocks_is_no_target(tiny_model: ModelMaker) -> None:
    with pytest.raises(AdapterError, match="'lm_head'"):
        open_base(tiny_model("llama", "causal-lm"), "causal-lm", lora=LoraSettings(targets=("lm_head",)))
    base = open_base(tiny_model("bert", "classification"), "classification", lora=LoraSettings(targets=("dense",)))
    assert not any("pooler" in name for name in base.shapes if ".lora_" in name)


def test_the_scale_is_alpha_over_rank(tiny_model: ModelMaker) -> None:
    base = open_base(tiny_model("bert", "classification"), "classification", lora=LoraSettings(rank=4, alpha=10.0))
    layer = base.device_part(1).model.get_submodule("bert.encoder.layer.0.attention.self.query")
    assert layer.scaling == {"default": 2.5}


# ------------------------------------------------------------------ slots


class Toy(nn.Module):
    """A block with LoRA's factors, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Module()
        self.block.lora_A = nn.ModuleDict({"default": nn.Linear(4, 2, bias=False)})
        self.block.base_layer = nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)
        self.header = nn.Linear(4, 2)  # begins with the head's name and is not in it


def test_slots_are_factors_and_the_head() -> None:
    names = [slot.name for slot in find_slots(Toy(), ["head"])]
    assert names == [f"{PREFIX}{name}" for name in ("block.lora_A.weight", "head.weight", "head.bias")]
    assert [slot.name for slot in find_slots(Toy(), [])] == names[:1]


def test_putting_an_adapter_in_swaps_the_objects() -> None:
    toy = Toy()
    slots = find_slots(toy, ["head"])
    adapter = {slot.name: nn.Parameter(torch.ones_like(getattr(slot.module, slot.attribute))) for slot in slots}
    put(adapter | {"another block's": nn.Parameter(torch.ones(1))}, slots)
    assert toy.head.weight is adapter[f"{PREFIX}head.weight"]
    put({name: value.detach() * 2 for name, value in adapter.items()}, slots)
    assert not toy.head.weight.requires_grad
    assert torch.equal(toy.head.weight.detach(), torch.full((2, 4), 2.0))
    assert torch.equal(adapter[f"{PREFIX}head.weight"].detach(), torch.ones(2, 4)), "the first owner's are untouched"


def test_an_adapter_that_lacks_a_tensor_is_not_put_in() -> None:
    with pytest.raises(KeyError):
        put({}, [Slot("missing", nn.Linear(1, 1), "weight")])


def test_a_part_of_an_adapter() -> None:
    adapter = {name: torch.tensor(float(index)) for index, name in enumerate("abc")}
    part = split_adapter(adapter, ["c", "a"])
    assert list(part) == ["c", "a"]
    assert part["c"] is adapter["c"]


# ------------------------------------------------------------------ where tensors start


def test_a_is_uniform_as_in_peft() -> None:
    value = initial_tensor(A, (64, 100), seed=0, std=1.0)
    bound = 1 / math.sqrt(100)
    assert value.dtype is torch.float32
    assert value.abs().max() <= bound
    assert value.abs().max() > 0.99 * bound
    assert float(value.mean()) == pytest.approx(0.0, abs=0.03 * bound)
    assert float(value.std()) == pytest.approx(bound / math.sqrt(3), rel=0.03)


def test_a_has_the_bounds_of_pefts_own() -> None:
    """PEFT draws A by kaiming_uniform with a = sqrt(5): the same distribution."""
    theirs = torch.empty(64, 100)
    nn.init.kaiming_uniform_(theirs, a=math.sqrt(5), generator=torch.Generator().manual_seed(0))
    ours = initial_tensor(A, (64, 100), seed=0, std=1.0)
    assert float(ours.abs().max()) == pytest.approx(float(theirs.abs().max()), rel=0.01)
    assert float(ours.std()) == pytest.approx(float(theirs.std()), rel=0.03)


def test_b_and_biases_are_zero() -> None:
    assert not initial_tensor(B, (100, 64), seed=0, std=1.0).any()
    assert not initial_tensor(f"{PREFIX}classifier.bias", (3,), seed=0, std=1.0).any()


def test_a_heads_weight_is_normal() -> None:
    value = initial_tensor(f"{PREFIX}classifier.weight", (100, 100), seed=0, std=0.3)
    assert float(value.std()) == pytest.approx(0.3, rel=0.05)
    assert float(value.abs().max()) > 0.6


def test_draws_differ_by_name_and_seed_alone() -> None:
    torch.manual_seed(1)
    value = initial_tensor(A, (4, 5), seed=0, std=1.0)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(value, initial_tensor(A, (4, 5), seed=0, std=1.0))
    assert not torch.equal(value, initial_tensor(A, (4, 5), seed=1, std=1.0))
    assert not torch.equal(value, initial_tensor(A.replace("h.0", "h.1"), (4, 5), seed=0, std=1.0))
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state), "nobody else's random numbers were drawn"
