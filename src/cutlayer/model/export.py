"""The adapter as the world knows it: a PEFT folder that `PeftModel.from_pretrained` loads.

Beside PEFT's two files stands `cutlayer.json`, which says what the adapter was trained for (task, labels, pooling,
length), so that `cutlayer evaluate` and `load_finetuned` need no flags. Same adapter, same bytes: keys are sorted
and nothing of the machine or the day is written: a base that has no name of the hub is called by its fingerprint, and
found by the config.yaml of the run in whose folder the adapter's folder is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from cutlayer.errors import AdapterError
from cutlayer.files import write_folder_atomically
from cutlayer.model.adapter import PREFIX
from cutlayer.model.base import Base
from cutlayer.model.base_named import base_sentence
from cutlayer.model.card import BESIDE, CARD, AdapterCard, base_name, read_card
from cutlayer.model.families import FAMILIES, Family, family_of
from cutlayer.model.fingerprint import public_name
from cutlayer.model.pooling import install_pooling
from cutlayer.model.pretrained import pretrained
from cutlayer.model.source import ModelFiles, read_header
from cutlayer.types import Adapter

NOTE = """# A LoRA adapter made by cutlayer

Base model: `{base}`. {how}
"""
CLASSIFIER = (
    "The base is `AutoModelForSequenceClassification.from_pretrained(BASE, num_labels={labels}, "
    "ignore_mismatched_sizes=True)`: the adapter brings its own head, whatever the base's is."
)
LAST_TOKEN = (
    "The classifier reads the last token of a text. Plain transformers looks for it by a token id: set "
    "`model.config.pad_token_id` to {pad_id}, the tokenizer's, and fill texts up on the right; where texts may end in "
    "that very token (a pad token that is the end token, say), set it to None and give texts one by one. "
    "`cutlayer.load_finetuned(FOLDER)` needs neither."
)
PLAIN = "Plain PEFT loads it: `PeftModel.from_pretrained(base, FOLDER)`."
POOLED = (
    "The classifier reads the `{pooling}` of the last hidden states, which plain transformers does not compute for "
    "this model: load it with `cutlayer.load_finetuned(FOLDER)`."
)


def save_adapter(folder: Path, adapter: Mapping[str, Tensor], base: Base, card: AdapterCard) -> None:
    """Writes a PEFT folder, whole or not at all."""
    write_folder_atomically(folder, lambda temporary: fill_adapter(temporary, adapter, base, card))


def fill_adapter(folder: Path, adapter: Mapping[str, Tensor], base: Base, card: AdapterCard) -> None:
    """Puts the files of a PEFT folder into `folder`, which is there."""
    settings, named = base.settings, card.base if card.base == BESIDE else public_name(base.files)
    ranks = {_module(name): tensor.shape[0] for name, tensor in adapter.items() if ".lora_A." in name}
    rank = max(ranks.values(), default=settings.lora.rank)
    scale = settings.lora.alpha / settings.lora.rank
    # Module paths, as PEFT matches them against ends of paths, for what differs from the highest rank.
    lower = {re.escape(path): other for path, other in ranks.items() if other != rank}
    everywhere = ranks.keys() >= {_module(name) for name in base.shapes if ".lora_A." in name}
    config = LoraConfig(
        r=rank,
        lora_alpha=scale * rank,
        rank_pattern=lower,
        alpha_pattern={path: scale * other for path, other in lower.items()},
        lora_dropout=settings.lora.dropout,
        target_modules=base.target_names if everywhere else sorted(ranks),
        modules_to_save=[name.rpartition(".")[2] for name in base.trained_heads] or None,
        fan_in_fan_out=base.transposed,
        task_type="SEQ_CLS" if settings.task == "classification" else "CAUSAL_LM",
        base_model_name_or_path=None if card.base == BESIDE else named,
        revision=card.revision,
        inference_mode=True,
    )
    note = NOTE.format(base=named, how=" ".join(how_plain_peft_loads_it(base)))
    if card.base != BESIDE and (sentence := base_sentence(base.files)):
        note += f"\n{sentence}. Where the run still is, `cutlayer.load_finetuned(FOLDER)` finds it.\n"
    tensors = {name: adapter[name].detach().float().cpu().contiguous() for name in sorted(adapter)}
    (folder / "adapter_model.safetensors").write_bytes(save(tensors, {"format": "pt"}))
    (folder / "adapter_config.json").write_text(_json(config.to_dict()))
    (folder / CARD).write_text(card_text(card, named))
    (folder / "README.md").write_text(note)


def card_text(card: AdapterCard, named: str) -> str:
    """The card as a file has it, with a name for its base that means something elsewhere."""
    return _json(asdict(replace(card, base=named)))


def how_plain_peft_loads_it(base: Base) -> list[str]:
    """Sentences on what somebody without this package must know to get what the run reported."""
    settings = base.settings
    if settings.task != "classification":
        return [PLAIN]
    if base.pooling != base.family.poolings[0]:
        return [POOLED.format(pooling=base.pooling)]
    return [PLAIN, CLASSIFIER.format(labels=settings.num_labels), *how_texts_end(base)]


def how_texts_end(base: Base) -> list[str]:
    """Sentences on what plain transformers must be told of a decoder's classifier: one; of other models none."""
    if base.settings.task != "classification" or base.pooling != "last":
        return []
    return [LAST_TOKEN.format(pad_id=base.settings.pad_id)]


