"""A device that prunes: what it removes, what it trains, and that it goes on from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from bases import moved_adapter, open_base
from cutlayer.device.device import Device
from cutlayer.device.talks.pruned import CHANGE, SHAPE, Pruning, structure_in
from cutlayer.errors import ConfigError
from cutlayer.model.adapter import LoraSettings
from cutlayer.model.base import Base
from cutlayer.model.importance import magnitudes, smooth, unit_scores
from cutlayer.model.trainable import Trainable
from cutlayer.policies.prune import Prune, most_important
from cutlayer.state import State
from cutlayer.testing.tiny import BLOCKS, random_batch
from cutlayer.types import Adapter, DevicePlan
from cutlayer.wire.messages import Assignment, Close, Finish, Update
from ends import ADAMW, ScriptedLink, converse, device_for

ModelMaker = Callable[[str, str], Path]
BATCHES = [random_batch("classification", seed=seed, samples=3) for seed in range(8)]
RATES = (0.01, 0.002)


@pytest.fixture(scope="module")
def bert(tiny_model: ModelMaker) -> Base:
    lora = LoraSettings(rank=4, targets=("all-linear",))
    return open_base(tiny_model("bert", "classification"), "classification", lora=lora)


def pruning_device(base: Base) -> Device:
    return device_for(base, BATCHES, shape=SHAPE)


def told(base: Base, round: int, prune: Prune | None) -> Assignment:
    plan = DevicePlan("device-0", BLOCKS, 3, 2, top=BLOCKS)
    plan = plan if prune is None else plan.having(prune)
    return Assignment("run", round, "device-0", plan, RATES, moved_adapter(base, seed=round))


def hold_round(device: Device, base: Base, round: int, prune: Prune | None) -> Update:
    [update] = converse(device, ScriptedLink([told(base, round, prune), Finish("run", round + 1, "")]))
    assert isinstance(update, Update)
    return update


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
    device, prune = pruning_device(bert), (0.0, 0.3, 0.6)
    updates = [hold_round(device, bert, round, Prune(ratio)) for round, ratio in enumerate(prune)]
    adapter, importance, structures = by_hand(bert, 3, prune)
    read = [bert.structure.from_tensors(structure_in(update.facts), "device-0") for update in updates]
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
    update = hold_round(pruning_device(bert), bert, 0, Prune(0.0))
    before = moved_adapter(bert, seed=0)
    squares = [((update.adapter[name] - before[name]) ** 2).sum() for name in before if ".lora_" in name]
    assert update.facts[CHANGE].dtype is torch.float64
    assert float(update.facts[CHANGE]) == pytest.approx(float(sum(squares)) ** 0.5, rel=1e-5)


def test_who_only_prunes_scores_and_measures_nothing(bert: Base) -> None:
    facts = hold_round(pruning_device(bert), bert, 0, Prune(0.3, score=False)).facts
    assert float(facts[CHANGE]) == 0.0
    kept, importance = bert.structure.from_tensors(structure_in(facts), "device-0")
    assert kept != bert.structure.everything
    assert not any(scores.any() for scores in importance.values())


def test_a_device_that_never_prunes_says_nothing_of_its_structure(bert: Base) -> None:
    device = pruning_device(bert)
    assert hold_round(device, bert, 0, None).facts == {}
    assert device.state().branch("talk") == State()


def test_what_is_gone_stays_gone(bert: Base) -> None:
    device = pruning_device(bert)
    first = hold_round(device, bert, 0, Prune(0.3))
    facts = hold_round(device, bert, 1, Prune(0.0)).facts
    assert all(torch.equal(facts[name], first.facts[name]) for name in facts if name.startswith("kept/"))


def test_what_is_chosen_by_size_may_come_back(bert: Base) -> None:
    """A device is left with what one is left with that has never pruned more, or with its whole model."""
    for later in (Prune(0.3, score=False), None):
        device = pruning_device(bert)
        hold_round(device, bert, 0, Prune(0.6, score=False))
        update, expected = hold_round(device, bert, 1, later), hold_round(pruning_device(bert), bert, 1, later)
        assert update.facts.keys() == expected.facts.keys()
        assert all(torch.equal(update.facts[name], value) for name, value in expected.facts.items())
        assert [value.shape for value in update.adapter.values()] == [v.shape for v in expected.adapter.values()]


def test_a_round_that_ends_early_counts_what_was_done(bert: Base) -> None:
    device, close = pruning_device(bert), Close("run", 0, True, "deadline")
    link = ScriptedLink([told(bert, 0, Prune(0.3)), (1e-6, close), Finish("run", 1, "")])
    [update] = converse(device, link)
    assert isinstance(update, Update)
    assert (update.steps, update.samples) == (1, 3)
    assert float(update.facts[CHANGE]) > 0


def test_it_goes_on_from_its_state(bert: Base) -> None:
    first, second = pruning_device(bert), pruning_device(bert)
    for round, ratio in enumerate((0.0, 0.3)):
        hold_round(first, bert, round, Prune(ratio))
    second.load(first.state().copied())
    one, other = (hold_round(device, bert, 2, Prune(0.6)) for device in (first, second))
    for ours, theirs in ((one.adapter, other.adapter), (one.facts, other.facts)):
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


def test_an_update_is_the_difference_to_what_is_left_of_the_broadcast(bert: Base) -> None:
    update, broadcast = hold_round(pruning_device(bert), bert, 0, Prune(0.5)), moved_adapter(bert, seed=0)
    left = SHAPE.started_from(bert)(broadcast, update)
    assert {name: value.shape for name, value in left.items()} == {n: v.shape for n, v in update.adapter.items()}
    kept, _ = bert.structure.from_tensors(structure_in(update.facts), "device-0")
    expected = bert.structure.slice_all(broadcast, kept)
    assert all(torch.equal(left[name], expected[name]) for name in expected)
    whole = hold_round(pruning_device(bert), bert, 0, None)
    assert SHAPE.started_from(bert)(broadcast, whole) is broadcast


def test_a_shape_says_what_is_removed_and_what_cannot_be(bert: Base, tiny_model: ModelMaker) -> None:
    plan = told(bert, 0, Prune(0.3)).plan
    assert SHAPE.flow(plan).removed == 0.3
    assert SHAPE.flow(told(bert, 0, None).plan).removed == 0.0
    assert SHAPE.copies_weights
    SHAPE.prepare(bert, plan)
    opt = open_base(tiny_model("opt", "causal-lm"), "causal-lm", lora=LoraSettings(targets=("q_proj", "fc1", "fc2")))
    SHAPE.prepare(opt, told(bert, 0, None).plan)
    with pytest.raises(ConfigError):
        SHAPE.prepare(opt, plan)
