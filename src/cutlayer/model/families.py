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
      qkv: inside a block, what makes queries, keys and values: three projections, or one for all three. With the
        next three what `model/structure.py` prunes by.
      attention_output: the projection that takes the heads' output.
      ffn_inputs: what makes the FFN's channels, gate and up in one or in two.
      ffn_output: the projection that takes the FFN's channels.
      head_counts: attributes by which attention's forward counts its heads (`config.` for those of its config);
        they shrink with its heads. Most families count what the projections give.
      head_width: the config's word for the width of a head, so that it can say that there are fewer of them; None
        where it is the hidden width over the number of heads.
      ffn_width: the config's word for the number of FFN channels.
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
    qkv: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    attention_output: str = "self_attn.o_proj"
    ffn_inputs: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    ffn_output: str = "mlp.down_proj"
    head_counts: tuple[str, ...] = ()
    head_width: str | None = "head_dim"
    ffn_width: str = "intermediate_size"
    head: tuple[str, ...] = ("score",)
    poolings: tuple[Pooling, ...] = ("last",)
    pooler: str | None = None
    tasks: tuple[TaskKind, ...] = ("classification", "causal-lm")


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
            qkv=("attn.c_attn",),
            attention_output="attn.c_proj",
            ffn_inputs=("mlp.c_fc",),
            ffn_output="mlp.c_proj",
            head_counts=("num_heads", "split_size"),
            head_width=None,
            ffn_width="n_inner",
        ),
        Family("llama"),
        Family("mistral"),
        Family("qwen2"),
        Family("qwen3"),
        Family("gemma2"),
        Family("gemma3_text"),
        Family(
            "phi3",
            attention=("qkv_proj", "o_proj"),
            qkv=("self_attn.qkv_proj",),
            ffn_inputs=("mlp.gate_up_proj",),
            head_counts=("config.num_attention_heads", "num_key_value_heads"),
        ),
        Family(
            "opt",
            blocks="decoder.layers",
            embeddings="decoder.embed_tokens",
            positions=("decoder.embed_positions",),
            after_embeddings=("decoder.project_in",),
            final=("decoder.final_layer_norm", "decoder.project_out"),
            attention=("q_proj", "k_proj", "v_proj", "out_proj"),
            attention_output="self_attn.out_proj",
            ffn_inputs=("fc1",),
            ffn_output="fc2",
            head_counts=("num_heads",),
            head_width=None,
            ffn_width="ffn_dim",
        ),
        Family(
            "bert",
            blocks="encoder.layer",
            embeddings="embeddings",
            final=(),
            attention=("query", "key", "value", "attention.output.dense"),
            qkv=("attention.self.query", "attention.self.key", "attention.self.value"),
            attention_output="attention.output.dense",
            ffn_inputs=("intermediate.dense",),
            ffn_output="output.dense",
            head_width=None,
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
            qkv=("attention.self.query", "attention.self.key", "attention.self.value"),
            attention_output="attention.output.dense",
            ffn_inputs=("intermediate.dense",),
            ffn_output="output.dense",
            head_width=None,
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
            qkv=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
            attention_output="attention.out_lin",
            ffn_inputs=("ffn.lin1",),
            ffn_output="ffn.lin2",
            head_width=None,
            ffn_width="hidden_dim",
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
