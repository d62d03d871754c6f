"""The device's end of the stream: its batches go up, what was sent once is named, nothing comes down."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from bases import open_base
from cutlayer.device.device import Device
from cutlayer.device.talks.stream import SHAPE
from cutlayer.errors import WireError
from cutlayer.model.base import Base
from cutlayer.model.part import model_inputs
from cutlayer.policies.repeat import Repeat
from cutlayer.state import State
from cutlayer.testing.playground import with_rows
from cutlayer.testing.tiny import random_batch
from cutlayer.types import Batch, DevicePlan, Event
from cutlayer.wire.messages import Activations, Assignment, Close, Finish, Gradients, Message, Recall, Update
from ends import ScriptedLink, converse, device_for

ModelMaker = Callable[[str, str], Path]
FINISH = Finish("run", 1, "done")
RANKS = (0, 8, 8)
BATCHES = [with_rows(random_batch("classification", seed=seed), first=4 * seed) for seed in range(4)] * 2


@pytest.fixture(scope="module")
def bert(tiny_model: ModelMaker) -> Base:
    return open_base(tiny_model("bert", "classification"), "classification")


def assignment(*, steps: int = 4, round: int = 0, repeat: bool = True) -> Assignment:
    plan = DevicePlan("device-0", 1, 4, steps, ranks=RANKS)
    plan = plan.having(Repeat()) if repeat else plan
    return Assignment("run", round, "device-0", plan, (0.01,) * steps, {})


def device_of(base: Base, batches: Sequence[Batch] = BATCHES, events: list[Event] | None = None) -> Device:
    return device_for(base, batches, events, shape=SHAPE)


def run_device(base: Base, says: list[Any]) -> tuple[list[tuple[float, Message]], list[Event]]:
    """Sending takes a second."""
    events: list[Event] = []
    link = ScriptedLink(says, seconds=1.0)
    converse(device_of(base, events=events), link)
    return link.heard, events


def test_a_device_sends_its_batches_and_waits_for_nothing(bert: Base) -> None:
    heard, _ = run_device(bert, [assignment(), assignment(round=1), FINISH])
    first, second = [*[Activations] * 4, Update], [*[Recall] * 4, Update]
    assert [type(message) for _, message in heard] == [*first, *second]
    assert [message.round for _, message in heard] == [0] * 5 + [1] * 5
    steps = [message.step for _, message in heard if isinstance(message, Activations | Recall)]
    assert steps == [0, 1, 2, 3] * 2


def test_where_nothing_is_kept_nothing_is_named(bert: Base) -> None:
    heard, _ = run_device(bert, [assignment(repeat=False), assignment(round=1, repeat=False), FINISH])
    batches = [message for _, message in heard if isinstance(message, Activations)]
    assert len(batches) == 8
    assert all(batch.rows_B is None for batch in batches)


def test_a_batch_is_made_while_the_last_one_is_sent(bert: Base) -> None:
    """A forward pass takes 0.05 s here, sending a second: steps end a second apart, and no more is made ahead."""
    heard, events = run_device(bert, [assignment(), FINISH])
    times = [time for time, message in heard if isinstance(message, Activations)]
    assert [later - earlier for earlier, later in pairwise(times)] == pytest.approx([1.0] * 3)
    made = [event.end_seconds for event in events if event.what == "forward"]
    for step, end in enumerate(made[2:], start=2):
        assert end > times[step - 2], "one batch on its way, one made; the next waits for the first to have left"


@pytest.mark.parametrize("stray", [Gradients("run", 0, 0, "device-0", torch.ones(1), 0.5), Update])
def test_a_device_believes_nothing_out_of_turn(stray: Any, bert: Base) -> None:
    message = stray if isinstance(stray, Gradients) else Update("run", 0, "device-0", {}, 0, 1, 1, 0.0, 0.0)
    with pytest.raises(WireError, match="expected an Assignment or Finish"):
        run_device(bert, [assignment(), (1e3, message)])


def test_a_round_ends_early_after_a_batch(bert: Base) -> None:
    """Whether it counts or not, and what was drawn stays drawn: it has been sent."""
    for wanted in (True, False):
        says = [assignment(), (1.5, Close("run", 0, wanted, "deadline")), (50.0, assignment(round=1)), (99.0, FINISH)]
        heard, _ = run_device(bert, says)
        first = [message for _, message in heard if message.round == 0]
        batches = [message for message in first if isinstance(message, Activations)]
        assert 1 < len(batches) < 4
        assert [type(message) for message in first[len(batches) :]] == [Update] * wanted
        if wanted:
            assert isinstance(first[-1], Update)
            assert first[-1].samples == 4 * len(batches)
        second = [message for _, message in heard if message.round == 1]
        assert isinstance(second[0], Activations)
        assert second[0].rows_B is not None
        assert second[0].rows_B.tolist() == [*range(4 * len(batches), 4 * len(batches) + 4)]


def numbered(*, again: int = 1) -> list[Batch]:
    """Two batches of different samples, so many times over."""
    return [
        with_rows(random_batch("classification", seed=seed, samples=4), first=4 * seed) for seed in range(2)
    ] * again


def test_a_streaming_device_forgets_what_it_sent(bert: Base) -> None:
    device = device_of(bert, numbered())
    sent = converse(device, ScriptedLink([assignment(steps=2, repeat=False), FINISH]))
    part = bert.device_part(1, frozenset())
    for step, (message, batch) in enumerate(zip(sent, numbered(), strict=False)):
        assert isinstance(message, Activations)
        assert torch.equal(message.h_BTD, part.forward(model_inputs(batch)))
        assert (message.step, message.weight, message.rows_B) == (step, batch.weight, None)
    update = sent[-1]
    assert isinstance(update, Update)
    assert (update.adapter, update.steps, update.samples, update.weight) == ({}, 0, 8, 8)
    assert device.state().branch("talk") == State({"sent": []})


def test_a_sample_is_computed_and_sent_once(bert: Base) -> None:
    """From then on it has a name; in another batch too, unless something in that batch is new."""
    first, second = numbered()
    mixed = replace(second, indices=(0, 1, 4, 5))
    partly_new = replace(second, indices=(0, 1, 4, 99))
    events: list[Event] = []
    device = device_of(bert, [first, second, mixed, partly_new, partly_new], events)
    *sent, update = converse(device, ScriptedLink([assignment(steps=5), FINISH]))
    assert [type(message) for message in sent] == [Activations, Activations, Recall, Activations, Recall]
    assert [message.rows_B.tolist() for message in sent] == [  # type: ignore[union-attr]
        [0, 1, 2, 3], [4, 5, 6, 7], [0, 1, 4, 5], [0, 1, 4, 99], [0, 1, 4, 99],
    ]  # fmt: skip
    assert sent[2].num_tokens == mixed.num_tokens  # type: ignore[union-attr]
    assert len([event for event in events if event.what == "forward"]) == 3
    assert isinstance(update, Update)
    assert update.samples == 20


def test_what_was_sent_is_in_its_state(bert: Base) -> None:
    one, other = (device_of(bert, numbered(again=2)) for _ in range(2))
    converse(one, ScriptedLink([assignment(steps=2), FINISH]))
    state = one.state()
    assert state.branch("talk") == State({"sent": list(range(8))})
    other.load(state)
    [message, _] = converse(other, ScriptedLink([assignment(steps=1, round=1), FINISH]))
    assert isinstance(message, Recall)
