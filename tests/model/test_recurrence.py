"""The engine's recurrence trains as queries and steps do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bases import moved_adapter, open_base
from cutlayer.model.optimizers import sgd, zeroth
from cutlayer.model.recurrence import Recurrence
from cutlayer.model.replicas import replicated
from cutlayer.model.trainable import Trainable
from cutlayer.model.zeroth import directions, lora_fa, mean_terms, two_sided
from cutlayer.testing.tiny import random_batch
from cutlayer.types import Adapter

ModelMaker = Callable[[str, str], Path]
EPSILON, RATE, STEPS = 1e-2, 1e-2, 6


def seeds_of(step: int, queries: int) -> list[int]:
    return [100 * step + query for query in range(queries)]


@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize(
    ("family", "task"), [("bert", "classification"), ("llama", "causal-lm"), ("gpt2", "causal-lm")]
)
def test_the_recurrence_is_dual_queries_and_steps(family: str, task: str, queries: int, tiny_model: ModelMaker) -> None:
    """After six steps of a model, to what fp32 rounds: 1e-7 of B at a step, and slopes that differ for it."""
    base = open_base(tiny_model(family, task), task)
    part, adapter = base.whole(), moved_adapter(base)
    names = lora_fa(part.names)
    trainable = Trainable({name: adapter[name] for name in names}, sgd())
    engine = Recurrence(trainable.adapter(), queries, EPSILON)
    slopes: list[float] = []
    for step in range(STEPS):
        batch, seeds = random_batch(task, seed=step), seeds_of(step, queries)
        now = {**adapter, **trainable.adapter()}
        dual, _ = two_sided(part, batch, now, names, seeds, EPSILON, at_once=2 * queries)
        trainable.step(RATE, zeroth(mean_terms(seeds, dual)))
        with replicated(part, adapter, engine.next(seeds, RATE, slopes)):
            losses = part.losses(batch, 2 * queries)
        slopes = ((losses[:queries] - losses[queries:]) / (2 * EPSILON)).tolist()
        assert slopes == pytest.approx(dual, abs=2e-3)
    moved = 0.0
    for name, value in engine.end(RATE, slopes).items():
        torch.testing.assert_close(value, trainable.adapter()[name], atol=5e-5, rtol=0)
        moved = max(moved, float((value - adapter[name]).abs().max()))
    assert moved > 1e-3


def run(dtype: torch.dtype, queries: int, slope: Callable[[Tensor], Tensor]) -> tuple[Adapter, Adapter]:
    """Both forms on a function of one tensor, its slope along z given by hand."""
    start = {"a": torch.randn(30, 4, generator=torch.Generator().manual_seed(0)).to(dtype)}
    engine, values = Recurrence(start, queries, EPSILON), {"a": start["a"].clone()}
    slopes: list[float] = []
    for step in range(20):
        seeds = seeds_of(step, queries)
        z_Q = directions(values, ["a"], seeds)["a"].to(dtype)
        ends = engine.next(seeds, RATE, slopes)["a"]
        slopes = [float(slope(end)) for end in ends[:queries]]
        exact = [float(slope(values["a"] + EPSILON * z)) for z in z_Q]
        values["a"] = values["a"] - RATE * sum(g * z for g, z in zip(exact, z_Q, strict=True)) / queries
    return engine.end(RATE, slopes), values


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
@pytest.mark.parametrize("queries", [1, 4])
def test_the_recurrence_is_exact_but_for_rounding(dtype: torch.dtype, tolerance: float, queries: int) -> None:
    """The finer the numbers, the nearer: twenty steps of fp64 end within 1e-13."""
    engine, values = run(dtype, queries, lambda x: (x**3).mean() + x.mean())
    torch.testing.assert_close(engine["a"], values["a"], atol=tolerance, rtol=0)


def test_all_queries_meet_in_the_middle() -> None:
    start = {"a": torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))}
    engine = Recurrence(start, 2, EPSILON)
    ends = engine.next([1, 2])["a"]
    z_Q = directions(start, ["a"], [1, 2])["a"]
    torch.testing.assert_close(ends, torch.cat([start["a"] + EPSILON * z_Q, start["a"] - EPSILON * z_Q]))
    torch.testing.assert_close(engine.end(RATE, [0.0, 0.0])["a"], start["a"])


def test_what_it_began_from_stays() -> None:
    start = {"a": torch.ones(3)}
    engine = Recurrence(start, 2, EPSILON)
    engine.next([1, 2])
    engine.next([3, 4], RATE, [1.0, 2.0])
    assert torch.equal(start["a"], torch.ones(3))


def test_every_query_has_its_slope() -> None:
    engine = Recurrence({"a": torch.ones(3)}, 2, EPSILON)
    engine.next([1, 2])
    with pytest.raises(ValueError, match="longer"):
        engine.next([3, 4], RATE, [1.0])
