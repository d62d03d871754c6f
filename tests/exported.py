"""An exported adapter beside the model that it was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from cutlayer.model.base import Base
from cutlayer.model.card import AdapterCard
from cutlayer.model.part import model_inputs
from cutlayer.testing.tiny import LABELS, random_batch
from cutlayer.types import Adapter


def card_for(base: Base) -> AdapterCard:
    labels = ("sad", "so-so", "glad") if base.settings.task == "classification" else ()
    columns = {"text": "text", "label": "label"}
    return AdapterCard(base.settings.name, base.settings.task, labels, base.pooling, 12, base.settings.pad_id, columns)


def whole_logits(base: Base, adapter: Adapter) -> Tensor:
    whole = base.whole(base.blocks_in(adapter))
    whole.use(adapter)
    whole.model.eval()
    with torch.no_grad():
        logits = whole.loss_and_logits(random_batch(base.settings.task, seed=9))[1]
    whole.model.train()
    return logits


def logits_of(model: Any, task: str) -> Tensor:
    model.eval()
    with torch.no_grad():
        logits: Tensor = model(**model_inputs(random_batch(task, seed=9))).logits
    return logits


def plain_peft(base: Base, folder: Path) -> Any:
    """The exported adapter as anyone would load it who has never heard of cutlayer."""
    if base.settings.task == "causal-lm":
        model = AutoModelForCausalLM.from_pretrained(base.settings.name)
    else:
        model = AutoModelForSequenceClassification.from_pretrained(base.settings.name, num_labels=LABELS)
        model.config.pad_token_id = 0
    return PeftModel.from_pretrained(model, folder)
