"""Importance of heads and channels: the formulas by hand, and what it may never be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from bases import moved_adapter, open_base, some_kept
from cutlayer.model.adapter import LoraSettings
from cutlayer.model.base import Base
from cutlayer.model.importance import magnitudes, smooth, unit_scores
from cutlayer.model.structure import units_by_name
from cutlayer.testing.tiny import BLOCKS, random_batch
from cutlayer.types import Adapter, Kept

ModelMaker = Callable[[str, str], Path]


def opened(tiny_model: ModelMaker, family: str, task: str) -> Base:
    return open_base(tiny_model(family, task), task, lora=LoraSettings(4, alpha=8.0, targets=("all-linear",)))


@pytest.fixture(scope="module")
def bert(tiny_model: ModelMaker) -> Base:
    return opened(tiny_model, "bert", "classification")


def after_backward(base: Base, adapter: Adapter, kept: Kept) -> tuple[Adapter, dict[str, nn.Parameter]]:
    """The scores of one step from this adapter, and the parameters with their gradients."""
    part = base.pruned(kept)
    parameters = {name: nn.Parameter(tensor) for name, tensor in base.structure.slice_all(adapter, kept).items()}
    part.use(parameters)
    part.loss(random_batch(base.settings.task)).backward()
    return unit_scores(base, part, parameters, kept), parameters


def grad(parameter: nn.Parameter) -> torch.Tensor:
    assert parameter.grad is not None
    return parameter.grad


@pytest.mark.parametrize(
    ("family", "path", "unit_rows"),
    [
        # where the rows (columns) of a unit are, written out by hand
        ("bert", "bert.encoder.layer.{}.attention.self.query", 4),
        ("llama", "model.layers.{}.self_attn.k_proj", 4),
        ("llama", "model.layers.{}.self_attn.q_proj", 8),
    ],
)
def test_by_hand(family: str, path: str, unit_rows: int, tiny_model: ModelMaker) -> None:
    """With LoRA on one matrix alone, a unit's score is that matrix's share."""
    base = opened(tiny_model, family, "classification")
    kept, adapter = some_kept(base.structure, 6), moved_adapter(base)
    _, parameters = after_backward(base, adapter, kept)
    for block in range(BLOCKS):
        module = path.format(block)
        names = [f"base_model.model.{module}.lora_{factor}.weight" for factor in "AB"]
        A, B = (parameters[name] for name in names)
        scores = unit_scores(base, base.pruned(kept), {name: parameters[name] for name in names}, kept)
        weight = base.structure.slice(f"{module}.weight", base.weights.get(f"{module}.weight"), kept)
        surrogate = grad(B) @ A + B @ grad(A) - grad(B) @ grad(A)
        element = (surrogate * (weight + 2.0 * B @ A)).abs()
        unit = torch.stack([rows.sum() for rows in element.split(unit_rows)])
        expected = unit / unit.norm()
        found = scores[f"{block}.heads"]
        torch.testing.assert_close(found[list(kept.heads[block])], expected.detach())
        assert found.count_nonzero() == len(kept.heads[block])
        assert not scores[f"{block}.channels"].any()


def test_columns_count_for_what_takes_the_units(bert: Base) -> None:
    kept, adapter = some_kept(bert.structure, 6), moved_adapter(bert)
    _, parameters = after_backward(bert, adapter, kept)
    names = [f"base_model.model.bert.encoder.layer.1.output.dense.lora_{factor}.weight" for factor in "AB"]
    A, B = (parameters[name] for name in names)
    scores = unit_scores(bert, bert.pruned(kept), {name: parameters[name] for name in names}, kept)
    weight = bert.weights.get("bert.encoder.layer.1.output.dense.weight")[:, list(kept.channels[1])]
    surrogate = grad(B) @ A + B @ grad(A) - grad(B) @ grad(A)
    columns = (surrogate * (weight + 2.0 * B @ A)).abs().sum(0)
    torch.testing.assert_close(scores["1.channels"][list(kept.channels[1])], (columns / columns.norm()).detach())


def test_matrices_of_a_unit_add_up(bert: Base) -> None:
    kept = some_kept(bert.structure, 6)
    together, parameters = after_backward(bert, moved_adapter(bert), kept)
    for name, _ in units_by_name(kept):
        alone = [
            unit_scores(bert, bert.pruned(kept), {n: p for n, p in parameters.items() if f".{path}.lora" in n}, kept)
            for path, _ in bert.structure.matrices(name)
        ]
        torch.testing.assert_close(together[name], sum(scores[name] for scores in alone))


@pytest.mark.parametrize("family", ["bert", "gpt2", "phi3", "llama"])
def test_at_the_start_scores_are_there_and_finite(family: str, tiny_model: ModelMaker) -> None:
    """B is zero, so G is dB A alone; with A zero too, nothing reaches either factor and nothing is scored."""
    base = opened(tiny_model, family, "classification")
    everything = base.structure.everything
    scores, _ = after_backward(base, base.initial_adapter(0), everything)
    assert all(bool(torch.isfinite(score).all()) and bool((score > 0).all()) for score in scores.values())
    nothing = {name: torch.zeros_like(t) if ".lora_" in name else t for name, t in base.initial_adapter(0).items()}
    scores, _ = after_backward(base, nothing, everything)
    assert not any(score.any() for score in scores.values())


def test_importance_is_smoothed_from_nothing() -> None:
    one, other = {"0.heads": torch.tensor([1.0, 0.0])}, {"0.heads": torch.tensor([0.0, 2.0])}
    first = smooth({}, one)
    torch.testing.assert_close(first["0.heads"], torch.tensor([0.1, 0.0]))
    torch.testing.assert_close(smooth(first, other)["0.heads"], torch.tensor([0.09, 0.2]))


def test_magnitudes_are_of_whole_units(tiny_model: ModelMaker) -> None:
    base = opened(tiny_model, "gpt2", "causal-lm")
    weight = base.weights.get("transformer.h.2.mlp.c_fc.weight")  # (inputs, outputs)
    other = base.weights.get("transformer.h.2.mlp.c_proj.weight")
    made, taken = (weight**2).sum(0), (other**2).sum(1)
    torch.testing.assert_close(magnitudes(base)["2.channels"], made / made.norm() + taken / taken.norm())
