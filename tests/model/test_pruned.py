"""The pruned model as a folder: plain transformers and plain PEFT load it, and it computes what was trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from bases import moved_adapter, open_base, settings_for
from cutlayer.model.adapter import LoraSettings
from cutlayer.model.base import Base
from cutlayer.model.card import AdapterCard, read_card
from cutlayer.model.export import load_finetuned, read_adapter
from cutlayer.model.families import FAMILIES
from cutlayer.model.part import model_inputs
from cutlayer.model.pruned import save_pruned
from cutlayer.testing.tiny import BLOCKS, LABELS, random_batch, save_tiny_tokenizer
from cutlayer.types import Adapter, Kept

ModelMaker = Callable[[str, str], Path]
ALL = LoraSettings(rank=4, targets=("all-linear",))
ROWS = [(row.name, task) for row in FAMILIES.values() for task in row.tasks]
CHANNELS = ((1, 2, 5, 30), (0, 7, 8, 9), (3, 4, 12, 31))


def kept_in(base: Base) -> Kept:
    """One of two groups of heads, or two of four heads; four of 32 or 64 channels; others in every block."""
    heads = ((1,), (0,), (1,)) if base.structure.counts["heads"] == 2 else ((1, 3), (0, 1), (2, 3))
    return Kept(heads, CHANNELS)


def card_of(base: Base) -> AdapterCard:
    labels = tuple(f"class {label}" for label in range(base.settings.num_labels))
    return AdapterCard("the/base", base.settings.task, labels, base.pooling, 64, 0, {"text": "text"})


def logits_of_part(base: Base, adapter: Adapter, kept: Kept) -> torch.Tensor:
    part = base.pruned(kept, base.blocks_in(adapter))
    part.use(base.structure.slice_all(adapter, kept))
    part.model.eval()
    with torch.inference_mode():
        return part.loss_and_logits(random_batch(base.settings.task))[1]


def logits_of(model: torch.nn.Module, task: str) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = model.eval()(**model_inputs(random_batch(task))).logits
    return logits


@pytest.mark.parametrize(("family", "task"), ROWS)
def test_transformers_and_peft_load_it(family: str, task: str, tiny_model: ModelMaker, tmp_path: Path) -> None:
    base = open_base(tiny_model(family, task), task, lora=ALL)
    kept, adapter = kept_in(base), moved_adapter(base)
    save_pruned(tmp_path / "pruned", adapter, base, card_of(base), kept)
    maker = AutoModelForCausalLM if task == "causal-lm" else AutoModelForSequenceClassification
    model, info = maker.from_pretrained(tmp_path / "pruned", output_loading_info=True)
    assert not any(info.values()), info
    assert model.num_parameters() < base.whole().model.num_parameters()
    (_, pruned), (_, unpruned) = (
        AutoModel.from_pretrained(folder, output_loading_info=True)
        for folder in (tmp_path / "pruned", tiny_model(family, task))
    )
    assert not pruned["mismatched_keys"]
    assert pruned["missing_keys"] == unpruned["missing_keys"]  # RoBERTa's classifier has no pooler
    finetuned = PeftModel.from_pretrained(model, tmp_path / "pruned" / "adapter")
    expected = logits_of_part(base, adapter, kept)
    torch.testing.assert_close(logits_of(finetuned, task), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(logits_of_part(base, base.initial_adapter(0), kept), expected, atol=1e-2)
    if task == "classification":
        assert model.config.id2label[1] == "class 1"


@pytest.mark.parametrize(("family", "heads"), [("llama", 2), ("bert", 4), ("gpt2", 4), ("phi3", 2), ("qwen2", 2)])
def test_what_the_config_says(family: str, heads: int, tiny_model: ModelMaker, tmp_path: Path) -> None:
    """Fewer heads where the family can say so; else they are zeros, and the folder says it."""
    task = FAMILIES[family].tasks[0]
    base = open_base(tiny_model(family, task), task, lora=ALL)
    save_pruned(tmp_path / "pruned", moved_adapter(base), base, card_of(base), kept_in(base))
    model = AutoModel.from_pretrained(tmp_path / "pruned")
    assert model.config.num_attention_heads == heads
    note = (tmp_path / "pruned" / "README.md").read_text()
    assert ("as zeros" in note) == (heads == 4)
    assert ("count as one" in note) == (heads == 2)
    assert f"with {1 if heads == 2 else 2} of {2 if heads == 2 else 4} attention heads and 4 of" in note
    structure = json.loads((tmp_path / "pruned" / "structure.json").read_text())
    assert structure["channels"] == [list(units) for units in CHANNELS]


def test_our_own_commands_read_it(tiny_model: ModelMaker, tmp_path: Path) -> None:
    """Moved elsewhere, it is still found: its card says that the model is the folder around it."""
    base = open_base(tiny_model("bert", "classification"), "classification", lora=ALL)
    kept, adapter = kept_in(base), moved_adapter(base)
    save_pruned(tmp_path / "first" / "pruned", adapter, base, card_of(base), kept)
    (tmp_path / "first").rename(tmp_path / "second")
    folder = tmp_path / "second" / "pruned" / "adapter"
    card = read_card(folder)
    assert card.base == str(tmp_path / "second" / "pruned")
    pruned = Base(settings_for(Path(card.base), "classification", lora=LoraSettings(4, 16.0, 0.0, ALL.targets)))
    again = read_adapter(folder, pruned)
    whole = pruned.whole()
    whole.use(again)
    whole.model.eval()
    with torch.inference_mode():
        logits = whole.loss_and_logits(random_batch("classification"))[1]
    expected = logits_of_part(base, adapter, kept)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits_of(load_finetuned(folder), "classification"), expected, rtol=1e-4, atol=1e-5)
    assert "second" not in (folder / "adapter_config.json").read_text()


def test_mixed_ranks_tokenizer_and_bytes(tmp_path: Path, tiny_model: ModelMaker) -> None:
    source = tmp_path / "model"
    tiny_model("llama", "causal-lm")
    for file in tiny_model("llama", "causal-lm").iterdir():
        source.mkdir(exist_ok=True)
        (source / file.name).write_bytes(file.read_bytes())
    save_tiny_tokenizer(source)
    base = open_base(source, "causal-lm", lora=ALL)
    adapter = base.initial_adapter(0, (4, 2, 0))
    for name in ("one", "other"):
        save_pruned(tmp_path / name, adapter, base, card_of(base), kept_in(base))
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert Path("tokenizer.json") in files
    assert all((tmp_path / "one" / file).read_bytes() == (tmp_path / "other" / file).read_bytes() for file in files)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "one"), tmp_path / "one/adapter")
    expected = logits_of_part(base, adapter, kept_in(base))
    torch.testing.assert_close(logits_of(model, "causal-lm"), expected, rtol=1e-4, atol=1e-5)


def test_blocks_of_unequal_sizes_have_no_config(tiny_model: ModelMaker, tmp_path: Path) -> None:
    base = open_base(tiny_model("bert", "classification"), "classification", lora=ALL)
    kept = Kept(((0,), (0, 1), (1,)), CHANNELS)
    with pytest.raises(AssertionError, match="one number of heads"):
        save_pruned(tmp_path / "pruned", moved_adapter(base), base, card_of(base), kept)
    assert (BLOCKS, LABELS) == (3, 3)
    assert not list(tmp_path.iterdir())
