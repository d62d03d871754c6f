"""Jobs to train, and the plain transformers + PEFT loop that everything is held against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from cutlayer.model.adapter import LoraSettings
from cutlayer.model.base import Base
from cutlayer.model.part import model_inputs
from cutlayer.model.settings import ModelSettings
from cutlayer.model.source import DTYPES
from cutlayer.reading import TaskKind
from cutlayer.types import Adapter, Batch
from models import model_folder, model_name

LEARNING_RATE = 5e-4
VOCABULARY = {
    "gpt2": 50257,
    "minilm": 30522,
    "nano": 2048,
    "tiny": 64,
    "llama-1b": 128256,
    "smollm2-random": 49152,
    "smollm2-nano": 64,
}


@dataclass(frozen=True, slots=True)
class Job:
    """A model, its LoRA, and the shape of a batch."""

    model: str
    task: TaskKind
    num_samples: int
    num_tokens: int
    cut: int
    lora: LoraSettings
    num_labels: int = 0
    dtype: str = "fp32"
    recomputed: bool = False

    @property
    def settings(self) -> ModelSettings:
        return ModelSettings(
            model_name(self.model),
            self.task,
            num_labels=self.num_labels,
            dtype=self.dtype,
            lora=self.lora,
            checkpoint_device=self.recomputed,
        )


C_ATTN = LoraSettings(rank=8, alpha=16.0, targets=("c_attn",))
ALL_LINEAR = LoraSettings(rank=8, alpha=16.0, targets=("all-linear",))
JOBS = {
    "gpt2": Job("gpt2", "causal-lm", 8, 128, 2, C_ATTN),
    "minilm": Job("minilm", "classification", 32, 64, 2, LoraSettings(rank=8, alpha=16.0), num_labels=6),
    "nano": Job("nano", "causal-lm", 8, 64, 2, C_ATTN),
    "tiny": Job("tiny", "causal-lm", 2, 8, 1, C_ATTN),
    "smollm2-random": Job("smollm2-random", "causal-lm", 4, 96, 6, ALL_LINEAR),
    "smollm2-nano": Job("smollm2-nano", "causal-lm", 2, 8, 6, ALL_LINEAR),
    "llama-1b": Job("llama-1b", "causal-lm", 8, 128, 2, LoraSettings(rank=8, alpha=16.0), dtype="bf16"),
}


def random_batches(job: Job, count: int, seed: int = 0) -> list[Batch]:
    """Random tokens, padded as text is: lengths uniform between half of `num_tokens` and all, one sample full."""
    generator = torch.Generator().manual_seed(seed)
    shape = (job.num_samples, job.num_tokens)
    batches = []
    for _ in range(count):
        lengths_B = torch.randint(job.num_tokens // 2, job.num_tokens + 1, shape[:1], generator=generator)
        lengths_B[0] = job.num_tokens
        mask_BT = (torch.arange(job.num_tokens) < lengths_B[:, None]).long()
        ids_BT = torch.randint(1, VOCABULARY[job.model], shape, generator=generator) * mask_BT
        if job.task == "causal-lm":
            labels = ids_BT.masked_fill(mask_BT == 0, -100)
            weight = int((labels[:, 1:] != -100).sum())
        else:
            labels, weight = torch.randint(job.num_labels, shape[:1], generator=generator), job.num_samples
        batches.append(Batch(ids_BT, mask_BT, labels, None, tuple(range(job.num_samples)), weight))
    return batches


class PlainLoop:
    """The loop that a user of transformers and PEFT writes: no Trainer, no logging, one `item()` per step.

    Args:
      job: What is trained.
      batches: Taken in turn.
      fused: AdamW's fused kernel, as in cutlayer; False is torch's default.
      device: Where it computes.
    """

    def __init__(self, job: Job, batches: list[Batch], *, fused: bool, device: str = "cpu") -> None:
        self._batches, self._device, self._steps = batches, device, 0
        self.model = plain_model(job).to(device)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.0, fused=fused or None)

    def step(self) -> float:
        """One training step; returns the loss."""
        batch = self._batches[self._steps % len(self._batches)]
        self._steps += 1
        loss = self.model(**model_inputs(batch, self._device), labels=batch.labels.to(self._device)).loss
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        value: float = loss.item()
        return value


def plain_model(job: Job, layers: list[int] | None = None) -> Any:
    """The job's model in PEFT, in training mode without dropout; LoRA on these blocks only, or on all."""
    maker = AutoModelForCausalLM if job.task == "causal-lm" else AutoModelForSequenceClassification
    extra: dict[str, float] = {} if job.task == "causal-lm" else {"num_labels": job.num_labels}
    if job.model == "minilm":
        extra |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = maker.from_pretrained(model_folder(job.model), dtype=DTYPES[job.dtype], use_cache=False, **extra)
    model.config.pad_token_id = 0
    base = Base(job.settings, "meta")
    config = LoraConfig(
        r=job.lora.rank,
        lora_alpha=job.lora.alpha,
        target_modules=base.target_names,
        modules_to_save=[name.rpartition(".")[2] for name in base.trained_heads] or None,
        fan_in_fan_out=base.family.name == "gpt2",
        layers_to_transform=layers,
    )
    return get_peft_model(model, config).train()


def load_adapter(model: Any, adapter: Adapter) -> None:
    """Gives a PEFT model the values of one of our adapters."""
    trained: dict[str, nn.Parameter] = {
        name.replace(".default.", ".").replace(".modules_to_save.default", "").replace(".modules_to_save", ""): p
        for name, p in model.named_parameters()
        if p.requires_grad
    }
    assert trained.keys() == adapter.keys(), "both train the same tensors"
    with torch.no_grad():
        for name, value in adapter.items():
            trained[name].copy_(value)
