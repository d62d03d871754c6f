"""The device's end of the hybrid round: forward passes alone, slopes, and an adapter that stays at home."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bases import moved_adapter, open_base
from cutlayer.device.device import Device
from cutlayer.device.talks.hybrid import SHAPE, SLOPES, move
from cutlayer.errors import WireError
from cutlayer.model.base import Base
from cutlayer.model.dropout import still
from cutlayer.model.part import model_inputs
from cutlayer.model.trainable import OptimizerSettings, Trainable, TrainSettings
from cutlayer.model.zeroth import projected
from cutlayer.policies.directions import Directions, step_seeds
from cutlayer.testing.tiny import random_batch
from cutlayer.types import Adapter, DevicePlan, Event, Flow
from cutlayer.wire.messages import Activations, Assignment, Close, Facts, Finish, Gradients, Message, Update
from ends import ADAMW, ScriptedLink, converse, device_for

ModelMaker = Callable[[str, str], Path]
FINISH = Finish("run", 2, "done")
BATCHES = [random_batch("classification", seed=seed) for seed in range(6)]
ASKED = Directions(3, 1e-3, 0.5)
RATES = (0.01, 0.002)


@pytest.fixture(scope="module")
def bert(tiny_model: ModelMaker) -> Base:
    """With dropout, which none of this must draw."""
    return open_base(tiny_model("bert", "classification"), "classification", base_dropout=True)


def assignment(base: Base, *, cut: int = 2, asked: Directions = ASKED, round: int = 0) -> Assignment:
    adapter = {name: moved_adapter(base)[name] for name in base.device_names(cut)}
    plan = DevicePlan("device-0", cut, 4, 2).having(asked)
    return Assignment("run", round, "device-0", plan, RATES, adapter)


def gradients(step: int, *, nothing: bool = False) -> Callable[[Message], Message]:
    def answer(message: Message) -> Message:
        assert isinstance(message, Activations)
        grad_BTD = None if nothing else torch.linspace(-1, 1, message.h_BTD.numel()).reshape(message.h_BTD.shape)
        return Gradients("run", message.round, step, "device-0", grad_BTD, 0.5)

    return answer


def device_of(base: Base, events: list[Event] | None = None, settings: TrainSettings = ADAMW) -> Device:
    return device_for(base, BATCHES, events, settings, shape=SHAPE)


def by_hand(base: Base, settings: TrainSettings = ADAMW) -> tuple[list[torch.Tensor], list[torch.Tensor], Adapter]:
    """The activations that leave the part, the slopes, and the adapter after two steps."""
    trainable, part = Trainable(assignment(base).adapter, settings.optimizer), base.device_part(2)
    sent, slopes = [], []
    for step in range(2):
        part.use(trainable.parameters)
        with torch.no_grad(), still(part.model):
            h_BTD = part.forward(model_inputs(BATCHES[step]))
            grad_BTD = torch.linspace(-1, 1, h_BTD.numel()).reshape(h_BTD.shape)
            seeds = step_seeds(0, "device-0", 0, step, 3)
            parameters = trainable.parameters
            grown = projected(
                part, model_inputs(BATCHES[step]), parameters, parameters, seeds, ASKED.mu, h_BTD, grad_BTD
            )
        slopes.append(torch.tensor([value / ASKED.mu for value in grown], dtype=torch.float32))
        sent.append(h_BTD)
        move(trainable, settings, assignment(base).plan, RATES[step], seeds, slopes[-1])
    return sent, slopes, trainable.adapter()


@pytest.mark.parametrize("settings", [ADAMW, TrainSettings(OptimizerSettings(weight_decay=0.5))])
def test_it_says_its_slopes_and_moves_by_them(settings: TrainSettings, bert: Base) -> None:
    device = device_of(bert, settings=settings)
    heard = converse(device, ScriptedLink([assignment(bert), gradients(0), gradients(1), FINISH]))
    assert [type(message) for message in heard] == [Activations, Facts, Activations, Facts, Update]
    sent, slopes, adapter = by_hand(bert, settings)
    for step in range(2):
        activations, facts = heard[2 * step], heard[2 * step + 1]
        assert isinstance(activations, Activations)
        assert isinstance(facts, Facts)
        assert torch.equal(activations.h_BTD, sent[step])
        assert (facts.run, facts.round, facts.step, facts.device) == ("run", 0, step, "device-0")
        assert facts.facts.keys() == {SLOPES}
        assert torch.equal(facts.facts[SLOPES], slopes[step])
        assert facts.facts[SLOPES].any()
    start = assignment(bert).adapter
    moved = device.trainable.adapter()
    assert all(torch.equal(moved[name], value) for name, value in adapter.items())
    assert not any(torch.equal(moved[name], value) for name, value in start.items())


def test_its_adapter_stays_at_home(bert: Base) -> None:
    device = device_of(bert)
    update = converse(device, ScriptedLink([assignment(bert), gradients(0), gradients(1), FINISH]))[-1]
    assert isinstance(update, Update)
    assert (update.adapter, update.facts, update.steps, update.samples, update.weight) == ({}, {}, 0, 8, 8)
    assert all(parameter.grad is None for parameter in device.trainable.parameters.values())
    assert device.state().branch("moments").tensors == {}


def test_where_nothing_trains_slopes_are_zeros(bert: Base) -> None:
    told = assignment(bert, cut=0)
    says = [told, gradients(0, nothing=True), gradients(1, nothing=True), FINISH]
    _, facts, *_ = converse(device_of(bert), ScriptedLink(says))
    assert isinstance(facts, Facts)
    assert torch.equal(facts.facts[SLOPES], torch.zeros(3))


def test_directions_at_once_are_the_same(bert: Base) -> None:
    def slopes(at_once: int) -> torch.Tensor:
        told = assignment(bert, asked=replace(ASKED, at_once=at_once))
        _, facts, *_ = converse(device_of(bert), ScriptedLink([told, gradients(0), gradients(1), FINISH]))
        assert isinstance(facts, Facts)
        return facts.facts[SLOPES]

    torch.testing.assert_close(slopes(3), slopes(1), rtol=1e-2, atol=1e-2)


def test_it_only_runs_forward(bert: Base) -> None:
    """A step is 1 + P forward passes, which cost what the shape says."""
    events: list[Event] = []
    converse(device_of(bert, events), ScriptedLink([assignment(bert), gradients(0), gradients(1), FINISH]))
    assert [(event.what, event.step) for event in events] == [("forward", 0)] * 2 + [("forward", 1)] * 2
    first, second = (event.flops for event in events[:2])
    assert second == pytest.approx(3 * first)
    plan = assignment(bert, asked=replace(ASKED, at_once=2)).plan
    assert SHAPE.flow(plan) == Flow(forwards=4, at_once=2, backward=False)


@pytest.mark.parametrize("wanted", [True, False])
def test_a_step_that_was_not_answered_does_not_count(wanted: bool, bert: Base) -> None:
    says: list[Any] = [assignment(bert), gradients(0), Close("run", 0, wanted, "deadline")]
    second = [assignment(bert, round=1), gradients(0), gradients(1), FINISH]
    heard = converse(device_of(bert), ScriptedLink([*says, *second], hasty=True))
    kinds = [Activations, Facts, Activations, *[Update] * wanted, Activations, Facts, Activations, Facts, Update]
    assert [type(message) for message in heard] == kinds
    if wanted:
        assert isinstance(heard[3], Update)
        assert heard[3].samples == 4
    again = heard[-5]
    assert isinstance(again, Activations)
    assert torch.equal(again.labels, BATCHES[1].labels.int()), "the batch was put back"


def test_a_device_believes_nothing_out_of_turn(bert: Base) -> None:
    with pytest.raises(WireError, match="expected Gradients of step 1, got Gradients"):
        converse(device_of(bert), ScriptedLink([assignment(bert), gradients(0), gradients(0)]))
    with pytest.raises(WireError, match="expected Gradients of step 0, got Facts"):
        converse(device_of(bert), ScriptedLink([assignment(bert), Facts("run", 0, 0, "device-0", {})]))