def _module(name: str) -> str:
    """The path of the module that a LoRA factor belongs to."""
    return name.removeprefix(PREFIX).partition(".lora_")[0]


def _json(value: dict[str, Any]) -> str:
    """JSON, sorted and stable: PEFT holds the target modules as a set, whose order differs from process to process."""
    return json.dumps(value, indent=2, sort_keys=True, default=sorted) + "\n"


def base_files(card: AdapterCard, given: str | None, where: str) -> ModelFiles:
    """The files of the base of an adapter.

    Args:
      card: The adapter's.
      given: What a person says that the base is; None for what the card says.
      where: By which a message names the adapter.

    Raises:
      AdapterError: It has no name that leads to it, and nobody says where it is.
      ModelError: There is no such model.
    """
    return ModelFiles(base_name(card, given, where), None if given else card.revision)


def read_adapter(folder: Path, base: Base) -> Adapter:
    """The adapter's tensors, checked against what `base` trains.

    Raises:
      AdapterError: Not a safetensors file, or other names or shapes than this model's.
    """
    path = folder / "adapter_model.safetensors"
    try:
        with safe_open(path, framework="pt") as file:
            adapter: Adapter = {name: file.get_tensor(name).to(base.device) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"{path}: expected a safetensors file, got {error}. Export the run again.") from error
    got = {name: tuple(value.shape) for name, value in adapter.items()}
    expected = base.shapes_of(_ranks_of(adapter, base))
    if got != expected:
        other = sorted(got.items() ^ expected.items())[0]
        raise AdapterError(
            f"{path}: expected the {len(expected)} tensors that this model trains, got {len(got)}, first difference "
            f"{other[0]} {other[1]}. Use the base model and LoRA settings that the adapter was trained with."
        )
    return adapter


def _ranks_of(adapter: Mapping[str, Tensor], base: Base) -> tuple[int, ...]:
    """The ranks that the adapter has, if the run's is the highest; by module where those of a block differ."""
    blocks = [0] * base.num_blocks
    for name in base.modules:
        if name in adapter and (block := base.block_of(name)) is not None:
            blocks[block] = max(blocks[block], adapter[name].shape[0])
    if max(blocks) != base.settings.lora.rank:
        return ()
    if 0 in blocks or not adapter.keys() >= set(base.modules):
        return tuple(blocks)
    return tuple(adapter[name].shape[0] for name in base.modules)


def load_finetuned(folder: str | Path, base: str | Path | None = None) -> PeftModel:
    """The base model with an adapter of ours on it, its pooling installed, ready to use: a `PeftModel` in eval mode.

    Args:
      folder: The adapter's.
      base: The base model, where the adapter's folder is not in its run's any more and the base has no hub name.

    Raises:
      AdapterError: The folder holds no adapter of ours, or nothing says where its base is.

    Example:
      >>> import tempfile
      >>> from pathlib import Path
      >>> from cutlayer import load_finetuned, simulate
      >>> from cutlayer.testing.tiny import save_inputs
      >>> here = save_inputs(Path(tempfile.mkdtemp()), rows=24)
      >>> data, train = {"path": here / "data", "max_length": 16}, {"rounds": 1, "local_steps": 1, "batch_size": 4}
      >>> outcome = simulate(model=here / "model", data=data, train=train, out=here / "run")
      >>> load_finetuned(outcome.adapter).config.id2label
      {0: 'bad', 1: 'fair', 2: 'good'}
    """
    path = Path(folder)
    card = read_card(path)
    files = base_files(card, None if base is None else str(base), f"adapter {path}")
    if card.task == "causal-lm":
        return PeftModel.from_pretrained(pretrained(files, AutoModelForCausalLM), path).eval()
    brought = {name.removeprefix(PREFIX) for name in read_header(path / "adapter_model.safetensors")[1]}
    model = pretrained(files, AutoModelForSequenceClassification, brought, num_labels=len(card.labels))
    model.config.id2label = dict(enumerate(card.labels))
    model.config.label2id = {label: index for index, label in enumerate(card.labels)}
    known = card.own_family or FAMILIES.get(files.model_type)
    family = family_of(files.model_type, "classification", known or Family(files.model_type))  # else recognised
    if card.pooling == "last" and getattr(model.config, "pad_token_id", None) is None:
        model.config.pad_token_id = card.pad_id
    install_pooling(model, family, card.pooling)  # type: ignore[arg-type]
    return PeftModel.from_pretrained(model, path).eval()
