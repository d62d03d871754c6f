"""The whole model with an adapter merged into it, as transformers and every server of models loads it.

DIR/config.json, generation_config.json     the base's, with the classes of a classifier
DIR/model*.safetensors                      W + s B A, computed in fp32 and rounded once to the dtype asked for
DIR/tokenizer*, chat_template.jinja, ...    as `model/portable.py` has them
DIR/cutlayer.json                           what the adapter was trained for, and how it is asked
DIR/README.md                               the model card

Tensors are merged one by one, so that the process holds the whole model at no time: at most one file of weights.

Shapes: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from cutlayer.errors import AdapterError
from cutlayer.files import write_folder_atomically
from cutlayer.model.adapter import PREFIX
from cutlayer.model.base import Base
from cutlayer.model.card import CARD, AdapterCard
from cutlayer.model.export import card_text
from cutlayer.model.fingerprint import public_name
from cutlayer.model.generate import generation_config
from cutlayer.model.part import model_inputs
from cutlayer.model.pooling import install_pooling
from cutlayer.model.portable import copy_tokenizer
from cutlayer.model.pretrained import config_of
from cutlayer.model.pruned import described
from cutlayer.model.skeleton import model_class
from cutlayer.model.source import DTYPES, INDEX
from cutlayer.types import Adapter, Batch

SHARD_BYTES = 4 * 2**30
TOLERANCES = {"fp32": 1e-4, "fp16": 0.02, "bf16": 0.1}
"""The most that logits of the merged model may differ from those of base + adapter, as a fraction of the largest of
them: every weight is rounded once, to 24, 11 or 8 bits, and what that does to logits grows with the depth of the
model."""


def merged_tensors(base: Base, adapter: Mapping[str, Tensor], dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """The tensors of the merged model by the names of its state dict, one after the other, a tied one once.

    Args:
      base: On which the adapter stands.
      adapter: In the base's scale.
      dtype: To which each is rounded.
    """
    scale = base.settings.lora.alpha / base.settings.lora.rank
    for name in base.parameter_names:
        trained = adapter.get(f"{PREFIX}{name}")
        if trained is None and name not in base.weights:
            continue  # a pooler that neither the base nor the run has
        value = _frozen(base, name) if trained is None else trained.cpu()
        owner = f"{PREFIX}{name.removesuffix('.weight')}"
        if (a := f"{owner}.lora_A.weight") in adapter:
            delta = scale * (adapter[f"{owner}.lora_B.weight"].cpu() @ adapter[a].cpu())
            value = value.float() + (delta.T if base.transposed else delta)
        yield name, value.to(dtype).contiguous()


def _frozen(base: Base, name: str) -> Tensor:
    """The tensor that the adapter was trained on: where it was rounded to a form, what layers computed with."""
    form = base.forms.get(name)
    if form is None:
        return base.weights.read(name)
    return form.dense(*base.weights.rounded(name), torch.float32)


def save_merged(
    folder: Path, adapter: Mapping[str, Tensor], base: Base, card: AdapterCard, *, dtype: str, readme: str
) -> None:
    """Writes the folder, whole or not at all.

    Args:
      folder: Where to.
      adapter: In the base's scale.
      base: What it was trained on.
      card: What it was trained for.
      dtype: Of the weights: fp32, bf16 or fp16.
      readme: The model card.
    """
    config = described(config_of(base.files), base, card)
    config.dtype = DTYPES[dtype]

    def fill(temporary: Path) -> None:
        (temporary / "config.json").write_text(config.to_json_string())
        if base.settings.task == "causal-lm":
            generation_config(base).save_pretrained(temporary)
        copy_tokenizer(base.files, temporary, card)
        (temporary / CARD).write_text(card_text(card, public_name(base.files)))
        (temporary / "README.md").write_text(readme)
        _save_sharded(temporary, merged_tensors(base, adapter, DTYPES[dtype]))

    write_folder_atomically(folder, fill)


def _save_sharded(folder: Path, tensors: Iterator[tuple[str, Tensor]]) -> None:
    shards: list[list[str]] = []
    held: Adapter = {}
    total = 0

    def write() -> None:
        save_file(held, folder / f"{len(shards)}.part", {"format": "pt"})
        shards.append(list(held))
        held.clear()

    for name, value in tensors:
        if held and sum(one.nbytes for one in held.values()) + value.nbytes > SHARD_BYTES:
            write()
        held[name] = value
        total += value.nbytes
    write()
    if len(shards) == 1:
        (folder / "0.part").rename(folder / "model.safetensors")
        return
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards):
        filename = f"model-{number + 1:05}-of-{len(shards):05}.safetensors"
        (folder / f"{number}.part").rename(folder / filename)
        weight_map |= dict.fromkeys(names, filename)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


@dataclass(frozen=True, slots=True)
class Agreement:
    """The agreement of a merged model with its base that has the adapter on it.

    Attributes:
      difference: the largest between two logits.
      largest: the largest logit, without its sign.
      same: the fraction of places at which both choose the same.
      samples: how many samples were run.
    """

    difference: float
    largest: float
    same: float
    samples: int

    def __str__(self) -> str:
        return (
            f"largest difference of a logit {self.difference:.3g} (largest logit {self.largest:.3g}), "
            f"the same choice at {self.same:.1%}"
        )


@torch.inference_mode()
def agreement(folder: Path, adapter: Adapter, base: Base, batches: Sequence[Batch], *, dtype: str) -> Agreement:
    """Runs the merged model, as transformers loads it, beside base + adapter.

    Args:
      folder: Of the merged model.
      adapter: In the base's scale.
      base: Computes in fp32.
      batches: To run both on.
      dtype: Of the merged model.

    Raises:
      AdapterError: They differ by more than rounding does.
    """
    merged = model_class(base.settings.task).from_pretrained(folder, dtype=DTYPES[dtype], trust_remote_code=False)
    merged = merged.to(base.device).eval()
    if base.pooling == "last" and base.settings.task == "classification":
        install_pooling(merged, base.family, base.pooling)  # both read the end of a text by the mask
    part = base.whole(base.blocks_in(adapter))
    part.use(adapter)
    part.model.eval()
    difference = largest = 0.0
    same = places = samples = 0
    for batch in batches:
        inputs = model_inputs(batch, base.device)
        ours = part.model(**inputs).logits
        theirs = merged(**inputs).logits.float()
        if ours.dim() == 3:
            mask_BT = batch.attention_mask_BT.bool().to(base.device)
            ours, theirs = ours[mask_BT], theirs[mask_BT]
        difference = max(difference, float((ours - theirs).abs().max()))
        largest = max(largest, float(ours.abs().max()))
        same += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
        places += ours.shape[0]
        samples += len(batch.input_ids_BT)
    part.model.train()
    found = Agreement(difference, largest, same / places, samples)
    if not difference <= TOLERANCES[dtype] * largest:
        raise AdapterError(
            f"{folder}: expected the logits of base + adapter but for rounding to {dtype}, got {found}. "
            "Export it in fp32; if that differs too, please report it."
        )
    return found
