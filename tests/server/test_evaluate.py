"""Metrics of the whole model on held-out batches, beside the same by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from bases import moved_adapter, open_base
from cutlayer.model.adapter import LoraSettings
from cutlayer.model.base import Base
from cutlayer.model.part import model_inputs
from cutlayer.server.evaluate import evaluate
from cutlayer.testing.reference import plain_peft_model
from cutlayer.testing.tiny import LABELS, random_batch
from cutlayer.types import Adapter, Batch

ModelMaker = Callable[[str, str], Path]


def batches_of(task: str) -> list[Batch]:
    return [random_batch(task, seed=seed, samples=samples) for seed, samples in enumerate((4, 3, 1))]


def plain_outputs(base: Base, adapter: Adapter, batches: list[Batch]) -> Iterator[tuple[Batch, torch.Tensor, float]]:
    """By transformers and PEFT alone."""
    model, inside = plain_peft_model(base)
    with torch.no_grad():
        for name, value in adapter.items():
            inside[name].copy_(value)
        for batch in batches:
            output = model(**model_inputs(batch), labels=batch.labels)
            yield batch, output.logits, float(output.loss)


def test_classification(tiny_model: ModelMaker) -> None:
    base = open_base(tiny_model("bert", "classification"), "classification")
    adapter, batches = moved_adapter(base), batches_of("classification")
    metrics = evaluate(base, adapter, batches)
    outputs = list(plain_outputs(base, adapter, batches))
    right = sum(int((logits.argmax(-1) == batch.labels).sum()) for batch, logits, _ in outputs)
    assert metrics["accuracy"] == pytest.approx(right / 8)
    assert metrics["loss"] == pytest.approx(sum(loss * batch.weight for batch, _, loss in outputs) / 8)
    guessed = torch.cat([logits.argmax(-1) for _, logits, _ in outputs])
    truth = torch.cat([batch.labels for batch in batches])
    scores = []
    for label in range(LABELS):
        hits = int(((guessed == label) & (truth == label)).sum())
        scores.append(2 * hits / max(1, int((guessed == label).sum() + (truth == label).sum())))
    assert metrics["macro_f1"] == pytest.approx(sum(scores) / LABELS)


def test_causal_lm_is_averaged_over_tokens(tiny_model: ModelMaker) -> None:
    base = open_base(tiny_model("llama", "causal-lm"), "causal-lm")
    adapter, batches = moved_adapter(base), batches_of("causal-lm")
    metrics = evaluate(base, adapter, batches)
    outputs = list(plain_outputs(base, adapter, batches))
    tokens = sum(int((batch.labels[:, 1:] != -100).sum()) for batch in batches)
    loss = sum(loss * batch.weight for batch, _, loss in outputs) / tokens
    assert metrics["loss"] == pytest.approx(loss)
    assert metrics["perplexity"] == pytest.approx(math.exp(loss))
    assert metrics["tokens"] == tokens


def test_dropout_is_off_and_comes_back(tiny_model: ModelMaker) -> None:
    folder = tiny_model("bert", "classification")
    dropping = open_base(folder, "classification", base_dropout=True, lora=LoraSettings(dropout=0.5))
    adapter, batches = moved_adapter(dropping), batches_of("classification")
    assert evaluate(dropping, adapter, batches) == evaluate(open_base(folder, "classification"), adapter, batches)
    assert dropping.whole().model.training


def test_a_failure_leaves_the_model_in_training_mode(tiny_model: ModelMaker) -> None:
    base = open_base(tiny_model("bert", "classification"), "classification")

    def failing() -> Iterator[Batch]:
        yield from batches_of("classification")
        raise OSError("the data went away")

    with pytest.raises(OSError, match="went away"):
        evaluate(base, moved_adapter(base), failing())
    assert base.whole().model.training


def test_training_goes_on_after_an_evaluation(tiny_model: ModelMaker) -> None:
    """What was made in inference mode does not leak into a part that trains."""
    base = open_base(tiny_model("llama", "causal-lm"), "causal-lm")
    batch = random_batch("causal-lm")
    evaluate(base, base.initial_adapter(0), [batch])
    adapter = {name: torch.nn.Parameter(value) for name, value in base.initial_adapter(0).items()}
    base.whole().use(adapter)
    base.whole().loss_and_logits(batch)[0].backward()
    assert all(parameter.grad is not None for parameter in adapter.values())
