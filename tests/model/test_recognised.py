"""A model that is built like Llama needs no row; one that only looks like it is refused, with the reason."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3nTextConfig,
    GPTNeoXConfig,
    GraniteConfig,
    Olmo2Config,
    SiglipVisionConfig,
    SmolLM3Config,
)
from transformers.models.olmo2.modeling_olmo2 import Olmo2Model

from bases import open_base
from cutlayer.errors import ModelError
from cutlayer.model.export import load_finetuned
from cutlayer.model.families import Family
from cutlayer.model.part import model_inputs
from cutlayer.model.pieces import PieceServer, PieceStore
from cutlayer.testing.playground import tiny_base
from cutlayer.testing.tiny import _DECODER, BLOCKS, CONFIGS, LABELS, random_batch
from model.test_parity import assert_equal, plain_step, settings_for, split_step, trained_adapter

UNLISTED: dict[str, Callable[[], Any]] = {
    "olmo2": lambda: Olmo2Config(**_without("head_dim")),
    "granite": lambda: GraniteConfig(**_without("head_dim"), residual_multiplier=0.5),
    "smollm3": lambda: SmolLM3Config(**_without("head_dim"), no_rope_layers=[1, 0, 1], use_sliding_window=False),
}


def _without(*names: str) -> dict[str, Any]:
    return {key: value for key, value in _DECODER.items() if key not in names}


def save(config: Any, task: str, folder: Path) -> Path:
    torch.manual_seed(0)
    config.initializer_range = 0.2
    if task == "classification":
        config.num_labels = LABELS
    maker = AutoModelForCausalLM if task == "causal-lm" else AutoModelForSequenceClassification
    maker.from_config(config).save_pretrained(folder)
    return folder


def assert_split_is_plain(base: Any, task: str) -> None:
    adapter, batch = trained_adapter(base), random_batch(task)
    plain_loss, plain_gradients = plain_step(base, adapter, batch)
    for cut in range(BLOCKS + 1):
        loss, gradients = split_step(base, adapter, batch, cut)
        assert torch.equal(loss, plain_loss), f"cut {cut}"
        assert_equal(gradients, plain_gradients)


@pytest.mark.parametrize("name", UNLISTED)
def test_a_model_built_like_llama_needs_no_row(name: str, tmp_path: Path) -> None:
    base = open_base(save(UNLISTED[name](), "causal-lm", tmp_path), "causal-lm")
    assert base.family == Family(name)
    assert_split_is_plain(base, "causal-lm")


def test_its_classifier_too(tmp_path: Path) -> None:
    base = open_base(save(SmolLM3Config(**_without("head_dim")), "classification", tmp_path), "classification")
    assert_split_is_plain(base, "classification")


def test_many_blocks_of_several_kinds_are_tried_on_few(tmp_path: Path) -> None:
    config = SmolLM3Config(**{**_without("head_dim"), "num_hidden_layers": 12})
    assert open_base(save(config, "causal-lm", tmp_path), "causal-lm").num_blocks == 12


def test_it_is_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(GraniteConfig(**_without("head_dim"), logits_scaling=2.0), "causal-lm", tmp_path)
    open_base(folder, "causal-lm")
    monkeypatch.setattr("cutlayer.model.recognised._difference", lambda *_: "tried again")
    open_base(folder, "causal-lm")


def test_the_draw_of_a_trial_is_its_own(tmp_path: Path) -> None:
    folder = save(GraniteConfig(**_without("head_dim"), logits_scaling=3.0), "causal-lm", tmp_path)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    open_base(folder, "causal-lm")
    assert torch.equal(torch.get_rng_state(), before)


# ------------------------------------------------------------------ refused


def test_token_ids_in_every_layer_are_refused_with_the_reason(tmp_path: Path) -> None:
    config = Gemma3nTextConfig(
        **_DECODER,
        vocab_size_per_layer_input=64,
        hidden_size_per_layer_input=4,
        layer_types=["full_attention"] * 3,
        num_kv_shared_layers=1,
        laurel_rank=2,
        activation_sparsity_pattern=[0.0] * 3,
    )
    config.save_pretrained(tmp_path)
    with pytest.raises(ModelError) as error:
        open_base(tmp_path, "causal-lm")
    assert "'gemma3n_text', which looks up embed_tokens_per_layer beside embed_tokens: blocks that" in str(error.value)
    assert "read token ids cannot run where there are none" in str(error.value)
    assert "\n" not in str(error.value)


def test_another_build_is_refused_with_what_a_row_needs(tmp_path: Path) -> None:
    GPTNeoXConfig(vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=2).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"built like Llama, got 'gpt_neox', which has no embed_tokens\. .*--family"):
        open_base(tmp_path, "causal-lm")


def test_a_forward_that_a_cut_changes_is_refused(tmp_path: Path) -> None:
    """The modules of Llama, and a multiplication between embeddings and block 0 that is in no module."""
    GraniteConfig(**_without("head_dim"), embedding_multiplier=12.0).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"'granite', which does not survive a cut: cut at block 1, .* are others\. "):
        open_base(tmp_path, "causal-lm")


def test_a_forward_that_a_cut_breaks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The forward pass asks something of a block that is not there."""
    config = Olmo2Config(**_without("head_dim"), rms_norm_eps=1e-4)
    config.save_pretrained(tmp_path)
    original = Olmo2Model.forward
    monkeypatch.setattr(Olmo2Model, "forward", lambda self, *a, **k: (self.layers[-1].mlp, original(self, *a, **k))[1])
    with pytest.raises(ModelError, match=r"'olmo2', .* ends with AttributeError: 'Skip' object has no attribute 'mlp'"):
        open_base(tmp_path, "causal-lm")


