"""The task model without its weights: what parts are cut from.

transformers makes it from the model's config on the meta device, where a parameter has a shape and no values.
"""

from __future__ import annotations

from threading import Lock
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from cutlayer.model.asked import check_room
from cutlayer.model.families import FAMILIES, Family, family_of
from cutlayer.model.pooling import choose_pooling, install_pooling
from cutlayer.model.pretrained import config_of, from_config_json
from cutlayer.model.recognised import recognised
from cutlayer.model.settings import ModelSettings
from cutlayer.model.source import ModelFiles
from cutlayer.reading import TaskKind

BUILDING = Lock()
"""The lock on making modules on the meta device, which torch and PEFT set for the whole process, not for a thread."""


class Skeletons:
    """Task models on the meta device, all alike.

    Args:
      settings: Of the run's model.
      files: The model's.
      device: Where buffers live that no checkpoint holds.
      depth: As if the model had so many blocks; None for those that it has.

    Attributes:
      config: transformers' own, as the run wants the model.
      family: where its parts are.
      pooling: how a sentence becomes a vector.
      trained_heads: the modules of the head that train whole.

    Raises:
      ModelError: The model's config or architecture does not serve.
    """

    def __init__(self, settings: ModelSettings, files: ModelFiles, device: torch.device, depth: int | None) -> None:
        self._settings, self._files, self._device = settings, files, device
        self.config = self._transformers_config(depth)
        self.family = self._family()
        self.pooling = choose_pooling(settings.pooling, self.family)
        if self.pooling == "last" and getattr(self.config, "pad_token_id", None) is None:
            self.config.pad_token_id = settings.pad_id  # transformers asks for one, and `model/ends.py` for none
        self.trained_heads = self._trained_heads()

    def make(self, *, checkpoint: bool = False) -> Any:
        """A task model, with real values in the buffers that no checkpoint holds.

        Args:
          checkpoint: Whether it recomputes its blocks in the backward pass.

        Raises:
          ModelError: Its buffers do not fit into memory.
        """
        model = self._built(self.config)
        check_room(self._settings.name, sum(buffer.nbytes for buffer in model.buffers()))
        _rebuild_buffers(model, self._device)
        if checkpoint:  # before the cut takes away the embeddings, where transformers hangs a hook
            model.activation_checkpointing_enable()
            model.disable_input_require_grads()  # the hook: it would make a device without adapters train
        return model

    def pool(self, model: Any) -> None:
        """Lets a classifier make its vectors as the run says."""
        if self._settings.task == "classification":
            install_pooling(model, self.family, self.pooling)

    def _transformers_config(self, depth: int | None) -> Any:
        config = config_of(self._files)
        if self._settings.task == "classification":
            config.num_labels = self._settings.num_labels
            config.problem_type = "single_label_classification"
        if depth is not None:
            config.num_hidden_layers = depth
            if getattr(config, "layer_types", None):
                config.layer_types = (list(config.layer_types) * depth)[:depth]
        config.use_cache = False
        if not self._settings.base_dropout:
            for key, value in config.to_dict().items():
                if "drop" in key and isinstance(value, (int, float)):
                    setattr(config, key, 0.0)
        return config

    def _family(self) -> Family:
        """The row of the model, or one that is recognised and tried."""
        settings, model_type = self._settings, self._files.model_type
        if settings.family is not None or model_type in FAMILIES:
            return family_of(model_type, settings.task, settings.family)
        return recognised(settings.name, self.config, settings.task, self._built)

    def _built(self, config: Any, where: str = "meta") -> Any:
        """The task model of a config, its parameters as they are made."""
        with BUILDING, torch.device(where), from_config_json(self._settings.name):
            return model_class(self._settings.task).from_config(
                config, dtype=self._settings.computes_in, trust_remote_code=False
            )

    def _trained_heads(self) -> tuple[str, ...]:
        if self._settings.task == "causal-lm":
            return ()
        pooler = self.family.pooler
        if pooler is None or self.pooling != "pooler":
            return self.family.head
        prefix = model_class(self._settings.task)._model_mapping[type(self.config)].base_model_prefix
        return (f"{prefix}.{pooler}", *self.family.head)


def backbone_of(model: Any) -> Any:
    """The task model without its head."""
    return getattr(model, model.base_model_prefix)


def model_class(task: TaskKind) -> Any:
    """The class that makes the task model of any config."""
    return AutoModelForCausalLM if task == "causal-lm" else AutoModelForSequenceClassification


def _rebuild_buffers(model: Any, device: torch.device) -> None:
    """Gives the buffers that are not in a checkpoint (rotary tables, position ids) their values.

    transformers recomputes them in `_init_weights`; the parameters are still on the meta device, where initialising
    costs nothing.
    """
    for module in model.modules():
        absent = [name for name, buffer in module._buffers.items() if buffer is not None and buffer.is_meta]
        if absent and device.type != "meta":
            for name in absent:
                module._buffers[name] = torch.empty_like(module._buffers[name], device=device)
            model._init_weights(module)
