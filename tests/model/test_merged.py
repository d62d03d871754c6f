"""The merged model is the base with the adapter: beside PEFT's own merge, tensor by tensor."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch
from transformers import AutoModelForCausalLM

from bases import moved_adapter, open_base
from cutlayer.errors import AdapterError
from cutlayer.model import merged
from cutlayer.model.adapter import LoraSettings
from cutlayer.model.export import save_adapter
from cutlayer.model.merged import agreement, merged_tensors, save_merged
from cutlayer.model.quantised import KINDS, SCALE
from cutlayer.testing.tiny import random_batch
from exported import card_for, plain_peft

ModelMaker = Callable[[str, str], Path]
LINEAR = LoraSettings(rank=4, alpha=6.0, targets=("all-linear",))


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2"])
def test_it_is_pefts_own_merge(family: str, tiny_model: ModelMaker, tmp_path: Path) -> None:
    base = open_base(tiny_model(family, "causal-lm"), "causal-lm", lora=LINEAR)
    adapter = moved_adapter(base)
    save_adapter(tmp_path / "adapter", adapter, base, card_for(base))
    theirs = plain_peft(base, tmp_path / "adapter").merge_and_unload().state_dict()
    ours = dict(merged_tensors(base, adapter, torch.float32))
    assert ours.keys() <= theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=1e-6)
    changed = sum(not torch.equal(value, base.weights.read(name)) for name, value in ours.items())
    assert changed == len(base.modules)


@pytest.mark.parametrize(("family", "task"), [("llama", "causal-lm"), ("bert", "classification")])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_transformers_loads_it_and_it_agrees(
    family: str, task: str, dtype: str, tiny_model: ModelMaker, tmp_path: Path
) -> None:
    base = open_base(tiny_model(family, task), task)
    adapter, card = moved_adapter(base), card_for(base)
    with mock.patch.object(merged, "SHARD_BYTES", 4000):
        save_merged(tmp_path / "merged", adapter, base, card, dtype=dtype, readme="card")
    assert len(list((tmp_path / "merged").glob("model-*.safetensors"))) > 1
    found = agreement(tmp_path / "merged", adapter, base, [random_batch(task)], dtype=dtype)
    assert found.difference < (1e-5 if dtype == "fp32" else 0.1)
    assert found.samples == 4
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["dtype"] == {"fp32": "float32", "bf16": "bfloat16"}[dtype]
    assert config.get("id2label", {}).get("2", "glad") == "glad"


def test_a_merge_that_is_none_is_found(tiny_model: ModelMaker, tmp_path: Path) -> None:
    base = open_base(tiny_model("llama", "causal-lm"), "causal-lm")
    save_merged(tmp_path / "merged", {}, base, card_for(base), dtype="fp32", readme="card")
    with pytest.raises(AdapterError, match="expected the logits of base"):
        agreement(tmp_path / "merged", moved_adapter(base), base, [random_batch("causal-lm")], dtype="fp32")


def test_one_file_where_it_fits(tiny_model: ModelMaker, tmp_path: Path) -> None:
    base = open_base(tiny_model("qwen2", "causal-lm"), "causal-lm")  # its head is tied to its embeddings
    card = replace(card_for(base), pad_id=0)
    save_merged(tmp_path / "merged", moved_adapter(base), base, card, dtype="fp32", readme="card")
    assert (tmp_path / "merged" / "model.safetensors").is_file()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("kind", KINDS)
def test_few_bits_are_merged_as_what_they_stand_for(kind: str, tiny_model: ModelMaker, tmp_path: Path) -> None:
    """The merged model is what was trained on: not the numbers of a form, and not the file's weights."""
    base = open_base(tiny_model("qwen2", "causal-lm"), "causal-lm", dtype=kind, lora=LINEAR)
    plain = open_base(tiny_model("qwen2", "causal-lm"), "causal-lm", lora=LINEAR)
    adapter = moved_adapter(base)
    stood = {name: base.weights.get(name) for name in base.forms if name not in base._ties}
    unlike = [name for name in stood if not torch.equal(stood[name], plain.weights.get(name))]
    assert len(unlike) > len(base.modules)
    for name in unlike:
        plain.weights.get(name).copy_(stood[name])
    with mock.patch.object(plain.weights, "read", plain.weights.get):
        expected = dict(merged_tensors(plain, adapter, torch.float32))
    found = dict(merged_tensors(base, adapter, torch.float32))
    assert found.keys() == expected.keys()
    assert not any(name.endswith(SCALE) for name in found)
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name
    save_merged(tmp_path / "merged", adapter, base, card_for(base), dtype="fp32", readme="card")
    assert agreement(tmp_path / "merged", adapter, base, [random_batch("causal-lm")], dtype="fp32").difference < 1e-5
