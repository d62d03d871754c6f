"""The device's end of the layers round: backward block by block, until its clock or the server says that it is over.

At 1 GFLOP/s, with batches of 48 tokens, on the playground's costs: a forward pass takes 148.8 ms, the head 4.8 and each
block 48. Below a cut of two a forward pass takes 100.8 ms, and each block 50.4.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bases import moved_adapter, open_base
from cutlayer.device.device import Device
from cutlayer.device.talks.layers import SHAPE
from cutlayer.errors import WireError
from cutlayer.model.base import Base
from cutlayer.model.optimizers import OptimizerSettings, adamw
from cutlayer.policies.layerwise import REACHED, Reach
from cutlayer.testing.tiny import BLOCKS, random_batch
from cutlayer.types import Adapter, DevicePlan, Event
from cutlayer.wire.messages import Activations, Assignment, Close, Finish, Gradients, Message, Update
from ends import ScriptedLink, converse, device_for

ModelMaker = Callable[[str, str], Path]
FINISH = Finish("run", 1, "done")
BATCHES = [random_batch("classification", seed=seed) for seed in range(4)]
RATE = 0.05


@pytest.fixture(scope="module")
def bert(tiny_model: ModelMaker) -> Base:
    return open_base(tiny_model("bert", "classification"), "classification")


def assignment(
    base: Base, seconds: float | None, *, steps: int = 1, cut: int = BLOCKS, ranks: tuple[int, ...] = ()
) -> Assignment:
    plan = DevicePlan("device-0", cut, 4, steps, top=BLOCKS if cut == BLOCKS else None, ranks=ranks)
    plan = plan if seconds is None else plan.having(Reach(seconds, ()))
    names = base.device_names(cut, plan.blocks, top=plan.top)
    adapter = moved_adapter(base)
    return Assignment("run", 0, "device-0", plan, (RATE,), {name: adapter[name] for name in names})


def hold_round(device: Device, *says: Any) -> Update:
    *_, update = converse(device, ScriptedLink([*says, FINISH]))
    assert isinstance(update, Update)
    return update


def device_of(base: Base, events: list[Event] | None = None) -> Device:
    return device_for(base, BATCHES, events, shape=SHAPE)


def counts(update: Update) -> list[int]:
    return update.facts[REACHED].tolist()  # type: ignore[no-any-return]


def one_step(base: Base, down_to: int) -> Adapter:
    """AdamW's first step on the first batch by hand, of the tensors of blocks from `down_to` on, and the head's."""
    parameters = {name: nn.Parameter(value.clone()) for name, value in moved_adapter(base).items()}
    part = base.whole()
    part.use(parameters)
    part.loss(BATCHES[0]).backward()
    for name, parameter in parameters.items():
        if (block := base.block_of(name)) is not None and block < down_to:
            parameter.grad = None
    with torch.no_grad():
        adamw(OptimizerSettings())(parameters, {}, RATE)
    return {name: parameter.detach() for name, parameter in parameters.items()}


@pytest.mark.parametrize(
    ("seconds", "reached"),
    [
        (None, [1, 1, 1, 1]),
        (0.2977, [1, 1, 1, 1]),
        (0.2975, [0, 1, 1, 1]),  # at the pace of the second block the third would be too late
        (0.2497, [0, 1, 1, 1]),
        (0.2495, [0, 0, 1, 1]),
        (0.2017, [0, 0, 1, 1]),
        (0.2015, [0, 0, 0, 1]),  # what a block takes is known from the forward pass
        (0.1537, [0, 0, 0, 1]),
        (0.1535, [0, 0, 0, 0]),
        (0.0, [0, 0, 0, 0]),
    ],
)
def test_depth_follows_the_clock(seconds: float | None, reached: list[int], bert: Base) -> None:
    device = device_of(bert)
    update = hold_round(device, assignment(bert, seconds))
    assert counts(update) == reached
    assert (update.steps, update.samples, update.weight) == (1, 4, 4)
    down_to = BLOCKS - sum(reached[:-1])
    expected = one_step(bert, down_to) if reached[-1] else {}
    held = [*range(down_to, BLOCKS), *([None] if reached[-1] else [])]
    assert update.adapter.keys() == {name for name in bert.shapes if bert.block_of(name) in held}
    assert all(torch.equal(value, expected[name]) for name, value in update.adapter.items())
    after, before = device.trainable.adapter(), moved_adapter(bert)
    assert all(torch.equal(after[name], before[name]) for name in before.keys() - update.adapter.keys())
    assert SHAPE.started_from(bert)(before, update).keys() == update.adapter.keys()


def test_each_block_is_a_piece_of_work(bert: Base) -> None:
    events: list[Event] = []
    hold_round(device_of(bert, events), assignment(bert, 0.26))
    assert [event.what for event in events] == ["forward", "backward", "backward", "backward"]
    lasted = [event.end_seconds - event.start_seconds for event in events]
    assert lasted == pytest.approx([0.1488, 0.0048, 0.048, 0.048])
    assert [event.flops for event in events] == pytest.approx([1.488e8, 4.8e6, 4.8e7, 4.8e7])


def test_every_step_has_its_part_of_the_time(bert: Base) -> None:
    """The second ends at 0.5, whenever the first was done."""
    assert counts(hold_round(device_of(bert), assignment(bert, 0.5, steps=2))) == [0, 2, 2, 2]
    assert counts(hold_round(device_of(bert), assignment(bert, 0.596, steps=2))) == [2, 2, 2, 2]
    assert counts(hold_round(device_of(bert), assignment(bert, 0.36, steps=2))) == [0, 0, 1, 2]


def test_what_was_not_reached_remembers_nothing(bert: Base) -> None:
    """And in the next round the clock begins anew."""
    device = device_of(bert)
    first, second = assignment(bert, 0.21), replace(assignment(bert, 0.31), round=1)
    link = ScriptedLink([first, second, FINISH])
    early, late = converse(device, link)
    assert isinstance(early, Update)
    assert isinstance(late, Update)
    assert (counts(early), counts(late)) == ([0, 0, 1, 1], [1, 1, 1, 1])
    steps = {
        bert.block_of(k.removesuffix("#step")): int(v) for k, v in device.trainable.moments().items() if "#step" in k
    }
    assert steps == {0: 1, 1: 1, 2: 2, None: 2}


@pytest.mark.parametrize(
    ("at", "reached"), [(0.15, [0, 0, 0, 1]), (0.16, [0, 0, 1, 1]), (0.22, [0, 1, 1, 1]), (0.27, [1, 1, 1, 1])]
)
def test_a_round_that_is_closed_ends_between_two_blocks(at: float, reached: list[int], bert: Base) -> None:
    """The block that is under way when the word comes is done first."""
    link = ScriptedLink([assignment(bert, None, steps=2), (at, Close("run", 0, True, "deadline")), FINISH])
    [update] = converse(device_of(bert), link)
    assert isinstance(update, Update)
    assert counts(update) == reached
    assert (update.steps, update.samples) == (1, 4)


def test_a_batch_of_which_nothing_was_learnt_is_drawn_again(bert: Base) -> None:
    device = device_of(bert)
    link = ScriptedLink([assignment(bert, None), (0.1, Close("run", 0, True, "deadline")), FINISH])
    [update] = converse(device, link)
    assert isinstance(update, Update)
    assert (update.steps, update.samples, update.adapter) == (0, 0, {})
    assert device.draw() is BATCHES[0]


def test_nobody_answers_a_word_that_wants_none(bert: Base) -> None:
    link = ScriptedLink([assignment(bert, None), (0.2, Close("run", 0, False, "deadline")), FINISH], hasty=True)
    assert converse(device_of(bert), link) == []


def test_blocks_without_an_adapter_are_passed_and_the_lowest_adapter_is_the_end(bert: Base) -> None:
    update = hold_round(device_of(bert), assignment(bert, None, ranks=(0, 8, 0)))
    assert counts(update) == [0, 1, 1, 1]
    assert {bert.block_of(name) for name in update.adapter} == {1, None}


# ------------------------------------------------------------------ below a cut


def answered(message: Message) -> Gradients:
    assert isinstance(message, Activations)
    return Gradients("run", 0, message.step, "device-0", torch.ones_like(message.h_BTD), 0.5)


@pytest.mark.parametrize(
    ("seconds", "reached"), [(None, [1, 1]), (0.2017, [1, 1]), (0.2, [0, 1]), (0.1513, [0, 1]), (0.151, [0, 0])]
)
def test_below_a_cut_the_walk_begins_with_what_came_down(seconds: float | None, reached: list[int], bert: Base) -> None:
    update = hold_round(device_of(bert), assignment(bert, seconds, cut=2), answered)
    assert counts(update) == reached
    assert (update.steps, update.samples) == (0, 4)
    whole = hold_round(device_of(bert), assignment(bert, None, cut=2), answered)
    assert {bert.block_of(name) for name in update.adapter} == {block for block in range(2) if reached[block]}
    assert all(torch.equal(value, whole.adapter[name]) for name, value in update.adapter.items())


def test_below_a_cut_too_a_round_is_closed_between_two_blocks(bert: Base) -> None:
    close = (0.12, Close("run", 0, True, "deadline"))
    *_, update = converse(
        device_of(bert), ScriptedLink([assignment(bert, None, steps=2, cut=2), answered, close, FINISH])
    )
    assert isinstance(update, Update)
    assert counts(update) == [0, 1]
    assert update.samples == 4


def test_a_batch_that_nobody_answered_is_drawn_again(bert: Base) -> None:
    device, close = device_of(bert), (0.12, Close("run", 0, True, "deadline"))
    *_, update = converse(device, ScriptedLink([assignment(bert, None, cut=2), close, FINISH]))
    assert isinstance(update, Update)
    assert (update.samples, update.adapter) == (0, {})
    assert device.draw() is BATCHES[0]


def test_without_an_adapter_below_the_cut_there_is_nothing_to_walk(bert: Base) -> None:
    def without(message: Message) -> Gradients:
        return replace(answered(message), grad_BTD=None)

    update = hold_round(device_of(bert), assignment(bert, 1.0, cut=0), without)
    assert (counts(update), update.adapter, update.samples) == ([], {}, 4)


def test_another_answer_is_a_mistake(bert: Base) -> None:
    def other(message: Message) -> Gradients:
        return replace(answered(message), step=7)

    with pytest.raises(WireError, match="expected Gradients of step 0"):
        hold_round(device_of(bert), assignment(bert, None, cut=2), other)
