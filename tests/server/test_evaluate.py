"""Metrics of the whole model on held-out batches, beside the same by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bases import moved_adapter, open_base, some_kept
from cutlayer.model.adapter import LoraSettings
from cutlayer.model.base import Base
from cutlayer.model.part import model_inputs
from cutlayer.server import evaluate as module
from cutlayer.server.evaluate import evaluate, has_gradients, rows_at_once
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
    """Tensors that were made in inference mode do not leak into a part that trains."""
    base = open_base(tiny_model("llama", "causal-lm"), "causal-lm")
    batch = random_batch("causal-lm")
    evaluate(base, base.initial_adapter(0), [batch])
    adapter = {name: torch.nn.Parameter(value) for name, value in base.initial_adapter(0).items()}
    base.whole().use(adapter)
    base.whole().loss_and_logits(batch)[0].backward()
    assert all(parameter.grad is not None for parameter in adapter.values())


def test_what_comes_and_goes_is_bounded(tiny_model: ModelMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more rows at once than the budget has room for; the same metrics whatever it is; every sample told of."""
    base = open_base(tiny_model("llama", "causal-lm"), "causal-lm")
    adapter, batches = moved_adapter(base), batches_of("causal-lm")
    at_once, told = evaluate(base, adapter, batches), list[int]()
    row_bytes = 9 * base.vocabulary * 4  # the longest learns nine tokens
    monkeypatch.setattr(module, "BUDGET_BYTES", 2 * row_bytes)
    monkeypatch.setattr(module, "WIDE", 0)
    sizes = [rows_at_once(batch, base) for batch in batches]
    assert [sum(each) for each in sizes] == [4, 3, 1]
    assert max(max(each) for each in sizes) == 2
    logits = list[int]()
    head = base.whole().model.get_output_embeddings()
    handle = head.register_forward_hook(lambda _head, _inputs, output: logits.append(output.numel() * 4))
    few = evaluate(base, adapter, batches, told=told.append)
    handle.remove()
    assert max(logits) <= 2 * row_bytes
    assert few == pytest.approx(at_once)
    assert told[-1] == 8
    monkeypatch.setattr(module, "BUDGET_BYTES", 1)
    assert rows_at_once(batches[0], base) == [1, 1, 1, 1], "a row is never cut"


def test_long_rows_of_which_little_is_learned_are_bounded_by_their_width(
    tiny_model: ModelMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, batch = open_base(tiny_model("llama", "causal-lm"), "causal-lm"), random_batch("causal-lm", samples=5)
    labels = torch.full_like(batch.labels, -100)
    labels[:, 1] = 1
    row_bytes = module.WIDE * labels.shape[1] * base.widest * 4
    assert row_bytes > base.vocabulary * 4, "or logits would be what bounds it"
    monkeypatch.setattr(module, "BUDGET_BYTES", 2 * row_bytes)
    assert rows_at_once(replace(batch, labels=labels), base) == [2, 2, 1]


def test_a_row_with_nothing_to_learn_counts_for_nothing(tiny_model: ModelMaker) -> None:
    base = open_base(tiny_model("llama", "causal-lm"), "causal-lm")
    batch = random_batch("causal-lm")
    empty = replace(batch, labels=torch.full_like(batch.labels, -100), weight=0)
    adapter = base.initial_adapter(0)
    assert evaluate(base, adapter, [batch, empty]) == evaluate(base, adapter, [batch])


def test_a_loss_may_be_finite_and_its_gradients_not(tiny_model: ModelMaker) -> None:
    """Norms bring what is loud back on the way up, and not on the way down: 32 bits are not enough for that."""
    base = open_base(tiny_model("gpt2", "causal-lm"), "causal-lm", lora=LoraSettings(targets=("all-linear",)))
    [batch, *_] = batches_of("causal-lm")
    adapter = moved_adapter(base)
    before = {name: value.clone() for name, value in adapter.items()}
    assert has_gradients(base, adapter, batch)
    assert all(torch.equal(value, before[name]) for name, value in adapter.items())
    for value in adapter.values():
        value[..., ::2] = 4096.0
    assert math.isfinite(evaluate(base, adapter, [batch])["loss"])
    assert not has_gradients(base, adapter, batch)


def test_gradients_of_a_pruned_model(tiny_model: ModelMaker) -> None:
    lora = LoraSettings(targets=("all-linear",))
    base = open_base(tiny_model("bert", "classification"), "classification", lora=lora)
    [batch, *_] = batches_of("classification")
    kept = some_kept(base.structure, seed=3)
    assert has_gradients(base, moved_adapter(base), batch, kept)
