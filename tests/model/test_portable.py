"""One rank and one alpha, and the same adapter: by PEFT, and by the rules of programs that know no patterns."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from bases import moved_adapter, open_base
from cutlayer.model.adapter import LoraSettings
from cutlayer.model.base import Base
from cutlayer.model.card import read_card
from cutlayer.model.export import save_adapter
from cutlayer.model.low_rank import factor_names
from cutlayer.model.portable import one_rank, refused_by_vllm, save_portable
from cutlayer.testing.tiny import save_tiny_tokenizer
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


def test_others_ask_by_the_template_that_it_was_trained_with(tiny_model: ModelMaker, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model("llama", "causal-lm"), tmp_path / "base")
    base = open_base(save_tiny_tokenizer(folder, "{{ messages[0].role }}"), "causal-lm")
    chats = replace(card_for(base), template="{% for turn in messages %}{{ turn.content }}!{% endfor %}")
    plain = replace(card_for(base), template="plain", separator="\n")
    for name, card, said in (("chats", chats, "hello!"), ("plain", plain, "user")):
        save_portable(tmp_path / name, moved_adapter(base), base, card, "card")
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / name)
        turns = [{"role": "user", "content": "hello"}]
        assert tokenizer.apply_chat_template(turns, tokenize=False) == said
        assert read_card(tmp_path / name).template == card.template


@pytest.mark.slow
def test_llama_cpp_multiplies_with_the_runs_scale(base: Base, tmp_path: Path) -> None:
    """Its own converter, of the folder that `LLAMA_CPP` names: what an adapter adds to a block, over what PEFT adds.

    llama.cpp's `llama_adapter_lora_weight::get_scale` is alpha over the rank of the tensor's B.
    """
    if not (source := os.environ.get("LLAMA_CPP")):
        pytest.skip("LLAMA_CPP names no folder of llama.cpp's source")
    gguf, adapter = pytest.importorskip("gguf"), unequal(base)
    save_adapter(tmp_path / "own", adapter, base, card_for(base))
    save_portable(tmp_path / "portable", adapter, base, card_for(base), "card")
    found = {}
    for kind in ("own", "portable"):
        file = tmp_path / f"{kind}.gguf"
        convert = [sys.executable, f"{source}/convert_lora_to_gguf.py", tmp_path / kind, "--base", base.settings.name]
        subprocess.run([*convert, "--outfile", file, "--outtype", "f32"], check=True, capture_output=True)
        read = gguf.GGUFReader(file)
        alpha = float(read.fields["adapter.lora.alpha"].parts[-1][0])
        tensors = {one.name: torch.tensor(one.data) for one in read.tensors}
        found[kind] = [_over_peft(tensors, adapter, alpha, block, 9.0 / 6) for block in range(len(RANKS))]
    assert found["portable"] == pytest.approx([1.0] * 3, abs=1e-6)
    assert found["own"] == pytest.approx([6.0, 2.0, 1.0], abs=1e-6), "the law can fail"


@pytest.mark.slow
def test_llama_cpp_computes_the_same(tmp_path: Path) -> None:
    """Itself, as the package `xllamacpp` has it: what it says of a next token with the converted adapter."""
    if not (source := os.environ.get("LLAMA_CPP")):
        pytest.skip("LLAMA_CPP names no folder of llama.cpp's source")
    xllamacpp, ggufs = pytest.importorskip("xllamacpp"), pytest.importorskip("ggufs")
    file = ggufs.save_gguf(tmp_path / "base.gguf", kind="F32", tied=False)
    base = open_base(file, "causal-lm", lora=LoraSettings(rank=6, alpha=9.0))
    adapter = unequal(base)
    config = json.loads((Path(base.files.location) / "config.json").read_text())
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text(json.dumps(config | {"architectures": ["LlamaForCausalLM"]}))
    save_adapter(tmp_path / "own", adapter, base, card_for(base))
    save_portable(tmp_path / "portable", adapter, base, card_for(base), "card")
    whole = base.whole()
    whole.use({name: torch.nn.Parameter(value) for name, value in adapter.items()})
    with torch.no_grad():
        expected_V = whole.model(input_ids=torch.tensor([PROMPT])).logits[0, -1].log_softmax(-1)
    apart = {}
    for kind in ("own", "portable"):
        convert = [sys.executable, f"{source}/convert_lora_to_gguf.py", tmp_path / kind, "--base", tmp_path / "base"]
        lora = tmp_path / f"{kind}.gguf"
        subprocess.run([*convert, "--outfile", lora, "--outtype", "f32"], check=True, capture_output=True)
        said = _llama_cpp(xllamacpp, file, lora, vocabulary=len(expected_V))
        apart[kind] = max(abs(said[token] - float(value)) for token, value in enumerate(expected_V))
    assert apart["portable"] < 0.01, "its embeddings are in 8 bits, and so is what it multiplies them with"
    assert apart["own"] > 0.1, "the law can fail"


PROMPT = [5, 9, 17, 30, 12]


def _llama_cpp(xllamacpp: Any, base: Path, lora: Path, *, vocabulary: int) -> dict[int, float]:
    """The log probability of each token after `PROMPT`."""
    parameters, adapter = xllamacpp.CommonParams(), xllamacpp.CommonAdapterLoraInfo()
    adapter.path, adapter.scale = str(lora), 1.0
    parameters.model.path, parameters.n_ctx, parameters.n_predict = str(base), 64, 1
    parameters.cpuparams.n_threads, parameters.lora_adapters = 1, [adapter]
    asked = {"prompt": PROMPT, "n_predict": 1, "n_probs": vocabulary, "temperature": 1.0}
    answer = xllamacpp.Server(parameters).handle_completions(asked)
    [first] = answer["choices"][0]["logprobs"]["content"]
    return {one["id"]: one["logprob"] for one in first["top_logprobs"]}


def _over_peft(tensors: Adapter, adapter: Adapter, alpha: float, block: int, scale: float) -> float:
    """The size of what a block's values get, over its size in PEFT."""
    a, b = (tensors[f"blk.{block}.attn_v.weight.lora_{factor}"] for factor in "ab")
    ours_a, ours_b = (
        adapter[f"base_model.model.model.layers.{block}.self_attn.v_proj.lora_{factor}.weight"] for factor in "AB"
    )
    return float((alpha / b.shape[1] * (b @ a)).norm() / (scale * (ours_b @ ours_a)).norm())
