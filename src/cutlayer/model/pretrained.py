"""The whole model as transformers has it, from wherever its files are: for PEFT, for use, and to be compared with.

`from_pretrained(files.location)` is that for a folder or the hub. A GGUF file, and the text tower of a model that also
sees, are given to transformers tensor by tensor instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AutoConfig

from cutlayer.errors import ModelError
from cutlayer.model.source import ModelFiles, Weights


def config_of(files: ModelFiles) -> Any:
    """transformers' config of what reads text.

    Raises:
      ModelError: config.json is no JSON object, asks for what is not done, or is not of a model that transformers has.
    """
    seeing = files.text_config is not files.config  # first: what is no config.json is said by the file's name
    with from_config_json(files.name):
        config = AutoConfig.from_pretrained(files.location, revision=files.revision, trust_remote_code=False)
    return config.get_text_config() if seeing else config


@contextmanager
def from_config_json(name: str) -> Iterator[None]:
    """Whatever transformers raises in it, each version something else, is about the model's config.json."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"model {name}: expected a config.json that transformers builds a model from, got {type(error).__name__}: "
            f"{' '.join(str(error).split())}. Fetch the file again."
        ) from error


def pretrained(files: ModelFiles, maker: Any, **changes: Any) -> Any:
    """The model with its weights, on the CPU.

    Args:
      files: Where they are.
      maker: transformers' class for the task, such as `AutoModelForCausalLM`.
      changes: What is to be different in its config, such as `num_labels`.

    Raises:
      ModelError: The files have no tensor that the model has.
    """
    if files.gguf is None and files.text_config is files.config:
        return maker.from_pretrained(files.location, revision=files.revision, trust_remote_code=False, **changes)
    config = config_of(files)
    for key, value in changes.items():
        setattr(config, key, value)
    with torch.device("meta"):
        skeleton = maker.from_config(config, trust_remote_code=False)
    dtype = torch.float32 if files.gguf is not None or config.dtype is None else config.dtype
    weights = Weights(files, prefix=skeleton.base_model_prefix, dtype=dtype, device=torch.device("cpu"))
    state = {name: weights.get(name) for name in skeleton.state_dict() if name in weights}
    if not state:
        raise ModelError(
            f"model {files.name}: expected tensors of {type(skeleton).__name__}, got none. "
            "Is this checkpoint of the architecture that its config.json names?"
        )
    return type(skeleton).from_pretrained(None, config=config, state_dict=state, dtype=dtype)
