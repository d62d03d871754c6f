"""A run goes on from plain PEFT's adapter: what it adds to the base is what PEFT's own layers add."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from bases import open_base
from cutlayer.errors import AdapterError
from cutlayer.model.adapter import LoraSettings
from cutlayer.model.base import Base
from cutlayer.model.given import read_given
from exported import logits_of, plain_peft, whole_logits

ModelMaker = Callable[[str, str], Path]
TARGETS = ("q_proj", "v_proj")
UNEQUAL = {"rank_pattern": {"layers.0.self_attn.q_proj": 5, "v_proj": 1}, "alpha_pattern": {"v_proj": 7.0}}


def saved_by_peft(model: Path, folder: Path, **settings: Any) -> Path:
    """A trained LoRA adapter, as PEFT saves it."""
    torch.manual_seed(0)
    config = LoraConfig(**{"r": 3, "lora_alpha": 6, "target_modules": TARGETS, "task_type": "CAUSAL_LM", **settings})
    peft = get_peft_model(AutoModelForCausalLM.from_pretrained(model), config)
    generator = torch.Generator().manual_seed(1)
    for name, value in peft.named_parameters():
        if ".lora_" in name:
            value.data.add_(0.1 * torch.randn(value.shape, generator=generator))
    peft.save_pretrained(folder)
    return folder


@pytest.fixture
def llama(tiny_model: ModelMaker) -> Path:
    return tiny_model("llama", "causal-lm")


def base_at(model: Path, rank: int, alpha: float, targets: tuple[str, ...] = TARGETS) -> Base:
    return open_base(model, "causal-lm", lora=LoraSettings(rank, alpha, targets=targets))


@pytest.mark.parametrize("more", [{}, {"use_rslora": True}, UNEQUAL, {"layers_to_transform": [1]}], ids=str)
def test_it_adds_what_pefts_own_layers_add(more: dict[str, Any], llama: Path, tmp_path: Path) -> None:
    given = read_given(saved_by_peft(llama, tmp_path, **more))
    settings = given.settings
    base = base_at(llama, settings.rank, settings.alpha, settings.targets)
    plain = logits_of(plain_peft(base, tmp_path), "causal-lm")
    torch.testing.assert_close(whole_logits(base, given.on(base)), plain, rtol=0, atol=1e-5)
    assert not torch.allclose(whole_logits(base, base.initial_adapter(0)), plain, atol=1e-3)


def test_at_the_same_scale_and_rank_nothing_is_changed(llama: Path, tmp_path: Path) -> None:
    given = read_given(saved_by_peft(llama, tmp_path))
    base = base_at(llama, 3, 6.0)
    begun = given.begun(base.initial_adapter(0), base)
    assert begun.keys() == given.tensors.keys()
    assert all(torch.equal(begun[name], value) for name, value in given.tensors.items())


def test_a_run_of_a_higher_rank_and_another_scale_begins_where_it_ended(llama: Path, tmp_path: Path) -> None:
    given = read_given(saved_by_peft(llama, tmp_path, **UNEQUAL))
    base = base_at(llama, 6, 3.0, (*TARGETS, "o_proj"))
    fresh = base.initial_adapter(0)
    begun = given.begun(fresh, base)
    assert {name: value.shape for name, value in begun.items()} == {n: v.shape for n, v in fresh.items()}
    plain = logits_of(plain_peft(base, tmp_path), "causal-lm")
    torch.testing.assert_close(whole_logits(base, begun), plain, rtol=0, atol=1e-5)
    a = next(name for name in begun if ".lora_A." in name)
    assert begun[a][5:].any(), "rows that it had not can learn: with both factors zero, neither would"


def test_what_does_not_fit_is_refused(llama: Path, tmp_path: Path) -> None:
    given = read_given(saved_by_peft(llama, tmp_path))
    with pytest.raises(AdapterError, match="Set --rank 3"):
        given.begun(base_at(llama, 2, 6.0).initial_adapter(0), base_at(llama, 2, 6.0))
    base = base_at(llama, 3, 6.0, ("q_proj",))
    with pytest.raises(AdapterError, match=r"lora\.targets train, got .*v_proj"):
        given.begun(base.initial_adapter(0), base)
    base = base_at(llama, 3, 6.0)
    with pytest.raises(AdapterError, match="only tensors that the run trains"):
        given.begun(base.initial_adapter(0, (3, 0, 3)), base)


@pytest.mark.parametrize(
    ("change", "said"),
    [({"peft_type": "IA3"}, "IA3"), ({"bias": "all"}, "bias all"), ({"use_dora": True}, "use_dora")],
    ids=str,
)
def test_what_is_no_plain_lora_is_refused(change: dict[str, Any], said: str, llama: Path, tmp_path: Path) -> None:
    path = saved_by_peft(llama, tmp_path) / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(AdapterError, match=said):
        read_given(tmp_path)


def test_a_folder_without_an_adapter(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"expected a folder with adapter_config\.json"):
        read_given(tmp_path)
