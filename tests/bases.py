"""Opening a tiny model as a run would, in one line."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch

from cutlayer.model.base import Base
from cutlayer.model.settings import ModelSettings
from cutlayer.model.structure import Structure
from cutlayer.testing.tiny import LABELS
from cutlayer.types import Adapter, Kept


def settings_for(folder: Path, task: str, **changes: Any) -> ModelSettings:
    """The settings of a run on this model; `changes` are fields of `ModelSettings`."""
    labels = LABELS if task == "classification" else 0
    return ModelSettings(**{"name": str(folder), "task": task, "num_labels": labels, **changes})


def open_base(folder: Path, task: str, **changes: Any) -> Base:
    """The base of this model on the CPU."""
    return Base(settings_for(folder, task, **changes))


def moved_adapter(base: Base, *, seed: int = 1) -> Adapter:
    """An adapter as it is after some training: no tensor is where it began, B is not zero."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: value + 0.05 * torch.randn(value.shape, generator=generator)
        for name, value in base.initial_adapter(seed=0).items()
    }


def some_kept(structure: Structure, seed: int) -> Kept:
    """Another number of units in every block, never the first ones only."""
    rng = random.Random(seed)

    def choose(count: int, block: int) -> tuple[int, ...]:
        return tuple(sorted(rng.sample(range(count), max(1, count - 1 - block % count))))

    heads, channels = structure.counts["heads"], structure.counts["channels"]
    return Kept(
        tuple(choose(heads, block) for block in range(structure.num_blocks)),
        tuple(choose(channels, 7 * block) for block in range(structure.num_blocks)),
    )
