"""Tiny random models of every family, saved as a user would find them: config.json and model.safetensors."""

from __future__ import annotations

import atexit
import json
import random
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    ModernBertConfig,
    OPTConfig,
    Phi3Config,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
    XLMRobertaConfig,
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
    "xlm-roberta": lambda: XLMRobertaConfig(**_ENCODER),
    "modernbert": lambda: ModernBertConfig(
        **_ENCODER,
        bos_token_id=1,
        eos_token_id=2,
        cls_token_id=1,
        sep_token_id=2,
        global_attn_every_n_layers=2,
        local_attention=4,
        classifier_pooling="mean",
    ),
    "deberta-v2": lambda: DebertaV2Config(
        **_ENCODER,
        type_vocab_size=0,
        relative_attention=True,
        position_buckets=4,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type=["p2c", "c2p"],
        position_biased_input=False,
    ),
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
    model = maker.from_config(config, trust_remote_code=False)
    model.save_pretrained(folder, max_shard_size=shard)
    return folder


@cache
def scratch() -> Path:
    """A folder of this process, which goes with it."""
    folder = TemporaryDirectory(prefix="cutlayer-")
    atexit.register(folder.cleanup)
    return Path(folder.name)


@cache
def tiny_model(family: str, task: str) -> Path:
    """The folder of a tiny random model, saved once in a process."""
    return save_tiny_model(family, task, scratch() / f"{family}-{task}")


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


# ------------------------------------------------------------------ a model that can read, and something to read

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
CLASSES = ("bad", "fair", "good")
NUMBERS = tuple(f"n{number}" for number in range(VOCABULARY - len(SPECIAL) - len(CLASSES)))


def save_tiny_tokenizer(folder: Path, chat_template: str | None = None) -> Path:
    """Saves a tokenizer of whole words, those of `reviews` and `sums`, and returns its folder."""
    words = {word: index for index, word in enumerate((*SPECIAL, *CLASSES, *NUMBERS))}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_input_names=["input_ids", "attention_mask"],
    )
    made.chat_template = chat_template
    made.save_pretrained(folder)
    return folder


CHAT_TEMPLATE = (
    "{% for message in messages %}{{ ('<s> ' if message.role == 'user' else '') + message.content + ' ' }}"
    "{% if message.role == 'assistant' %}{{ '</s> ' }}{% endif %}{% endfor %}"
)
"""A chat template in words of the vocabulary: a question begins with the begin token, an answer ends with the end."""


def chats(rows: int, seed: int) -> list[dict[str, Any]]:
    """Chats in OpenAI's form, of one sum or of two."""
    made = []
    for row, (one, other) in enumerate(zip(sums(rows, seed), sums(rows, seed + 1), strict=True)):
        turns = [("user", one["question"]), ("assistant", one["reply"])]
        turns += [("user", other["question"]), ("assistant", other["reply"])] if row % 2 else []
        made.append({"messages": [{"role": role, "content": content} for role, content in turns]})
    return made


def reviews(rows: int, seed: int) -> list[dict[str, Any]]:
    """Texts of 3 to 12 words; the one word that is a class says the label."""
    rng = random.Random(seed)
    made = []
    for _ in range(rows):
        label = rng.choice(CLASSES)
        text = [*rng.choices(NUMBERS, k=rng.randint(2, 11)), label]
        rng.shuffle(text)
        made.append({"text": " ".join(text), "label": label, "site": f"site-{rng.randrange(4)}"})
    return made


def sums(rows: int, seed: int) -> list[dict[str, Any]]:
    """Two numbers, and their sum in words of the vocabulary."""
    rng = random.Random(seed)
    pairs = [(rng.randrange(20), rng.randrange(20)) for _ in range(rows)]
    return [{"question": f"n{a} n{b}", "reply": f"n{a + b}"} for a, b in pairs]


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Writes one JSON object per line and returns the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def save_inputs(folder: Path, rows: int) -> Path:
    """Writes `model`, with its tokenizer, and so many reviews to train on, in `data`, for a run; returns the folder."""
    save_tiny_tokenizer(save_tiny_model("bert", "classification", folder / "model"))
    write_jsonl(folder / "data" / "train.jsonl", reviews(rows, seed=1))
    write_jsonl(folder / "data" / "validation.jsonl", reviews(20, seed=2))
    return folder
