"""A device that prunes: what it removes, what it trains, and that it goes on from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cutlayer.device.pruning import Pruning
from torch import nn

from bases import moved_adapter, open_base
from cutlayer.device.device import Device
from cutlayer.fleet.clock import run_virtual
from cutlayer.model.adapter import LoraSettings
from cutlayer.model.base import Base
from cutlayer.model.importance import magnitudes, smooth, unit_scores
from cutlayer.model.trainable import Trainable
from cutlayer.policies.prune import most_important
from cutlayer.state import State
from cutlayer.testing.tiny import BLOCKS, random_batch
from cutlayer.types import Adapter, DevicePlan
from cutlayer.wire.messages import Assignment, Update
from ends import ADAMW, device_for

ModelMaker = Callable[[str, str], Path]
BATCHES = [random_batch("classification", seed=seed, samples=3) for seed in range(8)]
RATES = (0.01, 0.002)


@pytest.fixture(scope="module")
def bert(tiny_model: ModelMaker) -> Base:
    lora = LoraSettings(rank=4, targets=("all-linear",))
    return open_base(tiny_model("bert", "classification"), "classification", lora=lora)


def hold_round(device: Device, base: Base, round: int, prune: float, *, score: bool = True) -> Update:
    plan = DevicePlan("device-0", BLOCKS, 3, 2, head=True, prune=prune, score=score)
    device.begin(Assignment("run", round, "device-0", plan, RATES, moved_adapter(base, seed=round)))
    for step in range(2):
        run_virtual(device.train(step))
    return device.update()


def by_hand(base: Base, rounds: int, prune: tuple[float, ...]) -> tuple[Adapter, Adapter, list[object]]:
    """The same without a device: adapter and importance after the last round, and every round's structure."""
    trainable, importance, kept, structures = Trainable({}, ADAMW.optimizer), {}, base.structure.everything, []
    batches = iter(BATCHES)
    for round in range(rounds):
        if prune[round]:
            kept = most_important(importance, kept, base.structure.left(prune[round]))
        structures.append(kept)
        trainable.load(base.structure.slice_all(moved_adapter(base, seed=round), kept))
        for rate in RATES:
            part = base.pruned(kept)
            part.use(trainable.parameters)
            part.loss(next(batches)).backward()
            importance = smooth(importance, unit_scores(base, part, trainable.parameters, kept))
            trainable.step(rate)
    return trainable.adapter(), importance, structures


def test_it_prunes_by_what_earlier_rounds_scored(bert: Base) -> None:
    device, prune = device_for(bert, BATCHES), (0.0, 0.3, 0.6)
    updates = [hold_round(device, bert, round, ratio) for round, ratio in enumerate(prune)]
    adapter, importance, structures = by_hand(bert, 3, prune)
    read = [bert.structure.from_tensors(update.structure, "device-0") for update in updates]
    assert [kept for kept, _ in read] == structures
    assert len(set(map(str, structures))) == 3
    assert all(torch.equal(updates[-1].adapter[name], adapter[name]) for name in adapter)
    kept, last = read[-1]
    for name, scores in last.items():
        block, group = name.split(".")
        units = list(getattr(kept, group)[int(block)])
        assert torch.equal(scores[units], importance[name][units])
        assert not scores[[unit for unit in range(len(scores)) if unit not in units]].any()


def test_the_change_of_a_round_is_the_norm_of_its_lora_factors(bert: Base) -> None:
    device = device_for(bert, BATCHES)
    update = hold_round(device, bert, 0, 0.0)
    before = moved_adapter(bert, seed=0)
    squares = [((update.adapter[name] - before[name]) ** 2).sum() for name in before if ".lora_" in name]
    assert update.change == pytest.approx(float(sum(squares)) ** 0.5, rel=1e-5)
    assert hold_round(device_for(bert, BATCHES), bert, 0, 0.0, score=False).change == 0.0


def test_a_device_that_never_prunes_says_nothing_of_its_structure(bert: Base) -> None:
    device = device_for(bert, BATCHES)
    assert hold_round(device, bert, 0, 0.0, score=False).structure == {}
    assert device.state().branch("pruning") == State()


def test_it_goes_on_from_its_state(bert: Base) -> None:
    first = device_for(bert, BATCHES)
    for round, ratio in enumerate((0.0, 0.3)):
        hold_round(first, bert, round, ratio)
    second = device_for(bert, BATCHES)
    second.load(first.state().copied())
    one, other = hold_round(first, bert, 2, 0.6), hold_round(second, bert, 2, 0.6)
    for ours, theirs in ((one.adapter, other.adapter), (one.structure, other.structure)):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_without_any_gradient_the_size_of_the_weights_decides(bert: Base) -> None:
    """A device whose first round is a later one."""
    pruning = Pruning(bert)
    pruning.prune(0.5)
    assert pruning.kept == most_important(magnitudes(bert), bert.structure.everything, (2, 16))
    part = bert.pruned(pruning.kept)
    parameters = {
        name: nn.Parameter(value) for name, value in bert.structure.slice_all(moved_adapter(bert), pruning.kept).items()
    }
    part.use(parameters)
    part.loss(BATCHES[0]).backward()
    pruning.observe(part, parameters)
    assert sum(name.startswith("importance/") for name in pruning.state().tensors) == 2 * BLOCKS
