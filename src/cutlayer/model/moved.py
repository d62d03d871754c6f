"""A model whose own weights were moved by sums of seeded noise: the model, and the few kilobytes that make it.

model/config.json, model.safetensors    the whole model as transformers loads it, a trained head in it
model/tokenizer*, vocab*, ...           as they came with the base
model/sums.safetensors                  K sums; with the seeds, which a number gives, and the base they are the model
model/README.md                         how to load the one, and make the other
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from cutlayer.errors import ModelError
from cutlayer.files import write_folder_atomically
from cutlayer.model.adapter import PREFIX
from cutlayer.model.base import Base
from cutlayer.model.card import AdapterCard
from cutlayer.model.fingerprint import public_name
from cutlayer.model.pretrained import config_of
from cutlayer.model.pruned import TOKENIZER_FILES, described
from cutlayer.model.standing import Standing
from cutlayer.types import Adapter

MADE_FROM = "made_from"
"""The entry in the header of the sums that says what their seeds are made from, as JSON."""
SUMS = "sums.safetensors"
NOTE = """# A model tuned by cutlayer along seeds

`{base}`, all of whose weights have moved. transformers loads this folder as any other.

`sums.safetensors` ({kilobytes:.1f} kB) says the same: with the base model it makes these weights again, to the bit.

    from cutlayer.methods.fedkseed import rebuilt
    weights = rebuilt(base, Path("sums.safetensors")).tensors
"""


def save_moved(folder: Path, base: Base, standing: Standing, facts: Mapping[str, Any], card: AdapterCard) -> None:
    """Writes the model as it stands, and its sums, whole or not at all.

    Args:
      folder: Where to.
      base: The model.
      standing: Its weights, at the end of the run.
      facts: What the seeds are made from, and what the trainable tensors began as: `seed`, `count`, `run_seed`.
      card: What the model was trained for.
    """
    tensors: Adapter = {}
    for name in base.parameter_names:
        trained = standing.tensors.get(f"{PREFIX}{name}")
        if trained is None and name not in base.weights:
            continue  # a pooler that neither the base nor the run has
        stored = base.weights.get(name) if trained is None else trained.to(base.dtype)
        tensors[name] = stored.detach().cpu().contiguous()
    # one entry for all facts: safetensors writes several in another order each time
    sums = save({"sums": standing.sums}, {MADE_FROM: json.dumps(facts)})

    config = described(config_of(base.files), base, card)

    def fill(temporary: Path) -> None:
        (temporary / "config.json").write_text(config.to_json_string())
        (temporary / "model.safetensors").write_bytes(save(tensors, {"format": "pt"}))
        (temporary / SUMS).write_bytes(sums)
        (temporary / "README.md").write_text(NOTE.format(base=public_name(base.files), kilobytes=len(sums) / 1000))
        for filename in TOKENIZER_FILES:
            if (source := base.files.find(filename)) is not None:
                (temporary / filename).write_bytes(source.read_bytes())

    write_folder_atomically(folder, fill)


def read_sums(path: Path) -> tuple[Tensor, dict[str, Any]]:
    """The sums in a file that `save_moved` wrote, fp32 (K,), and what their seeds are made from.

    Raises:
      ModelError: There is no such file, or it is none.
    """
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()[MADE_FROM])
            return file.get_tensor("sums"), facts
    except (OSError, SafetensorError, ValueError, LookupError, TypeError) as error:
        raise ModelError(f"{path}: expected sums of seeds, got {error}. Copy the file of the run again.") from error
