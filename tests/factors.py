"""Contributions of devices with unequal ranks, made up."""

from __future__ import annotations

import torch
from torch import Tensor

from cutlayer.policies.aggregate import Contribution
from cutlayer.types import Adapter, RoundPlan

A, B, HEAD = "x.q.lora_A.weight", "x.q.lora_B.weight", "classifier.weight"
OUTPUTS, INPUTS, FULL = 7, 9, 4
PLAN = RoundPlan(0)
"""That none of these aggregates looks at."""


def adapter_of(rank: int, seed: int) -> Adapter:
    """One LoRA module of this rank and a head, of random values."""
    generator = torch.Generator().manual_seed(seed)
    return {
        A: torch.randn(rank, INPUTS, generator=generator),
        B: torch.randn(OUTPUTS, rank, generator=generator),
        HEAD: torch.randn(3, generator=generator),
    }


def contribution(rank: int, weight: float, seed: int | None = None) -> Contribution:
    adapter = adapter_of(rank, rank if seed is None else seed)
    return Contribution(adapter, dict.fromkeys(adapter, weight))


def product(adapter: Adapter) -> Tensor:
    return adapter[B].double() @ adapter[A].double()


def mean_product(contributions: list[Contribution]) -> Tensor:
    """The mean of the products, weighted by what was trained, as a dense matrix."""
    total = sum(part.weights[A] for part in contributions)
    parts = [part.weights[A] / total * product(part.adapter) for part in contributions]
    return torch.stack(parts).sum(0)
