"""What cutlayer must know of a model family: a row of module paths, no code.

A family is added by one row here and its parity test (`tests/model/test_parity.py` runs over all rows);
`docs/adding-a-family.md` walks through one. Paths are those of the transformers class for the task, read from
the backbone (`model.<base_model_prefix>`), so one row serves causal LM and sequence classification.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cutlayer.errors import ModelError
from cutlayer.types import TaskKind

Pooling = Literal["pooler", "mean", "cls", "last"]


@dataclass(frozen=True, slots=True)
class Family:
    """One row: where the parts of a model are.

    Attributes:
      name: transformers' `config.model_type`.
      blocks: the list of transformer blocks, from the backbone.
      embeddings: the module that turns token ids into the first hidden states. The server replaces it by a feed.
      positions: tables whose output is added outside `embeddings`; zero on the server, whose input has them already.
      after_embeddings: what else acts on the embeddings before block 0 (a dropout, a projection); identity on the
        server.
      final: what follows the last block inside the backbone (norm, projection); identity on a device.
      attention: the linear projections of attention, by the last part of their path: LoRA's default targets.
      head: the modules outside the backbone that a classifier trains.
      poolings: how a sentence becomes a vector, the family's own way first.
      pooler: the backbone's own pooler, where there is one.
      tasks: what the family is for.
    """

    name: str
    blocks: str = "layers"
    embeddings: str = "embed_tokens"
    positions: tuple[str, ...] = ()
    after_embeddings: tuple[str, ...] = ()
    final: tuple[str, ...] = ("norm",)
    attention: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    head: tuple[str, ...] = ("score",)
    poolings: tuple[Pooling, ...] = ("last",)
    pooler: str | None = None
    tasks: tuple[TaskKind, ...] = ("classification", "causal-lm")


def _decoder(name: str, attention: tuple[str, ...] | None = None) -> Family:
    """The Llama shape: token embeddings, rotary positions, pre-norm blocks, a final norm."""
    return Family(name) if attention is None else Family(name, attention=attention)


FAMILIES: dict[str, Family] = {
    row.name: row
    for row in (
        Family(
            "gpt2",
            blocks="h",
            embeddings="wte",
            positions=("wpe",),
            after_embeddings=("drop",),
            final=("ln_f",),
            attention=("c_attn", "attn.c_proj"),
        ),
        _decoder("llama"),
        _decoder("mistral"),
        _decoder("qwen2"),
        _decoder("qwen3"),
        _decoder("gemma2"),
        _decoder("gemma3_text"),
        _decoder("phi3", attention=("qkv_proj", "o_proj")),
        Family(
            "opt",
            blocks="decoder.layers",
            embeddings="decoder.embed_tokens",
            positions=("decoder.embed_positions",),
            after_embeddings=("decoder.project_in",),
            final=("decoder.final_layer_norm", "decoder.project_out"),
            attention=("q_proj", "k_proj", "v_proj", "out_proj"),
        ),
        Family(
            "bert",
            blocks="encoder.layer",
            embeddings="embeddings",
            final=(),
            attention=("query", "key", "value", "attention.output.dense"),
            head=("classifier",),
            poolings=("pooler", "mean", "cls"),
            pooler="pooler",
            tasks=("classification",),
        ),
        Family(
            "roberta",
            blocks="encoder.layer",
            embeddings="embeddings",
            final=(),
            attention=("query", "key", "value", "attention.output.dense"),
            head=("classifier",),
            poolings=("pooler", "mean"),
            tasks=("classification",),
        ),
        Family(
            "distilbert",
            blocks="transformer.layer",
            embeddings="embeddings",
            final=(),
            attention=("q_lin", "k_lin", "v_lin", "out_lin"),
            head=("pre_classifier", "classifier"),
            poolings=("pooler", "mean"),
            tasks=("classification",),
        ),
    )
}


def family_of(model_type: str, task: TaskKind) -> Family:
    """The row for a model type.

    Raises:
      ModelError: No row, or the family does not do this task; says what a row needs.
    """
    row = FAMILIES.get(model_type)
    if row is None:
        raise ModelError(
            f"model: expected one of the families {', '.join(sorted(FAMILIES))}, got architecture {model_type!r}. "
            "Add a row to cutlayer/model/families.py that names its blocks, embeddings, positions, "
            "after_embeddings, final, attention and head modules (docs/adding-a-family.md), or use another model."
        )
    if task not in row.tasks:
        raise ModelError(
            f"model: expected a family that does {task}, got {model_type!r}, which does {' and '.join(row.tasks)}. "
            f"Choose --task {row.tasks[0]} or another model."
        )
    return row
