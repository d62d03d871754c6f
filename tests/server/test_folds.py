"""The folds of a run: each device is sent what it lacks, once; a resumed server has folded what the first one did."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bases import moved_adapter, open_base
from cutlayer.model.base import Base
from cutlayer.server.folds import Folds
from cutlayer.testing.tiny import random_batch
from cutlayer.types import Adapter

ModelMaker = Callable[[str, str], Path]
BATCH = random_batch("classification")


@pytest.fixture
def base(tiny_model: ModelMaker) -> Base:
    return open_base(tiny_model("bert", "classification"), "classification")


def stack(base: Base, seed: int) -> Adapter:
    return {name: value for name, value in moved_adapter(base, seed=seed).items() if ".lora_" in name}


def logits(base: Base, adapter: Adapter) -> torch.Tensor:
    whole = base.whole()
    whole.use(adapter)
    return whole.loss_and_logits(BATCH)[1].detach()


def test_a_device_is_sent_what_it_lacks_of_the_blocks_that_it_holds(base: Base) -> None:
    folds, stacks = Folds(base), [stack(base, seed) for seed in range(3)]
    held = [name for name in base.device_names(2) if ".lora_" in name]
    assert folds.missed("pi", held) == {}
    folds.add(stacks[0])
    folds.has_all("jetson", 3)
    folds.add(stacks[1])
    folds.add(stacks[2])
    missed = folds.missed("pi", held)
    assert missed.keys() == {f"{number}/{name}" for number in range(3) for name in held}
    assert all(missed[f"{number}/{name}"] is stacks[number][name] for number in range(3) for name in held)
    assert folds.missed("jetson", held).keys() == {f"{number}/{name}" for number in (1, 2) for name in held}
    folds.has_all("pi", 2)
    assert folds.missed("pi", held) == {}
    assert folds.held == {"jetson": [1, 1, 1], "pi": [3, 3, 0]}
    assert folds.num_bytes == sum(value.nbytes for one in stacks for value in one.values())


def test_a_device_whose_cut_moves_is_sent_what_it_lacks_of_each_block(base: Base) -> None:
    """Two blocks, then one, then two again: of the second block it lacks what came while it held one."""
    folds = Folds(base)
    lora = [[name for name in base.device_names(cut) if ".lora_" in name] for cut in range(4)]
    for seed, cut in enumerate((2, 1, 2)):
        folds.add(stack(base, seed))
        missed = folds.missed("pi", lora[cut])
        numbers = {"first": [seed], "second": [[0], [], [1, 2]][seed]}
        expected = {f"{number}/{name}" for number in numbers["first"] for name in lora[1]}
        expected |= {f"{number}/{name}" for number in numbers["second"] for name in lora[2][len(lora[1]) :]}
        assert missed.keys() == expected
        folds.has_all("pi", cut)
    assert folds.missed("pi", lora[3]).keys() == {f"{n}/{name}" for n in range(3) for name in lora[3][len(lora[2]) :]}


def test_they_are_folded_here_at_once_and_taken_back_for_the_next_run(base: Base) -> None:
    adapter = base.initial_adapter(0)
    before = logits(base, adapter)
    folds = Folds(base)
    folds.add(stack(base, 1))
    folded = logits(base, adapter)
    assert not torch.equal(folded, before)
    torch.testing.assert_close(folded, _on_another_base(base, folds.taken_back(adapter)), rtol=1e-4, atol=1e-5)
    assert torch.equal(logits(base, adapter), folded), "it was asked of another base"
    Folds(base)  # of another run of this process
    assert torch.equal(logits(base, adapter), before)


def _on_another_base(base: Base, adapter: Adapter) -> torch.Tensor:
    """The logits on the weights as they are stored, by LoRA of the rank that the adapter has."""
    lora, rank = base.settings.lora, max(value.shape[0] for name, value in adapter.items() if ".lora_A" in name)
    higher = replace(lora, rank=rank, alpha=lora.alpha * rank / lora.rank)
    return logits(open_base(Path(base.settings.name), "classification", lora=higher), adapter)


def test_a_server_that_goes_on_has_folded_what_the_first_one_did(tiny_model: ModelMaker, base: Base) -> None:
    first, adapter = Folds(base), base.initial_adapter(0)
    first.add(stack(base, 1))
    first.has_all("pi", 3)
    first.add(stack(base, 2))
    state = first.state()
    assert state.facts == {"held": {"pi": [1, 1, 1]}}

    other = open_base(tiny_model("bert", "classification"), "classification")
    again = Folds(other)
    for _ in range(2):  # what was folded is not folded again
        again.load(state.copied())
        assert torch.equal(logits(other, adapter), logits(base, adapter))
    held = [name for name in base.device_names(2) if ".lora_" in name]
    assert again.missed("pi", held).keys() == first.missed("pi", held).keys()
    again.add(stack(base, 3))
    first.add(stack(base, 3))
    assert torch.equal(logits(other, adapter), logits(base, adapter))
    assert again.state().tensors.keys() == first.state().tensors.keys()


def test_of_some_devices_it_says_only_what_those_have(base: Base) -> None:
    folds = Folds(base)
    folds.add(stack(base, 1))
    folds.has_all("pi", 1)
    folds.has_all("jetson", 3)
    part = folds.state({"pi", "new"})
    assert part.facts == {"held": {"pi": [1, 0, 0]}}
    assert part.tensors.keys() == folds.all.keys(), "all folds: each of them may lack any"
