"""The units left below a cut: the largest of each block, judged with what LoRA has learnt; all above stays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bases import moved_adapter, open_base
from cutlayer.errors import ConfigError
from cutlayer.model.adapter import LoraSettings
from cutlayer.model.base import Base
from cutlayer.policies.prune_below import PruneBelow, largest_below, pruning_below
from cutlayer.policies.select import everyone
from cutlayer.testing.playground import planned

ModelMaker = Callable[[str, str], Path]


@pytest.fixture(params=["bert", "gpt2", "llama"])
def base(request: pytest.FixtureRequest, tiny_model: ModelMaker) -> Base:
    folder = tiny_model(request.param, "causal-lm" if request.param != "bert" else "classification")
    task = "classification" if request.param == "bert" else "causal-lm"
    return open_base(folder, task, lora=LoraSettings(targets=("all-linear",)))


def test_half_of_each_block_below_the_cut_is_left(base: Base) -> None:
    kept = largest_below(base, 2, base.initial_adapter(0), 0.5)
    counts, everything = base.structure.counts, base.structure.everything
    assert [len(heads) for heads in kept.heads] == [counts["heads"] // 2] * 2 + [counts["heads"]]
    assert [len(channels) for channels in kept.channels] == [counts["channels"] // 2] * 2 + [counts["channels"]]
    assert (kept.heads[2], kept.channels[2]) == (everything.heads[2], everything.channels[2])
    assert kept.channels[0] != tuple(range(len(kept.channels[0]))), "not merely the first"


def test_what_lora_has_learnt_counts(base: Base) -> None:
    """A channel that was left out comes back when its row of B A has grown: it is judged by W + s B A."""
    start = base.initial_adapter(0)
    before = largest_below(base, 1, start, 0.5)
    gone = next(unit for unit in range(base.structure.counts["channels"]) if unit not in before.channels[0])
    grown = {name: value.clone() for name, value in start.items()}
    for path, member in base.structure.matrices("0.channels"):
        if not member.makes:
            continue
        b = f"base_model.model.{path}.lora_B.weight"
        grown[b][member.indices([gone], base.structure.counts["channels"])] = 10.0
    after = largest_below(base, 1, grown, 0.5)
    assert gone in after.channels[0]
    assert len(after.channels[0]) == len(before.channels[0])


def test_weights_above_the_cut_are_not_read(base: Base) -> None:
    fresh = Base(base.settings)
    largest_below(fresh, 1, moved_adapter(base), 0.5)
    assert fresh.weights.loaded
    assert not [name for name in fresh.weights.loaded if fresh.block_of(f"base_model.model.{name}") in (1, 2)]


def test_a_base_without_values_leaves_as_many(base: Base) -> None:
    real, meta = (
        largest_below(one, 2, {name: value.to(one.device) for name, value in base.initial_adapter(0).items()}, 0.3)
        for one in (base, Base(base.settings, device="meta"))
    )
    for one, other in ((real.heads, meta.heads), (real.channels, meta.channels)):
        assert [len(units) for units in one] == [len(units) for units in other]


def test_an_era_lasts_so_many_rounds_and_nothing_is_planned_of_none() -> None:
    clauses = [
        planned(everyone(), pruning_below(0.5, 3), round=round).devices[0].clause(PruneBelow) for round in range(7)
    ]
    assert [clause.era for clause in clauses if clause] == [0, 0, 0, 1, 1, 1, 2]
    assert planned(everyone(), pruning_below(0.0, 3)).devices[0].clauses == ()


@pytest.mark.parametrize(
    ("arguments", "what"), [((1.0, 3), "method.prune"), ((-0.1, 3), "method.prune"), ((0.5, 0), "method.refresh")]
)
def test_numbers_out_of_range(arguments: Any, what: str) -> None:
    with pytest.raises(ConfigError, match=f"{what}: expected"):
        pruning_below(*arguments)


def test_only_scores_decide_between_units(base: Base) -> None:
    """The same adapter leaves the same units, on every device."""
    adapter = moved_adapter(base)
    assert largest_below(base, 2, adapter, 0.5) == largest_below(Base(base.settings), 2, adapter, 0.5)
    assert torch.equal(adapter[base.modules[0]], moved_adapter(base)[base.modules[0]]), "nothing has moved"
