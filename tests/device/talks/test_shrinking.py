"""The device's end of the shrinking round: the tail in its loss, what it loses, and what it says it has left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bases import moved_adapter, open_base
from cutlayer.device.device import Device
from cutlayer.device.talks.shrinking import RANKS_LEFT, SHAPE, Shrinking
from cutlayer.model.base import Base
from cutlayer.model.low_rank import factor_names
from cutlayer.model.trainable import Trainable
from cutlayer.policies.self_prune import SelfPrune, tail_norm
from cutlayer.testing.tiny import BLOCKS, random_batch
from cutlayer.types import Adapter, Batch, DevicePlan
from cutlayer.wire.messages import Assignment, Close, Finish, Update
from ends import ADAMW, ScriptedLink, converse, device_for

BATCHES = [random_batch("classification", seed=seed, samples=2 + seed) for seed in range(2)]
RATES = (0.01, 0.002)
TO = (5, 5, 5)
"""Ranks that are left of rank 8."""


@pytest.fixture(scope="module")
def bert(tiny_model: Callable[[str, str], Path]) -> Base:
    return open_base(tiny_model("bert", "classification"), "classification")


def assignment(base: Base, *, penalty: float, may: bool = True, round: int = 0) -> Assignment:
    plan = DevicePlan("device-0", BLOCKS, 3, 2, top=BLOCKS, ranks=(8,) * BLOCKS)
    plan = plan.having(SelfPrune(TO, penalty)) if may else plan
    return Assignment("run", round, "device-0", plan, RATES, moved_adapter(base))


def device_of(base: Base, batches: Sequence[Batch] = BATCHES) -> Device:
    return device_for(base, batches, shape=SHAPE)


def hold_round(device: Device, told: Assignment) -> Update:
    [update] = converse(device, ScriptedLink([told, Finish("run", told.round + 1, "")]))
    assert isinstance(update, Update)
    return update


def left_by(update: Update) -> tuple[int, ...]:
    return tuple(update.facts[RANKS_LEFT].tolist()) if update.facts else ()


def by_hand(base: Base, penalty: float, rank: int = 5) -> Adapter:
    """The loss with the penalty in it, in one graph."""
    trainable, part = Trainable(moved_adapter(base), ADAMW.optimizer), base.whole()
    for batch, rate in zip(BATCHES, RATES, strict=True):
        part.use(trainable.parameters)
        loss = part.loss(batch)
        for b, a in factor_names(trainable.parameters):
            tail = trainable.parameters[b][:, rank:].norm() * trainable.parameters[a][rank:].norm()
            loss = loss + penalty * tail
        loss.backward()
        trainable.step(rate)
    return trainable.adapter()


@pytest.mark.parametrize("penalty", [0.0, 0.7])
def test_the_penalty_is_in_the_loss_that_trains_and_not_in_the_one_that_is_told(
    penalty: float, bert: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    shrank: list[bool] = []

    def see_all_of_it(talk: Shrinking) -> Update:
        shrank.append(talk._shrank)
        return talk._device.update()

    expected = by_hand(bert, penalty)
    with monkeypatch.context() as patch:
        patch.setattr(Shrinking, "update", see_all_of_it)
        update = hold_round(device_of(bert), assignment(bert, penalty=penalty))
    for name, value in expected.items():
        torch.testing.assert_close(update.adapter[name], value, rtol=1e-5, atol=1e-6)
    before, after = (tail_norm(a, TO, bert.block_of) for a in (moved_adapter(bert), expected))
    assert shrank == [bool(after < before)] == [bool(penalty)]
    one_step = replace(assignment(bert, penalty=penalty).plan, local_steps=1)
    with_it = hold_round(device_of(bert), replace(assignment(bert, penalty=penalty), plan=one_step))
    plain = replace(one_step, clauses=())
    without = hold_round(device_of(bert), replace(assignment(bert, penalty=penalty), plan=plain))
    assert with_it.loss == without.loss


def test_what_is_sent_is_what_is_left(bert: Base) -> None:
    update = hold_round(device_of(bert), assignment(bert, penalty=0.7))
    assert left_by(update) == TO
    assert update.facts[RANKS_LEFT].dtype is torch.int32
    assert {name: tuple(value.shape) for name, value in update.adapter.items()} == bert.shapes_of(TO)
    expected = bert.at_ranks(by_hand(bert, 0.7), TO)
    for name, value in expected.items():
        torch.testing.assert_close(update.adapter[name], value, rtol=1e-5, atol=1e-6)


def test_a_device_that_is_told_to_end_says_what_is_left_by_then(bert: Base) -> None:
    told = assignment(bert, penalty=0.7)
    link = ScriptedLink([told, (1e-6, Close("run", 0, True, "deadline")), Finish("run", 1, "")])
    [update] = converse(device_of(bert), link)
    assert isinstance(update, Update)
    assert update.steps == 1
    assert left_by(update) == TO


def test_a_tail_that_grew_stays_and_one_that_must_not_go_is_not_told_of(bert: Base) -> None:
    device = device_of(bert, BATCHES * 2)
    for round, (may, left) in enumerate(((True, (8, 8, 8)), (False, ()))):
        update = hold_round(device, assignment(bert, penalty=0.0, may=may, round=round))
        assert left_by(update) == left
        assert {name: tuple(value.shape) for name, value in update.adapter.items()} == bert.shapes


def test_a_tail_that_is_as_it_was_stays(bert: Base) -> None:
    """At a rate of 0: it has to fall below what it was."""
    told = replace(assignment(bert, penalty=0.7), learning_rates=(0.0, 0.0))
    assert left_by(hold_round(device_of(bert), told)) == (8, 8, 8)


def test_a_round_begins_with_nothing_pruned(bert: Base) -> None:
    device = device_of(bert, BATCHES * 2)
    assert left_by(hold_round(device, assignment(bert, penalty=0.7))) == TO
    told = replace(assignment(bert, penalty=0.7, round=1), learning_rates=(0.0, 0.0))
    assert left_by(hold_round(device, told)) == (8, 8, 8)


def test_moments_of_what_is_left_go_on(bert: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device of rank 8 that prunes to 5 steps like AdamW that had only ever had the first five rows."""
    whole: Adapter = {}
    at_end = Shrinking.update

    def watched(talk: Shrinking) -> Update:
        whole.update({n: v.clone() for n, v in talk._device.state().branch("moments").tensors.items()})
        return at_end(talk)

    device = device_of(bert, BATCHES * 2)
    with monkeypatch.context() as patch:
        patch.setattr(Shrinking, "update", watched)
        hold_round(device, assignment(bert, penalty=0.7))
    left = device.state().branch("moments").tensors
    assert left.keys() == whole.keys()
    for name, value in left.items():
        if name.endswith("#step"):
            assert float(value) == 2.0
        else:
            assert torch.equal(value, bert.at_ranks({name: whole[name]}, TO)[name])
    plan = DevicePlan("device-0", BLOCKS, 3, 1, top=BLOCKS, ranks=TO)
    hold_round(device, Assignment("run", 1, "device-0", plan, RATES, bert.at_ranks(moved_adapter(bert), TO)))
    moments = device.state().branch("moments").tensors
    assert {float(value) for name, value in moments.items() if name.endswith("#step")} == {3.0}


def test_an_update_is_the_difference_to_the_rows_that_are_left(bert: Base) -> None:
    broadcast, started_from = moved_adapter(bert), SHAPE.started_from(bert)
    update = hold_round(device_of(bert), assignment(bert, penalty=0.7))
    left, expected = started_from(broadcast, update), bert.at_ranks(broadcast, TO)
    assert left.keys() == expected.keys()
    assert all(torch.equal(left[name], value) for name, value in expected.items())
    assert started_from(broadcast, replace(update, facts={})) is broadcast
