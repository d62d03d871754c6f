"""Tiny random models of every family, saved as a user would find them: config.json and model.safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    DistilBertConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
)

from cutlayer.types import Batch

VOCABULARY, BLOCKS, LABELS = 64, 3, 3

_DECODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_ENCODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}

CONFIGS: dict[str, Any] = {
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=16,
        n_layer=BLOCKS,
        n_head=4,
        n_positions=64,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "llama": lambda: LlamaConfig(**_DECODER),
    "mistral": lambda: MistralConfig(**_DECODER, sliding_window=4),
    "qwen2": lambda: Qwen2Config(**_DECODER, tie_word_embeddings=True),
    "qwen3": lambda: Qwen3Config(**_DECODER),
    "gemma2": lambda: Gemma2Config(**_DECODER, sliding_window=4, query_pre_attn_scalar=4),
    "gemma3_text": lambda: Gemma3TextConfig(**_DECODER, sliding_window=4, query_pre_attn_scalar=4),
    "phi3": lambda: Phi3Config(**_DECODER),
    "opt": lambda: OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        word_embed_proj_dim=8,
        ffn_dim=32,
        num_hidden_layers=BLOCKS,
        num_attention_heads=4,
        max_position_embeddings=64,
        pad_token_id=0,
    ),
    "bert": lambda: BertConfig(**_ENCODER),
    "roberta": lambda: RobertaConfig(**_ENCODER),
    "distilbert": lambda: DistilBertConfig(
        vocab_size=VOCABULARY,
        dim=16,
        hidden_dim=32,
        n_layers=BLOCKS,
        n_heads=4,
        max_position_embeddings=64,
        pad_token_id=0,
    ),
}


def save_tiny_model(family: str, task: str, folder: Path, *, shard: str = "1GB") -> Path:
    """Saves a seeded random model of `family` for `task` and returns its folder."""
    torch.manual_seed(0)
    config = CONFIGS[family]()
    config.initializer_range = 0.2  # large enough that blocks matter and gradients are far from zero
    if family == "opt":
        config.init_std = 0.2
    if task == "classification":
        config.num_labels = LABELS
    maker = AutoModelForCausalLM if task == "causal-lm" else AutoModelForSequenceClassification
    model = maker.from_config(config)
    model.save_pretrained(folder, max_shard_size=shard)
    return folder


def random_batch(task: str, *, seed: int = 0, samples: int = 4, tokens: int = 12, token_types: bool = False) -> Batch:
    """A padded batch: sample i lost its last i tokens; for causal LM the first three tokens are a masked prompt."""
    generator = torch.Generator().manual_seed(seed)
    ids_BT = torch.randint(3, VOCABULARY, (samples, tokens), generator=generator)
    mask_BT = torch.ones_like(ids_BT)
    for sample in range(samples):
        mask_BT[sample, tokens - sample :] = 0
    ids_BT = ids_BT * mask_BT
    if task == "causal-lm":
        labels = ids_BT.masked_fill(mask_BT == 0, -100)
        labels[:, :3] = -100
        weight = int((labels[:, 1:] != -100).sum())
    else:
        labels = torch.randint(0, LABELS, (samples,), generator=generator)
        weight = samples
    types_BT = torch.zeros_like(ids_BT) if token_types else None
    return Batch(ids_BT, mask_BT, labels, types_BT, tuple(range(samples)), weight)
