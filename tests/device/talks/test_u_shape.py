"""The device's end of the U-shape: what it says when, and what it does not believe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bases import open_base
from cutlayer.device.shape import shape_by_name
from cutlayer.device.talks.u_shape import SHAPE
from cutlayer.errors import WireError
from cutlayer.model.base import Base
from cutlayer.policies.delay import Delay
from cutlayer.testing.tiny import BLOCKS, random_batch
from cutlayer.types import DevicePlan, Event
from cutlayer.wire.messages import (
    Activations,
    Assignment,
    Close,
    Finish,
    Gradients,
    Hidden,
    HiddenGradients,
    Message,
    Update,
)
from ends import ScriptedLink, converse, device_for

ModelMaker = Callable[[str, str], Path]
BATCHES = [random_batch("classification", seed=seed, samples=4, tokens=8) for seed in range(6)]
FINISH = Finish("run", 1, "done")


@pytest.fixture(scope="module")
def bert(tiny_model: ModelMaker) -> Base:
    return open_base(tiny_model("bert", "classification"), "classification")


def assignment(base: Base, *, steps: int = 2, delay: int = 0, cut: int = 1, top: int = BLOCKS) -> Assignment:
    names = base.device_names(cut, top=top)
    plan = DevicePlan("device-0", cut, 4, steps, top=top)
    adapter = {name: base.initial_adapter(0)[name] for name in names}
    return Assignment("run", 0, "device-0", plan.having(Delay(delay)) if delay else plan, (0.01,) * steps, adapter)


def hidden(step: int) -> Hidden:
    generator = torch.Generator().manual_seed(step)
    return Hidden("run", 0, step, "device-0", torch.randn(4, 8, 16, generator=generator))


def gradients(step: int) -> Gradients:
    return Gradients("run", 0, step, "device-0", torch.full((4, 8, 16), 0.01), 0.5)


def run_device(base: Base, says: list[Any], events: list[Event] | None = None) -> list[Message]:
    return converse(device_for(base, BATCHES, events, shape=SHAPE), ScriptedLink(says))


def test_it_goes_by_its_name() -> None:
    assert shape_by_name("u-shape") is SHAPE
    assert SHAPE.labels_stay


def test_there_and_back_twice_in_each_step(bert: Base) -> None:
    events: list[Event] = []
    says = [assignment(bert), hidden(0), gradients(0), hidden(1), gradients(1), FINISH]
    heard = run_device(bert, says, events)
    assert [type(message) for message in heard] == [
        *(Activations, HiddenGradients, Activations, HiddenGradients),
        Update,
    ]
    assert all(message.labels is None for message in heard if isinstance(message, Activations))
    assert [event.what for event in events] == ["forward", "forward", "backward", "backward"] * 2
    update = heard[-1]
    assert isinstance(update, Update)
    assert set(update.adapter) == set(bert.device_names(1, top=BLOCKS))
    assert (update.steps, update.samples, update.loss) == (0, 8, 0.0)
    start = bert.initial_adapter(0)
    assert not [name for name, value in update.adapter.items() if torch.equal(value, start[name])]


def test_with_a_delay_it_runs_ahead(bert: Base) -> None:
    """And takes answers as they come: the tail of one step before or after the gradient of another."""
    adapters = []
    for answers in (
        [hidden(0), hidden(1), gradients(0), gradients(1), hidden(2), gradients(2)],
        [hidden(0), gradients(0), hidden(1), hidden(2), gradients(1), gradients(2)],
    ):
        heard = run_device(bert, [assignment(bert, steps=3, delay=1), *answers, FINISH])
        assert [type(message) for message in heard[:2]] == [Activations, Activations]
        assert sum(isinstance(message, HiddenGradients) for message in heard) == 3
        update = heard[-1]
        assert isinstance(update, Update)
        adapters.append(update.adapter)
    one, other = adapters
    assert not [name for name in one if not torch.equal(one[name], other[name])]


def test_who_holds_everything_says_nothing_in_between(bert: Base) -> None:
    heard = run_device(bert, [assignment(bert, cut=BLOCKS), FINISH])
    [update] = heard
    assert isinstance(update, Update)
    assert (update.steps, update.samples) == (2, 8)
    assert update.loss > 0


@pytest.mark.parametrize("delay", [0, 1])
def test_a_round_that_ends_early_takes_back_what_does_not_count(delay: int, bert: Base) -> None:
    device = device_for(bert, BATCHES, shape=SHAPE)
    close = Close("run", 0, True, "deadline")
    says = [assignment(bert, steps=3, delay=delay), hidden(0), gradients(0), hidden(1), close, FINISH]
    *_, update = converse(device, ScriptedLink(says))
    assert isinstance(update, Update)
    assert (update.samples, update.weight) == (4, 4)
    assert device.draw() is BATCHES[1]


@pytest.mark.parametrize(
    ("says", "words"),
    [
        ([gradients(0)], "expected Hidden of step 0, or Gradients of step 0, got Gradients"),
        ([hidden(1)], "got Hidden"),
        ([hidden(0), hidden(0)], "got Hidden"),
        ([hidden(0), gradients(1)], "got Gradients"),
    ],
)
def test_nothing_is_believed_out_of_turn(says: list[Message], words: str, bert: Base) -> None:
    with pytest.raises(WireError, match=words):
        run_device(bert, [assignment(bert), *says])
