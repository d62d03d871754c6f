"""A pruned model as the world knows it: a folder that transformers loads, with its adapter in a folder inside.

    pruned/config.json, model.safetensors    the base without what was removed, and the trained head
    pruned/tokenizer*, vocab*, ...           as they came with the base
    pruned/structure.json                    which heads and channels of the base are left
    pruned/adapter/                          the PEFT adapter, of the pruned sizes

A config says one number of heads and one of channels for all blocks, so a structure must have as many in each. Where a
family's config cannot say fewer heads (BERT's width of a head is the hidden width over their number), the heads that
were removed stay in the file as zeros: the result is the same, their time and memory are not saved, and README.md says
so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from cutlayer.files import write_folder_atomically
from cutlayer.model.adapter import PREFIX
from cutlayer.model.base import Base
from cutlayer.model.card import BESIDE, AdapterCard
from cutlayer.model.export import fill_adapter
from cutlayer.model.fingerprint import public_name
from cutlayer.model.pretrained import config_of
from cutlayer.model.skeleton import model_class
from cutlayer.types import Adapter, Kept

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "spm.model",
)
NOTE = """# A pruned model made by cutlayer

`{base}` with {heads} of {all_heads} attention heads and {channels} of {all_channels} FFN channels in each block.
Load it with transformers, and the adapter on it with `PeftModel.from_pretrained(model, "adapter")`.
"""
SHARED = "Heads that share a key and a value count as one.\n"
ZEROED = (
    "The config of this family cannot say that there are fewer heads, so those that were removed are still there, as "
    "zeros: they change nothing and cost what they did before. `structure.json` says which they are.\n"
)


def save_pruned(folder: Path, adapter: Mapping[str, Tensor], base: Base, card: AdapterCard, kept: Kept) -> None:
    """Writes the pruned model and its adapter, whole or not at all.

    Args:
      folder: Where to.
      adapter: The full adapter, of the unpruned sizes.
      base: The unpruned model.
      card: What the adapter was trained for.
      kept: What is left; as many heads and channels in each block.
    """
    structure, whole_heads = base.structure, base.family.head_width is None
    heads, channels = len(kept.heads[0]), len(kept.channels[0])
    assert {len(units) for units in kept.heads} == {heads}, "a config says one number of heads for all blocks"
    assert {len(units) for units in kept.channels} == {channels}, "and one of channels"
    stored = replace(kept, heads=structure.everything.heads) if whole_heads else kept
    removed = replace(structure.everything, heads=kept.heads)

    def shrunk(name: str, tensor: Tensor) -> Tensor:
        """The part of a tensor that goes into the file."""
        if whole_heads and (place := structure.where(name, removed)) is not None:
            axis, positions = place
            positions = positions.to(tensor.device)
            tensor = torch.zeros_like(tensor).index_copy_(axis, positions, tensor.index_select(axis, positions))
        return structure.slice(name, tensor, stored).detach().cpu().contiguous()

    model: Adapter = {}
    for name in base.parameter_names:
        trained = adapter.get(f"{PREFIX}{name}")
        if trained is None and name not in base.weights:
            continue  # a pooler that neither the base nor the run has
        model[name] = shrunk(name, base.weights.get(name) if trained is None else trained.to(base.dtype))
    counts = structure.counts
    note = NOTE.format(
        base=public_name(base.files),
        heads=heads,
        all_heads=counts["heads"],
        channels=channels,
        all_channels=counts["channels"],
    )
    if base.config.num_attention_heads != counts["heads"]:
        note += SHARED
    if whole_heads and heads != counts["heads"]:
        note += ZEROED

    def fill(temporary: Path) -> None:
        (temporary / "config.json").write_text(_config(base, card, stored).to_json_string())
        (temporary / "model.safetensors").write_bytes(save(model, {"format": "pt"}))
        (temporary / "structure.json").write_text(json.dumps(asdict(kept)) + "\n")
        (temporary / "README.md").write_text(note)
        for filename in TOKENIZER_FILES:
            if (source := base.files.find(filename)) is not None:
                (temporary / filename).write_bytes(source.read_bytes())
        (temporary / "adapter").mkdir()
        factors = {name: shrunk(name, tensor) for name, tensor in adapter.items()}
        fill_adapter(temporary / "adapter", factors, base, replace(card, base=BESIDE))

    write_folder_atomically(folder, fill)


def _config(base: Base, card: AdapterCard, stored: Kept) -> Any:
    """The config of the base, with the sizes of what is stored."""
    config = config_of(base.files)
    family, heads = base.family, len(stored.heads[0])
    setattr(config, family.ffn_width, len(stored.channels[0]))
    if family.head_width is not None:
        width = getattr(config, family.head_width, None) or config.hidden_size // config.num_attention_heads
        shared = config.num_attention_heads // base.structure.counts["heads"]
        setattr(config, family.head_width, width)
        config.num_attention_heads = heads * shared
        config.num_key_value_heads = heads
    return described(config, base, card)


def described(config: Any, base: Base, card: AdapterCard) -> Any:
    """A config with what a run has added: classes, the id that pads a decoder's texts, the model's class, its dtype."""
    if card.labels:
        config.id2label = dict(enumerate(card.labels))
        config.label2id = {label: number for number, label in enumerate(card.labels)}
    if base.family.poolings[0] == "last":  # where transformers looks for a text's end; an encoder's says more
        config.pad_token_id = card.pad_id
    config.tie_word_embeddings = base.config.tie_word_embeddings  # not where the checkpoint has a head of its own
    config.architectures = [model_class(base.settings.task)._model_mapping[type(config)].__name__]
    config.dtype = base.dtype
    return config
