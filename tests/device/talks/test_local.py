"""The device's end of the local round: it trains alone, and hears between two steps that the round is over."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bases import moved_adapter, open_base
from cutlayer.device.device import Device
from cutlayer.device.talks.local import SHAPE
from cutlayer.errors import WireError
from cutlayer.model.base import Base
from cutlayer.model.trainable import Trainable
from cutlayer.state import State
from cutlayer.testing.tiny import BLOCKS, random_batch
from cutlayer.types import Adapter, DevicePlan, Event
from cutlayer.wire.messages import Assignment, Close, Finish, Gradients, Update
from ends import ADAMW, ScriptedLink, converse, device_for

ModelMaker = Callable[[str, str], Path]
FINISH = Finish("run", 2, "done")
BATCHES = [random_batch("classification", seed=seed, samples=2 + seed) for seed in range(6)]
RATES = (0.01, 0.002, 0.005)
SECOND = 2 * 1e6 * 3.1 * 12 / 1e9
"""That forward and backward of one sample take."""


@pytest.fixture(scope="module")
def bert(tiny_model: ModelMaker) -> Base:
    return open_base(tiny_model("bert", "classification"), "classification")


def device_of(base: Base, events: list[Event] | None = None) -> Device:
    return device_for(base, BATCHES, events, shape=SHAPE)


def assignment(base: Base, *, steps: int = 3, round: int = 0) -> Assignment:
    plan = DevicePlan("device-0", BLOCKS, 4, steps, top=BLOCKS)
    return Assignment("run", round, "device-0", plan, RATES[:steps], moved_adapter(base))


def by_hand(base: Base, steps: int, first: int = 0) -> tuple[Adapter, float]:
    """Plain training of the whole model on the next batches; and the loss by sample."""
    trainable, part, losses = Trainable(moved_adapter(base), ADAMW.optimizer), base.whole(), 0.0
    batches = BATCHES[first : first + steps]
    for batch, rate in zip(batches, RATES, strict=False):
        part.use(trainable.parameters)
        loss = part.loss(batch)
        loss.backward()
        trainable.step(rate)
        losses += float(loss.detach()) * batch.weight
    return trainable.adapter(), losses / sum(batch.weight for batch in batches)


def assert_trained(update: object, expected: tuple[Adapter, float], *, steps: int) -> None:
    assert isinstance(update, Update)
    assert all(torch.equal(update.adapter[name], value) for name, value in expected[0].items())
    assert (update.steps, update.loss, update.facts) == (steps, expected[1], {})


def test_it_trains_the_whole_model_and_sends_its_adapter(bert: Base) -> None:
    events: list[Event] = []
    [update] = converse(device_of(bert, events), ScriptedLink([assignment(bert), FINISH]))
    assert_trained(update, by_hand(bert, 3), steps=3)
    assert [(event.what, event.step) for event in events] == [
        (what, step) for step in range(3) for what in ("forward", "backward")
    ]


@pytest.mark.parametrize("wanted", [True, False])
def test_a_round_ends_early_after_a_step(wanted: bool, bert: Base) -> None:
    """The step under way when the word came is done to its end, and counts if it is wanted."""
    close = Close("run", 0, wanted, "deadline")
    says: list[Any] = [
        assignment(bert),
        (SECOND * 2.5, close),
        (9.0, assignment(bert, steps=1, round=1)),
        (99.0, FINISH),
    ]
    heard = converse(device_of(bert), ScriptedLink(says))
    assert [message.round for message in heard] == [0] * wanted + [1]
    if wanted:
        assert_trained(heard[0], by_hand(bert, 2), steps=2)


def test_another_round_in_the_middle_of_one(bert: Base) -> None:
    """It went on without the device, which follows; what it had done is forgotten."""
    says: list[Any] = [assignment(bert), (SECOND, assignment(bert, steps=1, round=1)), (99.0, FINISH)]
    [update] = converse(device_of(bert), ScriptedLink(says, hasty=True))
    assert isinstance(update, Update)
    assert (update.round, update.steps) == (1, 1)
    assert update.samples == BATCHES[1].num_samples


def test_the_run_may_end_in_the_middle_of_a_round(bert: Base) -> None:
    assert converse(device_of(bert), ScriptedLink([assignment(bert), (SECOND, FINISH)])) == []


def test_a_device_believes_nothing_out_of_turn(bert: Base) -> None:
    stray = Gradients("run", 0, 0, "device-0", None, 0.5)
    with pytest.raises(WireError, match="expected an Assignment or Finish, got Gradients"):
        converse(device_of(bert), ScriptedLink([stray]))


def test_its_talk_keeps_nothing(bert: Base) -> None:
    device = device_of(bert)
    converse(device, ScriptedLink([assignment(bert), FINISH]))
    assert device.state().branch("talk") == State()
