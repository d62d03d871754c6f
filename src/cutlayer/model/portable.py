"""An adapter for programs that know one rank and one alpha: llama.cpp, vLLM, and whatever reads a folder as they do.

Our adapters may have another rank on every module, at one scale for all (docs/decisions/0009-one-scale.md); PEFT reads
that from its patterns. llama.cpp takes the one `lora_alpha` over each tensor's own rank and would make a block of rank
1 in an adapter of rank 8 eight times too strong; vLLM takes the one alpha over the one rank. So factors of lower ranks
are filled up with zeros: B A stays what it was, and alpha over rank is the scale everywhere.

DIR/adapter_model.safetensors, adapter_config.json    one rank, one alpha, no patterns
DIR/tokenizer*, ...                                   as they came with the base
DIR/chat_template.jinja                               the one that it was trained with
DIR/cutlayer.json                                     what the adapter was trained for
DIR/README.md                                         the model card (`model/model_card.py`)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from cutlayer.files import write_folder_atomically
from cutlayer.model.base import Base
from cutlayer.model.card import BESIDE, AdapterCard
from cutlayer.model.export import fill_adapter
from cutlayer.model.low_rank import factor_names
from cutlayer.model.pruned import TOKENIZER_FILES
from cutlayer.model.source import ModelFiles
from cutlayer.types import Adapter

TEMPLATE_FILE = "chat_template.jinja"
"""The file in which transformers looks for a chat template first."""
VLLM_REFUSES = (
    "a trained head ({heads}) is stored in full (`modules_to_save`), which vLLM refuses: serve the merged model there"
)


def one_rank(adapter: Mapping[str, Tensor]) -> Adapter:
    """The same adapter at the highest rank that it has, by zeros in the factors of lower ones.

    Example:
      >>> import torch
      >>> low = {"x.lora_A.weight": torch.ones(1, 3), "x.lora_B.weight": torch.ones(2, 1)}
      >>> wide = one_rank(low | {"y.lora_A.weight": torch.ones(4, 3), "y.lora_B.weight": torch.ones(2, 4)})
      >>> [tuple(wide[f"x.lora_{factor}.weight"].shape) for factor in "AB"]
      [(4, 3), (2, 4)]
    """
    result = dict(adapter)
    names = factor_names(adapter)
    rank = max((adapter[a].shape[0] for _, a in names), default=0)
    for b, a in names:
        missing = rank - adapter[a].shape[0]
        result[a] = torch.nn.functional.pad(adapter[a], (0, 0, 0, missing))
        result[b] = torch.nn.functional.pad(adapter[b], (0, missing))
    return result


def refused_by_vllm(base: Base) -> str | None:
    """A line on what vLLM refuses in an adapter on this base; None for nothing."""
    heads = ", ".join(base.trained_heads)
    return VLLM_REFUSES.format(heads=heads) if heads else None


def copy_tokenizer(files: ModelFiles, folder: Path, card: AdapterCard) -> None:
    """Puts the tokenizer's files into a folder, with the template that chats were trained in: what others ask it by.

    Args:
      files: Of the base.
      folder: Which is there.
      card: Of the adapter; the tokenizer's own template stays where it was trained in the plain form, or on no chats.
    """
    for filename in TOKENIZER_FILES:
        if (source := files.find(filename)) is not None:
            (folder / filename).write_bytes(source.read_bytes())
    if card.template is not None and card.separator is None:
        (folder / TEMPLATE_FILE).write_text(card.template)


def save_portable(folder: Path, adapter: Mapping[str, Tensor], base: Base, card: AdapterCard, readme: str) -> None:
    """Writes the folder, whole or not at all.

    Args:
      folder: Where to.
      adapter: Of any ranks, in the base's scale.
      base: What it was trained on.
      card: What it was trained for.
      readme: The model card.
    """

    def fill(temporary: Path) -> None:
        own = replace(card, base=base.settings.name) if card.base == BESIDE else card
        fill_adapter(temporary, one_rank(adapter), base, own)
        copy_tokenizer(base.files, temporary, card)
        (temporary / "README.md").write_text(readme)

    write_folder_atomically(folder, fill)
