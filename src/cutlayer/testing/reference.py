"""The thing that everything must equal: plain transformers and PEFT, with none of our code in the computation."""

from __future__ import annotations

from typing import Any

from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from cutlayer.model.base import Base
from cutlayer.model.pretrained import pretrained


def plain_peft_model(base: Base) -> tuple[Any, dict[str, nn.Parameter]]:
    """A fresh PEFT model of the same checkpoint and LoRA settings, in eval mode, and its trainables by global name.

    A causal LM that is given labels has logits, (1, N, V), and its loss at the N positions that they teach alone: a
    product of those rows may differ in its last bits from the same rows of a product of all.
    """
    settings = base.settings
    maker = AutoModelForCausalLM if settings.task == "causal-lm" else AutoModelForSequenceClassification
    extra: dict[str, Any] = {} if settings.task == "causal-lm" else {"num_labels": settings.num_labels}
    model = pretrained(base.files, maker, **extra)
    if base.family.poolings[0] == "last":
        model.config.pad_token_id = settings.pad_id
    if settings.task == "causal-lm":
        _only_what_is_taught(model)
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


def _only_what_is_taught(model: Any) -> None:
    given: dict[str, Tensor | None] = {}

    def taught(labels_BT: Tensor) -> Tensor:
        return pad(labels_BT, (0, 1), value=-100)[:, 1:]

    def note(_model: nn.Module, _inputs: Any, named: dict[str, Any]) -> None:
        given["labels"] = named.get("labels")

    def pick(_head: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor | None:
        labels_BT = given["labels"]
        return None if labels_BT is None else inputs[0][taught(labels_BT) != -100][None]

    def loss(logits: Tensor, labels: Tensor, *_: Any, **__: Any) -> Tensor:
        next_BT = taught(labels)
        return cross_entropy(logits[0].float(), next_BT[next_BT != -100])

    model.register_forward_pre_hook(note, with_kwargs=True)
    model.get_output_embeddings().register_forward_pre_hook(pick)
    model.loss_function = loss
