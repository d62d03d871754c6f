"""Rows of module paths: all that cutlayer must know of a model family, and no code.

A family is added by one row here and its parity test (`tests/model/test_parity.py` runs over all rows), or, without
touching this package, by a YAML file of the same fields (`model.family`); `docs/adding-a-family.md` walks through both.
A model that is built like Llama needs neither: `model/recognised.py`.
Paths are those of the transformers class for the task, read from
the backbone (`model.<base_model_prefix>`), so one row serves causal LM and sequence classification.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from cutlayer.errors import ModelError
from cutlayer.reading import TaskKind, local, read_yaml

Pooling = Literal["pooler", "mean", "cls", "last"]
BlockOutput = Literal["hidden", "pair"]
"""The output of a block: the hidden states, or these and something that is not used."""


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
      between: optional modules that act between two blocks, where no part could run them; a model that has one is
        refused.
      shared_table: a table that each block projects by its own trained weights, beside what comes from below: their
        gradients cannot be deferred, nor can several adapters run at once.
      block_output: what a block returns.
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
    between: tuple[str, ...] = ()
    shared_table: str | None = None
    block_output: BlockOutput = "hidden"
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


_ROBERTA = Family(
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
)

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
        replace(_ROBERTA, name="bert", poolings=("pooler", "mean", "cls"), pooler="pooler"),
        _ROBERTA,
        replace(_ROBERTA, name="xlm-roberta"),
        Family(
            "modernbert",
            embeddings="embeddings",
            final=("final_norm",),
            attention=("attn.Wqkv", "attn.Wo"),
            qkv=("attn.Wqkv",),
            attention_output="attn.Wo",
            ffn_inputs=("mlp.Wi",),
            ffn_output="mlp.Wo",
            head_width=None,
            head=("head", "classifier"),
            poolings=("pooler",),
            tasks=("classification",),
        ),
        Family(
            "deberta-v2",
            blocks="encoder.layer",
            embeddings="embeddings",
            between=("encoder.conv",),
            shared_table="encoder.rel_embeddings",
            block_output="pair",
            final=(),
            attention=("query_proj", "key_proj", "value_proj", "attention.output.dense"),
            qkv=("attention.self.query_proj", "attention.self.key_proj", "attention.self.value_proj"),
            attention_output="attention.output.dense",
            ffn_inputs=("intermediate.dense",),
            ffn_output="output.dense",
            head_counts=("num_attention_heads",),
            head_width=None,
            head=("pooler", "classifier"),
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


def family_of(model_type: str, task: TaskKind, own: Family | None = None) -> Family:
    """The row for a model type.

    Args:
      model_type: As the model's config.json says it.
      task: What the model is wanted for.
      own: A row of somebody's own, which comes before those of the table.

    Raises:
      ModelError: No row, or the family does not do this task; says what a row needs.
    """
    if own is not None and own.name != model_type:
        raise ModelError(
            f"model.family: expected the family of this model, whose config.json says {model_type!r}, got one with the "
            f"name {own.name!r}. Correct the name, or leave model.family out."
        )
    row = own or FAMILIES.get(model_type)
    if row is None:
        raise ModelError(
            f"model: expected one of the families {', '.join(sorted(FAMILIES))}, got architecture {model_type!r}. "
            "Name its blocks, embeddings, positions, after_embeddings, final, attention and head modules in a file and "
            "give that as --family (docs/adding-a-family.md), or use another model."
        )
    if task not in row.tasks:
        raise ModelError(
            f"model: expected a family that does {task}, got {model_type!r}, which does {' and '.join(row.tasks)}. "
            f"Choose --task {row.tasks[0]} or another model."
        )
    return row


def read_family(given: str | Mapping[str, Any]) -> Family:
    """A row of somebody's own.

    Args:
      given: A YAML file with the fields of `Family`, or its content. `name` must be there; what is not has the value
        of Llama and its relatives.

    Raises:
      ModelError: No such file, or a field that is none.

    Example:
      >>> read_family({"name": "olmo2", "tasks": ["causal-lm"]}).blocks
      'layers'
    """
    where, content = ("model.family", given) if isinstance(given, Mapping) else (given, _read(Path(given)))
    known = [field.name for field in fields(Family)]
    for key in content:
        if key not in known:
            close = get_close_matches(str(key), known, n=1)
            hint = f"Did you mean {close[0]!r}?" if close else "Remove it."
            raise ModelError(f"{where}: expected one of {', '.join(known)}, got the key {key!r}. {hint}")
    if "name" not in content:
        raise ModelError(f"{where}: expected a name, which is model_type in the model's config.json, got none. Add it.")
    hints = get_type_hints(Family)
    return Family(**{key: _value(f"{where}: {key}", hints[key], value) for key, value in content.items()})


def family_content(row: Family) -> dict[str, Any]:
    """The row as a YAML file would say it, every field: `read_family` makes the same of it."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(row).items()}


def _read(path: Path) -> Mapping[str, Any]:
    content = read_yaml(local(path), str(path), ModelError)
    if not isinstance(content, Mapping):
        raise ModelError(f"{path}: expected fields such as name: and blocks:, got {content!r}. See adding-a-family.md.")
    return content


def _value(where: str, hint: Any, value: Any) -> Any:
    """A field's value, of the type that the row has."""
    words = get_args(hint)
    several = words[-1:] == (...,)
    if several and isinstance(value, list | tuple):
        allowed = get_args(words[0])
        if all(isinstance(one, str) and (not allowed or one in allowed) for one in value) and (value or not allowed):
            return tuple(value)
        expected = f"a list of {', '.join(allowed)}" if allowed else "a list of names"
    elif several:
        expected = "a list of names"
    elif words and all(isinstance(word, str) for word in words):
        if value in words:
            return value
        expected = f"one of {', '.join(words)}"
    elif isinstance(value, str) or (value is None and type(None) in words):
        return value
    else:
        expected = "a name or null" if words else "a name"
    raise ModelError(f"{where}: expected {expected}, got {value!r}. Change it.")
