"""Tokens that a curious server reads back from the activations that a device sends at a cut.

    python benchmarks/read_back.py --data FOLDER

The plainest attack there is: for each token's activations, the row of the model's own embedding table that is nearest
by cosine, after the mean over all tokens is taken from the activations and the mean row from the table. It learns
nothing and needs nothing but the public base model. What it names is the least that an attacker reads. A line for each
cut: how many tokens it names exactly, as activations leave the device in fp32 and as int8 packs them.

Texts are the first sentences of a folder's validation set (SST-2, say), the model is MiniLM as it is downloaded:
adapters move little of what the lowest blocks pass on.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cutlayer.data.source import load_validation
from cutlayer.model.base import Base
from cutlayer.model.part import model_inputs
from cutlayer.model.place import MINILM
from cutlayer.model.settings import ModelSettings
from cutlayer.report.listing import Listing
from cutlayer.settings import load_tokenizer
from cutlayer.types import Batch
from cutlayer.wire.codecs import AsItIs, Codec, Int8
from tables import publish

CODECS: tuple[Codec, ...] = (AsItIs(), Int8())


@dataclass(frozen=True)
class Read:
    """The share of tokens that is read at a cut.

    Attributes:
      cut: blocks on the device.
      tokens: how many there were, without those that every text has.
      named: by codec, the share of tokens that are named exactly.
    """

    cut: int
    tokens: int
    named: dict[str, float]


def named(h_ND: Tensor, table_VD: Tensor, ids_N: Tensor) -> float:
    """The share of tokens whose row of the table is the nearest to their activations."""
    h_ND, table_VD = (normalize(rows - rows.mean(0), dim=-1) for rows in (h_ND, table_VD))
    guessed_N = torch.cat([(some @ table_VD.T).argmax(-1) for some in h_ND.split(256)])
    return float((guessed_N == ids_N).float().mean())


def read_back(base: Base, batch: Batch, common: Sequence[int], cuts: Sequence[int]) -> list[Read]:
    """Reads a batch back at each cut.

    Args:
      base: The model.
      batch: Texts.
      common: Tokens that every text has, which are not counted.
      cuts: Where the model is cut.
    """
    table_VD = base.weights.get(next(name for name in base.parameter_names if name.endswith("word_embeddings.weight")))
    told_BT = batch.attention_mask_BT.bool() & ~torch.isin(batch.input_ids_BT, torch.tensor(list(common)))
    reads = []
    for cut in cuts:
        with torch.no_grad():
            h_BTD = base.device_part(cut, frozenset()).forward(model_inputs(batch, base.device))
        shares = {}
        for codec in CODECS:
            arrived = codec.unpack(codec.pack(h_BTD), h_BTD.shape, h_BTD.dtype)
            shares[codec.name] = named(arrived[told_BT].float(), table_VD.float(), batch.input_ids_BT[told_BT])
        reads.append(Read(cut, int(told_BT.sum()), shares))
    return reads


def as_table(reads: Sequence[Read]) -> Listing:
    table = Listing("blocks on the device", "tokens", "named", "named, packed as int8")
    for read in reads:
        table.add_row(str(read.cut), str(read.tokens), *(f"{read.named[codec.name]:.0%}" for codec in CODECS))
    return table


def batch_of(base: Base, texts: Sequence[str], max_length: int = 64) -> tuple[Batch, list[int]]:
    """The texts as a batch, and the tokens that the tokenizer puts into each."""
    tokenizer = load_tokenizer(base.files)
    made = tokenizer(list(texts), padding=True, truncation=True, max_length=max_length, return_tensors="pt")
    labels, rows = torch.zeros(len(texts), dtype=torch.long), tuple(range(len(texts)))
    return Batch(made["input_ids"], made["attention_mask"], labels, None, rows, len(texts)), tokenizer.all_special_ids


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="a folder with a data set in each folder")
    parser.add_argument("--set", default="sst2", help="which one")
    parser.add_argument("--column", default="sentence", help="its text")
    parser.add_argument("--texts", type=int, default=200)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/read_back.json"))
    chosen = parser.parse_args()
    base = Base(ModelSettings(MINILM, "classification", num_labels=2))
    texts = load_validation(str(chosen.data / chosen.set)).cells(chosen.column)[: chosen.texts]
    batch, common = batch_of(base, texts)
    reads = read_back(base, batch, common, range(1, base.num_blocks))
    publish([as_table(reads)], chosen.json, vars(chosen), {"reads": [asdict(read) for read in reads]})


if __name__ == "__main__":
    main()
