"""A model as llama.cpp has it, as transformers would: config, tokenizer, and the tensors under their usual names.

    what                here
    ------------------  ---------------------------------------------------------------------------------------
    config.json         from the file's facts (`config_of`), as transformers' `gguf_file=` makes it
    tokenizer, template built once by transformers and kept in the user's cache, by a digest of the file's beginning
    tensors             read one by one where they lie; queries and keys of a Llama get their rows' order back

For models shaped like Llama: the architectures of `NAMES`. A GGUF file of Mistral or SmolLM says `llama` of itself.
What is in a file and has no place here (experts, biases, a stretched rotary embedding of another kind than Llama 3's)
is refused in a line, because a model that is read without it answers, and wrongly.

Shapes: D width of a head.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cutlayer.errors import ModelError
from cutlayer.model.gguf import Gguf
from cutlayer.model.packed import PLAIN, Stored

OUTSIDE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
INSIDE = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
NAMES: dict[str, dict[str, str]] = {
    "llama": {f"{ours}.weight": f"{theirs}.weight" for ours, theirs in INSIDE.items()},
    "qwen2": {f"{ours}.weight": f"{theirs}.weight" for ours, theirs in INSIDE.items()}
    | {f"{ours}.bias": f"{INSIDE[ours]}.bias" for ours in ("attn_q", "attn_k", "attn_v")},
    "qwen3": {f"{ours}.weight": f"{theirs}.weight" for ours, theirs in (INSIDE | NORMS).items()},
}
"""The names of a block's tensors here and in transformers, by architecture."""
REORDERED = ("llama",)
"""Architectures whose queries and keys llama.cpp keeps in another order of rows."""
HEAD_WIDTH = {"llama": "rope.dimension_count", "qwen3": "attention.key_length"}
"""The fact that says how wide a head is, by architecture; else a head has the hidden width over the number of heads."""
ROPE_FACTORS = "rope_freqs.weight"
CACHED_AS = "1"
"""Rises with what `fill` writes, so that what an older version wrote is not taken for it."""


class LlamaCpp:
    """The model in a GGUF file.

    Args:
      path: The file.

    Raises:
      ModelError: It is no GGUF file, or of another architecture.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = Gguf(path)
        facts = self.file.facts
        self.architecture = str(facts.get("general.architecture"))
        if self.architecture not in NAMES:
            raise self._refused(f"the architecture {' or '.join(NAMES)}", self.architecture)
        if facts.get("split.count", 1) not in (0, 1):
            raise self._refused("a model in one file", f"one of {facts['split.count']} parts")
        self.tensors = self._named()

    def _refused(self, expected: str, got: object) -> ModelError:
        return ModelError(
            f"model {self.path}: expected {expected}, got {got}. "
            "Choose another GGUF file, or the model's folder with safetensors."
        )

    def _named(self) -> dict[str, str]:
        """The names of the tensors in transformers, and in the file."""
        known, named = NAMES[self.architecture], {}
        for name in self.file.tensors:
            outside = OUTSIDE.get(name)
            block, _, inside = name.removeprefix("blk.").partition(".")
            if outside is not None:
                named[outside] = name
            elif name.startswith("blk.") and block.isdecimal() and inside in known:
                named[f"model.layers.{int(block)}.{known[inside]}"] = name
            elif name != ROPE_FACTORS:
                raise self._refused(f"tensors of a {self.architecture}", f"{name}, which it has not in transformers")
        return named

    # ------------------------------------------------------------------ tensors

    def stored(self, name: str) -> Stored:
        """The form in which the tensor of this name lies in the file."""
        kind = self.file.tensors[self.tensors[name]].kind
        if self.architecture in REORDERED:
            for projection, heads in (("q_proj", "attention.head_count"), ("k_proj", "attention.head_count_kv")):
                if f".{projection}." in name:
                    return Stored(kind, self._number(heads))
        return Stored(kind)

    def header(self) -> tuple[int, dict[str, Any]]:
        """The header as `read_header` gives that of a safetensors file, and, as `stored`, how a tensor is to be read
        if it is packed or its rows are in another order.

        Packed weights are bytes there, rows of blocks.
        """
        entries: dict[str, Any] = {}
        for name, inner in self.tensors.items():
            place, stored = self.file.tensors[inner], self.stored(name)
            entries[name] = {
                "dtype": place.kind if place.kind in PLAIN else "U8",
                "shape": list(place.stored_shape),
                "data_offsets": [place.start, place.start + place.length],
            }
            if stored.heads or place.kind not in PLAIN:
                entries[name]["stored"] = stored
        return self.file.data, entries

    # ------------------------------------------------------------------ config

    @property
    def config(self) -> dict[str, Any]:
        """The content that config.json would have.

        Raises:
          ModelError: The file says too little, or something that a Llama has not.
        """
        embeddings = self.file.tensors.get("token_embd.weight")
        if embeddings is None:
            raise self._refused("token_embd.weight", "none")
        heads, hidden = self._number("attention.head_count"), self._number("embedding_length")
        config: dict[str, Any] = {
            "model_type": self.architecture,
            "vocab_size": embeddings.shape[0],
            "hidden_size": hidden,
            "intermediate_size": self._number("feed_forward_length"),
            "num_hidden_layers": self._number("block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": self._number("attention.head_count_kv", heads),
            "max_position_embeddings": self._number("context_length"),
            "rms_norm_eps": self._fact("attention.layer_norm_rms_epsilon", float),
            "tie_word_embeddings": "lm_head.weight" not in self.tensors,
            "rope_parameters": self._rotary(),
        }
        width = HEAD_WIDTH.get(self.architecture)
        if width is not None:
            config["head_dim"] = self._number(width, hidden // heads)
        words = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "pad_token_id": "padding_token_id"}
        for ours, theirs in words.items():
            if isinstance(token := self.file.facts.get(f"tokenizer.ggml.{theirs}"), int):
                config[ours] = token
        return config

    def _fact(self, name: str, kind: type) -> Any:
        value = self.file.facts.get(f"{self.architecture}.{name}")
        if type(value) is not kind:
            raise self._refused(f"{self.architecture}.{name}", value)
        return value

    def _number(self, name: str, default: int | None = None) -> int:
        """A count that is at least one."""
        if default is not None and f"{self.architecture}.{name}" not in self.file.facts:
            return default
        value = self._fact(name, int)
        if not 0 < value < 2**31:
            raise self._refused(f"{self.architecture}.{name} of at least 1", value)
        return int(value)

    def _rotary(self) -> dict[str, Any]:
        """The base of the rotary embedding, and Llama 3's stretching of it."""
        stretched = self.file.facts.get(f"{self.architecture}.rope.scaling.type", "none")
        if stretched != "none":
            raise self._refused("a rotary embedding as it was trained, or Llama 3's", f"{stretched} scaling")
        theta = self._fact("rope.freq_base", float) if self._has("rope.freq_base") else 10000.0
        if ROPE_FACTORS not in self.file.tensors:
            return {"rope_type": "default", "rope_theta": theta}
        factors_D = self.file.read(ROPE_FACTORS).float()
        found = llama3(theta, float(factors_D.max()))
        if factors_D.dim() != 1 or not torch.allclose(llama3_factors(found, factors_D.numel()), factors_D, rtol=1e-3):
            raise self._refused("Llama 3's factors of rotary frequencies", "others")
        return found

    def _has(self, name: str) -> bool:
        return f"{self.architecture}.{name}" in self.file.facts

    # ------------------------------------------------------------------ the small files

    @cached_property
    def folder(self) -> Path:
        """A folder with config.json and the tokenizer: made once, then kept below the user's cache.

        Raises:
          ModelError: What the file says does not make a config or a tokenizer.
        """
        return cached(self.digest, self.fill)

    @property
    def digest(self) -> str:
        """SHA-256 of all that config and tokenizer are made of, and of what makes them."""
        from transformers import __version__

        made_by = json.dumps([CACHED_AS, __version__, self.config], sort_keys=True).encode()
        return hashlib.sha256(made_by + self.file.head).hexdigest()

    def fill(self, folder: Path) -> None:
        """Writes config.json and, where the file has one, the tokenizer with its chat template."""
        (folder / "config.json").write_text(json.dumps(self.config, indent=2, sort_keys=True) + "\n")
        if "tokenizer.ggml.model" not in self.file.facts:
            return
        from transformers import PreTrainedTokenizerFast
        from transformers.integrations.gguf import convert_gguf_tokenizer, get_gguf_tokenizer

        try:
            architecture, words, settings = get_gguf_tokenizer(str(self.path))
            tokenizer, more = convert_gguf_tokenizer(architecture, words)
            PreTrainedTokenizerFast(tokenizer_object=tokenizer, **settings, **more).save_pretrained(folder)
        except Exception as error:  # whatever a list that is too short or of something else gives
            raise ModelError(
                f"model {self.path}: expected a tokenizer that transformers reads, got {type(error).__name__}: "
                f"{' '.join(str(error).split())[:200]}. Choose another GGUF file."
            ) from error


