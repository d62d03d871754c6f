"""One rank and one alpha, and the same adapter: by PEFT, and by the rules of programs that know no patterns."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bases import moved_adapter, open_base
from cutlayer.model.adapter import LoraSettings
from cutlayer.model.base import Base
from cutlayer.model.low_rank import factor_names
from cutlayer.model.portable import one_rank, refused_by_vllm, save_portable
from cutlayer.types import Adapter
from exported import card_for, logits_of, plain_peft, whole_logits

ModelMaker = Callable[[str, str], Path]
RANKS = (1, 3, 6)


def unequal(base: Base) -> Adapter:
    generator = torch.Generator().manual_seed(2)
    start = base.initial_adapter(0, RANKS)
    return {name: value + 0.1 * torch.randn(value.shape, generator=generator) for name, value in start.items()}


@pytest.fixture
def base(tiny_model: ModelMaker) -> Base:
    return open_base(tiny_model("llama", "causal-lm"), "causal-lm", lora=LoraSettings(rank=6, alpha=9.0))


def test_alpha_over_every_tensors_own_rank_is_the_scale(base: Base, tmp_path: Path) -> None:
    """llama.cpp divides alpha by each tensor's rank, vLLM by the one rank: here both are the run's scale."""
    adapter = unequal(base)
    save_portable(tmp_path / "portable", adapter, base, card_for(base), "card")
    config = json.loads((tmp_path / "portable" / "adapter_config.json").read_text())
    assert (config["rank_pattern"], config["alpha_pattern"], config["modules_to_save"]) == ({}, {}, None)
    tensors = load_file(tmp_path / "portable" / "adapter_model.safetensors")
    assert len(factor_names(tensors)) == len(factor_names(adapter)) > 0
    for b, a in factor_names(tensors):
        assert tensors[a].shape[0] == tensors[b].shape[1] == config["r"] == 6
        assert config["lora_alpha"] / tensors[a].shape[0] == 9.0 / 6
        torch.testing.assert_close(tensors[b] @ tensors[a], adapter[b] @ adapter[a], rtol=1e-6, atol=1e-7)


def test_plain_peft_computes_the_same(base: Base, tmp_path: Path) -> None:
    adapter = unequal(base)
    save_portable(tmp_path / "portable", adapter, base, card_for(base), "card")
    loaded = logits_of(plain_peft(base, tmp_path / "portable"), "causal-lm")
    torch.testing.assert_close(loaded, whole_logits(base, adapter), rtol=0, atol=1e-5)


def test_equal_ranks_stay_to_the_bit(base: Base) -> None:
    adapter = moved_adapter(base)
    assert all(torch.equal(value, adapter[name]) for name, value in one_rank(adapter).items())


def test_no_path_of_the_machine_is_in_it(base: Base, tmp_path: Path) -> None:
    save_portable(tmp_path / "portable", unequal(base), base, card_for(base), "card")
    written = b"".join(path.read_bytes() for path in (tmp_path / "portable").iterdir())
    assert str(Path(base.settings.name).parent.parent).encode() not in written
    assert b"fingerprint:" in written


def test_a_head_is_what_vllm_refuses(base: Base, tiny_model: ModelMaker) -> None:
    assert refused_by_vllm(base) is None
    assert "modules_to_save" in str(refused_by_vllm(open_base(tiny_model("bert", "classification"), "classification")))