def test_deberta_with_a_convolution_between_blocks_is_refused(tmp_path: Path) -> None:
    config = CONFIGS["deberta-v2"]()
    config.conv_kernel_size = 3
    config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"a deberta-v2 without encoder\.conv"):
        open_base(tmp_path, "classification")


# ------------------------------------------------------------------ the text tower of a model that also sees


@pytest.fixture
def seeing(tmp_path: Path) -> Path:
    vision = SiglipVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    config = Gemma3Config(
        text_config=CONFIGS["gemma3_text"](),
        vision_config=vision,
        mm_tokens_per_image=4,
        image_token_index=60,
        boi_token_index=61,
        eoi_token_index=62,
    )
    torch.manual_seed(0)
    config.text_config.initializer_range = 0.2
    Gemma3ForConditionalGeneration(config).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_the_text_tower_of_gemma_3_is_a_gemma_3(seeing: Path) -> None:
    base = open_base(seeing, "causal-lm")
    assert base.family.name == "gemma3_text"
    assert base.files.model_type == "gemma3_text"
    assert_split_is_plain(base, "causal-lm")
    whole = Gemma3ForConditionalGeneration.from_pretrained(seeing).eval()
    inputs = model_inputs(random_batch("causal-lm"))
    with torch.no_grad():
        assert torch.equal(base.whole(frozenset()).model(**inputs).logits, whole(**inputs).logits)


def test_a_device_is_sent_the_text_tower_alone(seeing: Path, tmp_path: Path) -> None:
    from model.test_pieces import PLENTY, assert_same, fetch

    server, store = PieceServer(settings_for(seeing, "causal-lm")), PieceStore(tmp_path / "store", PLENTY)
    fetch(server, store, server.manifest(BLOCKS, top=BLOCKS))
    assert_same(open_base(store.folder, "causal-lm").whole(), open_base(seeing, "causal-lm").whole())


def test_the_row_of_a_listed_model_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cutlayer.model.skeleton.recognised", lambda *_: pytest.fail("tried"))
    assert tiny_base("llama", "causal-lm").family.name == "llama"


def test_an_adapter_of_a_recognised_model_is_loaded(tmp_path: Path) -> None:
    from cutlayer.model.card import AdapterCard
    from cutlayer.model.export import save_adapter

    folder = save(Olmo2Config(**_without("head_dim"), rms_norm_eps=1e-3), "classification", tmp_path / "model")
    base = open_base(folder, "classification")
    adapter = {name: value.detach() for name, value in trained_adapter(base).items()}
    card = AdapterCard(
        str(folder), "classification", ("a", "b", "c"), "last", 16, 0, {"text": "text", "label": "label"}
    )
    save_adapter(tmp_path / "adapter", adapter, base, card)
    shutil.rmtree(tmp_path / "adapter" / "none", ignore_errors=True)
    batch = random_batch("classification")
    base.whole().use(adapter)
    with torch.no_grad():
        _, expected = base.whole().loss_and_logits(batch)
        found = load_finetuned(tmp_path / "adapter", folder)(**model_inputs(batch)).logits
        assert torch.equal(found, expected)
