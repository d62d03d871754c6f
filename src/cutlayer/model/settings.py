"""Settings of a run's model."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from cutlayer.errors import ConfigError
from cutlayer.model.adapter import LoraSettings
from cutlayer.model.families import Family
from cutlayer.model.quantised import KINDS, Kind
from cutlayer.model.source import DTYPES
from cutlayer.reading import TaskKind


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """Settings of the run's model.

    Attributes:
      name: folder, GGUF file, hub name, `builtin:minilm` or `builtin:smollm2`.
      task: what it is trained for.
      num_labels: classes of a classification; 0 for causal LM.
      pad_id: the token id that pads. The model's config keeps its own, from which RoBERTa counts its positions.
      dtype: of the frozen weights: fp32, bf16, fp16, int8 or nf4 (`model/quantised.py`). Trainable tensors are always
        fp32.
      compute: of the activations and of what frozen tensors are computed with; None is the weights' own, and fp32 where
        these are int8 or nf4.
      pooling: `auto`, or how a sentence becomes a vector.
      base_dropout: whether the base model's own dropout is on while training. Off, the cut is exact.
      checkpoint_device: the device recomputes its blocks in the backward pass, to hold fewer activations.
      checkpoint_server: the same on the server.
      lora: the adapter.
      family: where the parts of the model are, in place of the row of its family.
      revision: of a model on the hub; None for its newest.
      labels: the classes by name, in the order of their ids, by which a checkpoint's own head is taken over or not;
        none takes it as it stands.
    """

    name: str
    task: TaskKind
    num_labels: int = 0
    pad_id: int = 0
    dtype: str = "fp32"
    compute: str | None = None
    pooling: str = "auto"
    base_dropout: bool = False
    checkpoint_device: bool = False
    checkpoint_server: bool = False
    lora: LoraSettings = field(default_factory=LoraSettings)
    family: Family | None = None
    revision: str | None = None
    labels: tuple[str, ...] = ()

    @property
    def quantised(self) -> Kind | None:
        """The form in which the frozen weights are; None for plain numbers."""
        return next((kind for kind in KINDS if kind == self.dtype), None)

    @property
    def computes_in(self) -> torch.dtype:
        """The dtype in which the model computes.

        Raises:
          ConfigError: Plain weights of another dtype.
        """
        own = "fp32" if self.quantised else self.dtype
        if self.compute not in (None, own) and not self.quantised:
            raise ConfigError(
                f"model.compute: expected {own}, in which the weights are, got {self.compute}. Set model.dtype to "
                f"{self.compute}, or to one of {', '.join(KINDS)}."
            )
        return DTYPES[self.compute or own]

    @property
    def drops(self) -> bool:
        """Whether anything drops out while training."""
        return self.base_dropout or self.lora.dropout > 0
