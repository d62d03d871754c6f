"""The models that are measured: real shapes with random weights, saved as a user would find them.

They are stored in bf16. A run in fp32 then converts what it reads and owns its weights; read in the dtype in which
they are stored, they would stay mapped on the file, shared between processes and hard to count.
"""

from __future__ import annotations

import hashlib
import tempfile
import warnings
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PretrainedConfig
from transformers.utils import logging

from cutlayer.files import write_folder_atomically
from cutlayer.model.place import MINILM
from cutlayer.model.source import minilm_folder

# A table is all that a benchmark prints. The warning is of peft's get_peft_model about transformers.
logging.disable_progress_bar()
logging.set_verbosity_error()
warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is deprecated", FutureWarning)


def _gpt2(**shape: int) -> GPT2Config:
    return GPT2Config(attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0, **shape)


SHAPES: dict[str, PretrainedConfig] = {
    "gpt2": _gpt2(),
    "nano": _gpt2(n_embd=128, n_layer=6, n_head=4, vocab_size=2048, bos_token_id=0, eos_token_id=0),
    "tiny": _gpt2(n_embd=16, n_layer=3, n_head=2, vocab_size=64, n_positions=64, bos_token_id=0, eos_token_id=0),
    "smollm2-random": LlamaConfig(  # SmolLM2-135M
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        tie_word_embeddings=True,
    ),
    "smollm2-nano": LlamaConfig(  # as deep, with nothing to compute
        vocab_size=64,
        hidden_size=18,
        intermediate_size=16,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    ),
    "llama-1b": LlamaConfig(  # Llama-3.2-1B
        vocab_size=128256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        max_position_embeddings=4096,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        tie_word_embeddings=True,
    ),
}


def model_folder(name: str) -> Path:
    """The folder of a shape, made once per machine below the system's temporary folder; `minilm` is the real one."""
    if name == "minilm":
        return minilm_folder()
    config = SHAPES[name]
    digest = hashlib.sha256(config.to_json_string().encode()).hexdigest()[:8]
    folder = Path(tempfile.gettempdir()) / "cutlayer-benchmarks" / f"{name}-{digest}"
    if not folder.exists():
        folder.parent.mkdir(exist_ok=True)
        write_folder_atomically(folder, lambda path: _save_random(config, path))
    return folder


def model_name(name: str) -> str:
    """The value of `ModelSettings.name` for this model."""
    return MINILM if name == "minilm" else str(model_folder(name))


def _save_random(config: PretrainedConfig, folder: Path) -> None:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
