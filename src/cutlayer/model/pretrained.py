"""The whole model as transformers has it, from wherever its files are: for PEFT, for use, and to be compared with.

`from_pretrained(files.location)` is that for a folder or the hub. A GGUF file, and the text tower of a model that also
sees, are given to transformers tensor by tensor instead.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
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
    """Turns whatever transformers raises, each version something else, into an error about the model's config.json."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"model {name}: expected a config.json that transformers builds a model from, got {type(error).__name__}: "
            f"{' '.join(str(error).split())}. Fetch the file again."
        ) from error


def pretrained(files: ModelFiles, maker: Any, brought: Container[str] = (), **changes: Any) -> Any:
    """The model with its weights, on the CPU.

    Args:
      files: Where they are.
      maker: transformers' class for the task, such as `AutoModelForCausalLM`.
      brought: Tensors that an adapter brings in place of the model's, which may be of other sizes there.
      changes: What is to be different in its config, such as `num_labels`.

    Raises:
      ModelError: The files have no tensor that the model has, or one of another size.
    """
    if files.gguf is None and files.text_config is files.config:
        model, found = maker.from_pretrained(
            files.location,
            revision=files.revision,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **changes,
        )
        _check_sizes(files, ((name, tuple(got), tuple(own)) for name, got, own in found["mismatched_keys"]), brought)
        return model
    config = config_of(files)
    for key, value in changes.items():
        setattr(config, key, value)
    with torch.device("meta"):
        skeleton = maker.from_config(config, trust_remote_code=False)
    dtype = torch.float32 if files.gguf is not None or config.dtype is None else config.dtype
    weights = Weights(files, prefix=skeleton.base_model_prefix, dtype=dtype, device=torch.device("cpu"))
    shapes = {name: tuple(value.shape) for name, value in skeleton.state_dict().items()}
    state = {name: weights.get(name) for name in shapes if name in weights}
    other = {name for name, value in state.items() if tuple(value.shape) != shapes[name]}
    _check_sizes(files, ((name, tuple(state.pop(name).shape), shapes[name]) for name in other), brought)
    if not state:
        raise ModelError(
            f"model {files.name}: expected tensors of {type(skeleton).__name__}, got none. "
            "Is this checkpoint of the architecture that its config.json names?"
        )
    return type(skeleton).from_pretrained(None, config=config, state_dict=state, dtype=dtype)


Sizes = tuple[int, ...]


def _check_sizes(files: ModelFiles, others: Iterable[tuple[str, Sizes, Sizes]], brought: Container[str]) -> None:
    """Raises ModelError for a tensor of another size than the model's that nobody brings."""
    for name, got, expected in sorted(others):
        if name not in brought:
            raise ModelError(
                f"model {files.name}: expected {name} of shape {expected}, got {got}. config.json and the weights "
                "belong to different models."
            )