def llama3(theta: float, factor: float) -> dict[str, Any]:
    """Llama 3's rotary embedding, as config.json says it, with this factor for the lowest frequencies.

    llama.cpp keeps one factor for each frequency; of what they are made from, only the largest differs between
    releases (8 for Llama 3.1, 32 for 3.2).
    """
    return {
        "rope_type": "llama3",
        "rope_theta": theta,
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


def llama3_factors(rope: Mapping[str, Any], count: int) -> Tensor:
    """Numbers by which each of `count` frequencies is divided, (D / 2,): 1 for high ones, the factor for low ones."""
    waves_D = 2 * math.pi * rope["rope_theta"] ** (torch.arange(count, dtype=torch.float64) / count)
    fits = rope["original_max_position_embeddings"] / waves_D
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    smooth = ((fits - low) / (high - low)).clamp(0, 1)
    factors_D: Tensor = 1 / ((1 - smooth) / rope["factor"] + smooth)
    return factors_D.float()


def cached(digest: str, fill: Callable[[Path], None]) -> Path:
    """The folder of this digest in the user's cache, filled if it is not there, whole or not at all.

    Several processes may want it at once: each fills one of its own, and the first gives its the name. Where the cache
    cannot be written to, the folder is a temporary one.
    """
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cutlayer" / "gguf"
    folder = root / digest[:32]
    if folder.is_dir():
        return folder
    try:
        root.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=".", dir=root))
    except OSError:  # a home that is read only, or none
        made = folder = Path(tempfile.mkdtemp(prefix="cutlayer-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    try:
        fill(made)
        if made != folder:
            try:
                os.rename(made, folder)
            except OSError:
                if not folder.is_dir():  # and it was no other process that was first
                    raise
                shutil.rmtree(made)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    return folder


def llama_cpp(path: Path) -> LlamaCpp:
    """The model in a file, whose beginning is read once for as long as the file stays as it is.

    Raises:
      ModelError: See `LlamaCpp`.
    """
    stat = path.stat()
    return _opened(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=8)
def _opened(path: Path, _size: int, _changed: int) -> LlamaCpp:
    return LlamaCpp(path)
