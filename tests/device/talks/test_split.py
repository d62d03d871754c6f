"""The device's end of the up-and-down round: what it says, what it waits for, and what it believes of nobody."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bases import moved_adapter, open_base
from cutlayer.data.batches import parts_of
from cutlayer.device.device import Device
from cutlayer.device.talks.split import SHAPE
from cutlayer.errors import WireError
from cutlayer.model.base import Base
from cutlayer.model.part import model_inputs
from cutlayer.model.trainable import Trainable
from cutlayer.testing.tiny import random_batch
from cutlayer.types import DevicePlan, Flow
from cutlayer.wire.messages import Activations, Assignment, Close, Finish, Gradients, Message, Update
from ends import ADAMW, ScriptedLink, converse, device_for

ModelMaker = Callable[[str, str], Path]
FINISH = Finish("run", 1, "done")
BATCHES = [random_batch("classification", seed=seed) for seed in range(8)]


@pytest.fixture(scope="module")
def bert(tiny_model: ModelMaker) -> Base:
    return open_base(tiny_model("bert", "classification"), "classification")


def assignment(base: Base, *, steps: int = 2, round: int = 0, parts: int = 1, overlap: bool = True) -> Assignment:
    adapter = {name: moved_adapter(base)[name] for name in base.device_names(1)}
    plan = DevicePlan("device-0", 1, 4, local_steps=steps, micro_batches=parts, overlap=overlap)
    return Assignment("run", round, "device-0", plan, (0.01,) * steps, adapter)


def gradients(step: int, part: int = 0) -> Callable[[Message], Message]:
    def answer(message: Message) -> Message:
        assert isinstance(message, Activations)
        grad_BTD = torch.ones(len(message.mask_BT), *message.h_BTD.shape[1:])
        return Gradients("run", message.round, step, "device-0", grad_BTD, 0.5, part)

    return answer


def device_of(base: Base) -> Device:
    return device_for(base, BATCHES, shape=SHAPE)


def run_device(base: Base, says: list[Any], **options: Any) -> list[Message]:
    return converse(device_of(base), ScriptedLink(says, **options))


def test_a_device_answers_round_after_round_until_it_may_go(bert: Base) -> None:
    says: list[Any] = [
        assignment(bert, steps=2), gradients(0), gradients(1),
        assignment(bert, steps=1, round=1), gradients(0),
        FINISH,
    ]  # fmt: skip
    heard = run_device(bert, says)
    assert [type(message) for message in heard] == [Activations, Activations, Update, Activations, Update]
    assert [message.step for message in heard if isinstance(message, Activations)] == [0, 1, 0]
    assert [message.round for message in heard] == [0, 0, 0, 1, 1]


def test_a_device_without_a_round_goes(bert: Base) -> None:
    assert run_device(bert, [FINISH]) == []


def test_each_step_trains_on_what_came_down(bert: Base) -> None:
    heard = run_device(bert, [assignment(bert), gradients(0), gradients(1), FINISH])
    trainable, part = Trainable(assignment(bert).adapter, ADAMW.optimizer), bert.device_part(1)
    part.use(trainable.parameters)
    for step in range(2):
        h_BTD = part.forward(model_inputs(BATCHES[step]))
        sent = heard[step]
        assert isinstance(sent, Activations)
        assert torch.equal(sent.h_BTD, h_BTD)
        h_BTD.backward(torch.ones_like(h_BTD))
        trainable.step(0.01)
    update = heard[-1]
    assert isinstance(update, Update)
    assert all(torch.equal(update.adapter[name], value) for name, value in trainable.adapter().items())
    assert (update.steps, update.samples, update.weight, update.loss, update.facts) == (0, 8, 8, 0.0, {})


@pytest.mark.parametrize("overlap", [True, False])
def test_a_step_in_parts(overlap: bool, bert: Base) -> None:
    """Two parts are on their way where the plan lets them; the adapter moves once, as on the whole batch."""
    whole = run_device(bert, [assignment(bert, steps=1), gradients(0), FINISH])
    says = [assignment(bert, steps=1, parts=2, overlap=overlap), gradients(0), gradients(0, 1), FINISH]
    link = ScriptedLink(says)
    first, second, update = converse(device_of(bert), link)
    halves = parts_of(BATCHES[0], [2, 2])
    for number, (message, half) in enumerate(zip((first, second), halves, strict=True)):
        assert isinstance(message, Activations)
        assert torch.equal(message.labels, half.labels)
        assert (message.micro_batch, message.micro_batches) == (number, 2)
        assert (message.weight, message.others_weight) == (2, 2)
    assert isinstance(update, Update)
    assert isinstance(whole[-1], Update)
    for name, value in whole[-1].adapter.items():
        torch.testing.assert_close(update.adapter[name], value, rtol=1e-4, atol=1e-6)
    assert (update.samples, update.weight) == (4, 4)


def test_a_round_that_ends_in_the_middle_of_a_step(bert: Base) -> None:
    """That step does not count, and its batch is drawn again; where nothing is wanted, nothing is sent."""
    for wanted in (True, False):
        says = [assignment(bert, steps=2), gradients(0), Close("run", 0, wanted, "deadline")]
        device = device_of(bert)
        link = ScriptedLink([*says, assignment(bert, steps=1, round=1), gradients(0), FINISH], hasty=True)
        heard = converse(device, link)
        kinds = [Activations, Activations, *[Update] * wanted, Activations, Update]
        assert [type(message) for message in heard] == kinds
        if wanted:
            update = heard[2]
            assert isinstance(update, Update)
            assert (update.round, update.samples) == (0, 4)
        again = heard[-2]
        assert isinstance(again, Activations)
        assert again.round == 1
        assert torch.equal(again.labels, BATCHES[1].labels.int())


def test_a_close_that_crossed_the_update_is_no_news(bert: Base) -> None:
    says = [assignment(bert, steps=1), gradients(0), Close("run", 0, True, "deadline"), FINISH]
    assert [type(message) for message in run_device(bert, says)] == [Activations, Update]


def test_a_round_that_went_on_without_the_device(bert: Base) -> None:
    """The next assignment comes in place of an answer."""
    says = [assignment(bert), gradients(0), assignment(bert, steps=1, round=1), gradients(0), FINISH]
    heard = run_device(bert, says, hasty=True)
    assert [(type(message), message.round) for message in heard[2:]] == [(Activations, 1), (Update, 1)]


def words(base: Base) -> dict[str, Any]:
    return {
        "assignment": assignment(base),
        "in parts": assignment(base, parts=2),
        "gradients": gradients(0),
        "stray gradients": Gradients("run", 0, 0, "device-0", torch.ones(1), 0.5),
        "finish": FINISH,
    }


@pytest.mark.parametrize(
    ("says", "expected", "got"),
    [
        (["stray gradients"], "an Assignment or Finish", "Gradients"),
        (["assignment", "assignment"], "Gradients of step 0", "Assignment"),
        (["assignment", "gradients", "gradients"], "Gradients of step 1", "Gradients"),  # step 0 again
        (["in parts", "gradients", "gradients"], "Gradients of step 0", "Gradients"),  # part 0 again
    ],
)
def test_a_device_believes_nothing_out_of_turn(says: list[str], expected: str, got: str, bert: Base) -> None:
    with pytest.raises(WireError) as error:
        run_device(bert, [words(bert)[word] for word in says], hasty=True)
    assert "\n" not in str(error.value)
    assert f"device device-0: expected {expected}, got {got}. " in str(error.value)


def test_its_step_is_one_forward_and_one_backward(bert: Base) -> None:
    plan = replace(assignment(bert).plan, micro_batches=2)
    assert SHAPE.flow(plan) == Flow()
    assert not SHAPE.copies_weights
    update = Update("run", 0, "device-0", {}, 0, 0, 0, 0.0, 0.0)
    broadcast = assignment(bert).adapter
    assert SHAPE.started_from(bert)(broadcast, update) is broadcast
