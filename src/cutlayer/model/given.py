"""An adapter that is there already, of ours or plain PEFT's, as a run with a scale and ranks of its own can take it.

PEFT gives each module W a scale s, its alpha over its rank (over the rank's root with rsLoRA), where a run of ours has
one for all modules (docs/decisions/0009-one-scale.md). B is multiplied by s over the run's, which changes nothing where
the two are equal; a factor that has fewer rows than the run's ranks say is filled up so that B A stays what it was.

Shapes: M outputs of the adapted module, N inputs, R rank.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from cutlayer.errors import AdapterError
from cutlayer.model.adapter import PREFIX, LoraSettings
from cutlayer.model.base import Base
from cutlayer.model.low_rank import factor_names
from cutlayer.reading import TaskKind
from cutlayer.types import Adapter

UNKNOWN = ("use_dora", "layer_replication", "trainable_token_indices", "alora_invocation_tokens", "lora_bias")
"""Settings of PEFT that add to LoRA what a run does not train."""
TASKS: dict[str, TaskKind] = {"CAUSAL_LM": "causal-lm", "SEQ_CLS": "classification"}


@dataclass(frozen=True)
class GivenAdapter:
    """The content of an adapter's folder.

    Attributes:
      folder: which.
      config: PEFT's settings.
      tensors: the factors, and what of a head was trained, by their global names.
    """

    folder: Path
    config: LoraConfig
    tensors: Adapter

    @cached_property
    def ranks(self) -> dict[str, int]:
        """The rank of each LoRA module, by the name of its A."""
        return {a: self.tensors[a].shape[0] for _, a in factor_names(self.tensors)}

    @property
    def rank(self) -> int:
        """The highest rank."""
        return max(self.ranks.values())

    @cached_property
    def scales(self) -> dict[str, float]:
        """The scale by which PEFT multiplies each module's B A, by the name of its A."""
        return {name: self._scale(name) for name in self.ranks}

    def _scale(self, name: str) -> float:
        path = name.removeprefix(PREFIX).partition(".lora_A.")[0]
        alphas, ranks = self.config.alpha_pattern or {}, self.config.rank_pattern or {}
        alpha = alphas.get(get_pattern_key(alphas.keys(), path), self.config.lora_alpha)
        rank = ranks.get(get_pattern_key(ranks.keys(), path), self.config.r)
        return float(alpha / math.sqrt(rank)) if self.config.use_rslora else float(alpha / rank)

    @property
    def settings(self) -> LoraSettings:
        """The LoRA settings of a run in which this adapter stands as it is: the scale of its first module for all."""
        ends = {re.sub(r"^.*?\.\d+\.", "", name.removeprefix(PREFIX).partition(".lora_A.")[0]) for name in self.ranks}
        return LoraSettings(self.rank, next(iter(self.scales.values())) * self.rank, targets=tuple(sorted(ends)))

    @property
    def task(self) -> TaskKind:
        """The task that the adapter was trained for.

        Raises:
          AdapterError: For something else than we do.
        """
        try:
            return TASKS[str(self.config.task_type)]
        except KeyError:
            raise AdapterError(
                f"{self.folder / 'adapter_config.json'}: expected task_type {' or '.join(TASKS)}, got "
                f"{self.config.task_type!r}. Say there what the adapter was trained for."
            ) from None

    def on(self, base: Base) -> Adapter:
        """The adapter as it stands on a base, in the base's scale; zeros on modules of its blocks that it leaves out.

        Raises:
          AdapterError: It has tensors for what `base` does not train, or of other sizes.
        """
        adapter = self._scaled(base)
        blocks = {base.block_of(name) for name in adapter}
        for b, a in factor_names(base.shapes):
            if a not in adapter and base.block_of(a) in blocks:
                adapter[a] = torch.zeros(1, *base.shapes[a][1:], device=base.device)
                adapter[b] = torch.zeros(base.shapes[b][0], 1, device=base.device)
        return {name: adapter[name] for name in base.shapes if name in adapter}

    def begun(self, fresh: Mapping[str, Tensor], base: Base) -> Adapter:
        """The adapter that a run begins with: `fresh` with this one put in, at the ranks that `fresh` has.

        Rows of A beyond the adapter's rank stay as `fresh` has them, and their columns of B are zero: they add nothing
        yet, and learn.

        Raises:
          AdapterError: As `on`; or it has a higher rank, or a block, that the run has not.
        """
        adapter, begun = self._scaled(base), dict(fresh)
        for name, value in adapter.items():
            if name not in fresh:
                raise self._unfit(
                    f"only tensors that the run trains, got {name}", "Leave method.rank and depth as then"
                )
            begun[name] = value
        for b, a in factor_names(adapter):
            had, has = adapter[a].shape[0], fresh[a].shape[0]
            if had > has:
                raise self._unfit(f"ranks of at most the run's ({has} on {a}), got {had}", f"Set --rank {self.rank}")
            begun[a] = torch.cat([adapter[a], fresh[a][had:]])
            begun[b] = torch.nn.functional.pad(adapter[b], (0, has - had))
        return begun

    def _scaled(self, base: Base) -> Adapter:
        """The tensors on the base's device in fp32, in the base's scale."""
        ours = base.settings.lora.alpha / base.settings.lora.rank
        adapter: Adapter = {}
        for name, value in self.tensors.items():
            full = base.shapes.get(name)
            lora = ".lora_A." in name or ".lora_B." in name
            axis = 1 if ".lora_A." in name else 0  # the one that the module gives; the other is the rank
            if full is None or (value.shape[axis] != full[axis] if lora else tuple(value.shape) != full):
                raise self._unfit(
                    f"tensors of the {len(base.shapes)} that this model and lora.targets train, got {name} "
                    f"{tuple(value.shape)}",
                    "Use the base model that it was trained on, and name the modules that it adapts in lora.targets",
                )
            adapter[name] = value.to(base.device, torch.float32)
        for b, a in factor_names(self.tensors):
            if self.scales[a] != ours:
                adapter[b] = adapter[b] * (self.scales[a] / ours)
        return adapter

    def _unfit(self, expected: str, change: str) -> AdapterError:
        return AdapterError(f"adapter {self.folder}: expected {expected}. {change}.")


def read_given(folder: Path) -> GivenAdapter:
    """The adapter in a folder that PEFT or we wrote; RUN for RUN/adapter.

    Raises:
      AdapterError: There is none, it is not in safetensors, or it is no plain LoRA.
    """
    where = folder if (folder / "adapter_config.json").is_file() else folder / "adapter"
    try:
        content: dict[str, Any] = json.loads((where / "adapter_config.json").read_text())
        tensors = load_file(where / "adapter_model.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise AdapterError(
            f"adapter {folder}: expected a folder with adapter_config.json and adapter_model.safetensors, got "
            f"{type(error).__name__}: {error}. Give the adapter/ folder of a run, or one that PEFT saved."
        ) from error
    extra = [key for key in UNKNOWN if content.get(key)]
    if content.get("peft_type") != "LORA" or content.get("bias", "none") != "none" or extra:
        got = ", ".join([str(content.get("peft_type")), f"bias {content.get('bias')}", *extra])
        raise AdapterError(f"adapter {where}: expected plain LoRA without biases, got {got}. Merge it into its base.")
    if not any(".lora_A." in name for name in tensors):
        raise AdapterError(
            f"adapter {where}: expected LoRA factors, got {sorted(tensors)[:3]}. Is it the right folder?"
        )
    return GivenAdapter(where, LoraConfig.from_pretrained(str(where)), tensors)
