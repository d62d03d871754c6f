"""The thing that everything must equal: plain transformers and PEFT, with none of our code in the computation."""

from __future__ import annotations

from typing import Any

from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from cutlayer.model.base import Base
from cutlayer.model.pretrained import pretrained


def plain_peft_model(base: Base) -> tuple[Any, dict[str, nn.Parameter]]:
    """A fresh PEFT model of the same checkpoint and LoRA settings, in eval mode, and its trainables by global name."""
    settings = base.settings
    maker = AutoModelForCausalLM if settings.task == "causal-lm" else AutoModelForSequenceClassification
    extra = {} if settings.task == "causal-lm" else {"num_labels": settings.num_labels}
    model = pretrained(base.files, maker, **extra)
    model.config.pad_token_id = settings.pad_id
    peft_model = get_peft_model(
        model,
        LoraConfig(
            r=settings.lora.rank,
            lora_alpha=settings.lora.alpha,
            target_modules=base.target_names,
            modules_to_save=[name.rpartition(".")[2] for name in base.trained_heads] or None,
            fan_in_fan_out=base.family.name == "gpt2",
        ),
    )
    peft_model.eval()  # no dropout
    inside = {
        name.replace(".default.", ".").replace(".modules_to_save", ""): parameter
        for name, parameter in peft_model.named_parameters()
        if parameter.requires_grad
    }
    assert inside.keys() == base.shapes.keys()
    return peft_model, inside
