"""Tiny GGUF files of random weights, written by llama.cpp's own package."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize

BLOCKS, HIDDEN, FFN, HEADS, KEY_HEADS, WIDTH = 3, 32, 64, 4, 2, 8
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
TOKENS = ("<pad>", "<s>", "</s>", "<unk>", *LETTERS, "Ġ", *(f"Ġ{letter}" for letter in LETTERS[:23]))
TEMPLATE = "{% for message in messages %}<s>{{ message['content'] }}</s>{% endfor %}"
Tensors = dict[str, "np.ndarray[Any, Any]"]


def tensors_of(architecture: str, *, tied: bool) -> Tensors:
    """Random tensors of a model of this architecture, in llama.cpp's names."""
    rng = np.random.default_rng(0)

    def drawn(*shape: int) -> np.ndarray[Any, Any]:
        return rng.normal(size=shape, scale=0.2).astype(np.float32)

    found = {"token_embd.weight": drawn(len(TOKENS), HIDDEN), "output_norm.weight": 1 + drawn(HIDDEN)}
    if not tied:
        found["output.weight"] = drawn(len(TOKENS), HIDDEN)
    rows = {"attn_q": HEADS * WIDTH, "attn_k": KEY_HEADS * WIDTH, "attn_v": KEY_HEADS * WIDTH}
    for block in range(BLOCKS):
        inside = {f"{name}.weight": drawn(size, HIDDEN) for name, size in rows.items()}
        if architecture == "qwen2":
            inside |= {f"{name}.bias": drawn(size) for name, size in rows.items()}
        if architecture == "qwen3":
            inside |= {f"{name}_norm.weight": 1 + drawn(WIDTH) for name in ("attn_q", "attn_k")}
        inside |= {
            "attn_output.weight": drawn(HIDDEN, HEADS * WIDTH),
            "attn_norm.weight": 1 + drawn(HIDDEN),
            "ffn_norm.weight": 1 + drawn(HIDDEN),
            "ffn_gate.weight": drawn(FFN, HIDDEN),
            "ffn_up.weight": drawn(FFN, HIDDEN),
            "ffn_down.weight": drawn(HIDDEN, FFN),
        }
        found |= {f"blk.{block}.{name}": value for name, value in inside.items()}
    return found


def save_gguf(
    path: Path,
    architecture: str = "llama",
    *,
    kind: str = "Q4_1",
    tied: bool = True,
    facts: Mapping[str, Any] | None = None,
    tensors: Tensors | None = None,
) -> Path:
    """Writes a file: matrices of this kind, the embeddings Q8_0, the rest fp32, a tokenizer and a chat template.

    Args:
      path: The file.
      architecture: llama, qwen2 or qwen3.
      kind: How matrices are packed.
      tied: Whether there is no head of its own.
      facts: More, or others; None leaves one out.
      tensors: More tensors, fp32.
    """
    sizes = {"block_count": BLOCKS, "context_length": 64, "embedding_length": HIDDEN, "feed_forward_length": FFN}
    sizes |= {"attention.head_count": HEADS, "attention.head_count_kv": KEY_HEADS, "vocab_size": len(TOKENS)}
    sizes |= {"rope.dimension_count": WIDTH}
    if architecture == "qwen3":
        sizes["attention.key_length"] = WIDTH
    said: dict[str, Any] = {f"{architecture}.{name}": value for name, value in sizes.items()}
    said[f"{architecture}.attention.layer_norm_rms_epsilon"] = 1e-5
    said[f"{architecture}.rope.freq_base"] = 50000.0
    said |= {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": list(TOKENS),
        "tokenizer.ggml.token_type": [3] * 4 + [1] * (len(TOKENS) - 4),
        "tokenizer.ggml.merges": [f"Ġ {letter}" for letter in LETTERS[:23]],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.unknown_token_id": 3,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": TEMPLATE,
        **(facts or {}),
    }
    writer = GGUFWriter(path, architecture)
    for name, value in said.items():
        if isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        elif isinstance(value, str):
            writer.add_string(name, value)
        elif value is not None:
            writer.add_array(name, value)
    for name, value in (tensors_of(architecture, tied=tied) | (tensors or {})).items():
        as_kind = "Q8_0" if name == "token_embd.weight" else kind if value.ndim == 2 else "F32"
        number = GGMLQuantizationType[as_kind]
        writer.add_tensor(name, quantize(value, number), raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
