"""The device's end of the queries round: losses at places nearby, in four forms that are one step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bases import moved_adapter, open_base
from cutlayer.device.device import Device
from cutlayer.device.talks.queries import SHAPE, moved_shapes
from cutlayer.model.base import Base
from cutlayer.model.noise import pieces
from cutlayer.policies.directions import step_seeds
from cutlayer.policies.queries import FORMS, Queries
from cutlayer.testing.tiny import BLOCKS, random_batch
from cutlayer.types import Adapter, DevicePlan, Event, Flow
from cutlayer.wire.messages import Assignment, Close, Finish, Update
from ends import ScriptedLink, converse, device_for

ModelMaker = Callable[[str, str], Path]
FINISH = Finish("run", 1, "done")
BATCHES = [random_batch("classification", seed=seed) for seed in range(4)]
RATES = (0.05, 0.02)
EPSILON = 1e-2


@pytest.fixture(scope="module")
def bert(tiny_model: ModelMaker) -> Base:
    return open_base(tiny_model("bert", "classification"), "classification")


def assignment(base: Base, asked: Queries) -> Assignment:
    plan = DevicePlan("device-0", BLOCKS, 4, 2, top=BLOCKS).having(asked)
    return Assignment("run", 0, "device-0", plan, RATES, moved_adapter(base))


def device_of(base: Base, events: list[Event] | None = None) -> Device:
    return device_for(base, BATCHES, events, shape=SHAPE)


def hold_round(base: Base, asked: Queries, events: list[Event] | None = None) -> tuple[Update, Adapter]:
    """The update, and what the device holds then."""
    device = device_of(base, events)
    [update] = converse(device, ScriptedLink([assignment(base, asked), FINISH]))
    assert isinstance(update, Update)
    return update, device.trainable.adapter()


def noise(shapes: Adapter, seed: int) -> Adapter:
    """The direction of a seed."""
    z = {name: torch.zeros_like(value) for name, value in shapes.items()}
    for piece in pieces(z):
        piece.values_N.copy_(piece.combined([(seed, 1.0)]))
    return z


def mezo(base: Base, count: int) -> tuple[Adapter, float]:
    """Two steps by hand, each of `count` queries: B moves against the mean of slope times direction."""
    adapter, part, losses = moved_adapter(base), base.whole(), []
    for step, rate in enumerate(RATES):
        moving = {name: value for name, value in adapter.items() if ".lora_A." not in name}

        def loss(aside: Adapter, step: int = step, adapter: Adapter = adapter) -> float:
            part.use(adapter | aside)
            with torch.no_grad():
                losses.append(float(part.loss(BATCHES[step])))
            return losses[-1]

        change = {name: torch.zeros_like(value) for name, value in moving.items()}
        for seed in step_seeds(0, "device-0", 0, step, count):
            z = noise(moving, seed)
            plus = loss({name: value + EPSILON * z[name] for name, value in moving.items()})
            minus = loss({name: value - EPSILON * z[name] for name, value in moving.items()})
            for name in change:
                change[name] += (plus - minus) / (2 * EPSILON) * z[name] / count
        adapter = adapter | {name: value - rate * change[name] for name, value in moving.items()}
    return adapter, sum(losses) / len(losses)


def assert_close(one: Adapter, other: Adapter) -> None:
    assert one.keys() == other.keys()
    for name, value in other.items():
        torch.testing.assert_close(one[name], value, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("form", FORMS)
def test_one_query_is_mezo_by_hand(form: str, bert: Base) -> None:
    """On B and the head: A stays as it is."""
    update, held = hold_round(bert, Queries(1, EPSILON, form))
    expected, loss = mezo(bert, 1)
    assert_close(held, expected)
    assert update.loss == pytest.approx(loss, rel=1e-5)
    start = moved_adapter(bert)
    assert not any(torch.equal(held[name], start[name]) for name in start if ".lora_A." not in name)


@pytest.mark.parametrize("form", [form for form in FORMS if form != "sequential"])
def test_all_forms_are_the_sequential_one(form: str, bert: Base) -> None:
    one, held = hold_round(bert, Queries(3, EPSILON, form))
    other, expected = hold_round(bert, Queries(3, EPSILON, "sequential"))
    assert_close(held, expected)
    assert_close(expected, mezo(bert, 3)[0])
    assert one.loss == pytest.approx(other.loss, rel=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_only_what_moves_is_sent(form: str, bert: Base) -> None:
    update, held = hold_round(bert, Queries(2, EPSILON, form))
    start = moved_adapter(bert)
    assert update.adapter.keys() == {name for name in start if ".lora_A." not in name}
    assert all(torch.equal(update.adapter[name], held[name]) for name in update.adapter)
    assert all(torch.equal(held[name], start[name]) for name in start if ".lora_A." in name)
    assert (update.steps, update.samples, update.weight, update.facts) == (2, 8, 8, {})
    shapes = {name: tuple(value.shape) for name, value in start.items()}
    assert {name: tuple(value.shape) for name, value in update.adapter.items()} == moved_shapes(shapes)
    assert SHAPE.started_from(bert)(start, update).keys() == update.adapter.keys()


@pytest.mark.parametrize("form", FORMS)
def test_a_step_costs_its_forward_passes(form: str, bert: Base) -> None:
    events: list[Event] = []
    asked = Queries(3, EPSILON, form)
    hold_round(bert, asked, events)
    assert [(event.what, event.step) for event in events] == [("forward", 0), ("forward", 1)]
    at_once = {"dual": 6, "single": 3, "sequential": 1, "recurrence": 6}[form]
    assert SHAPE.flow(assignment(bert, asked).plan) == Flow(forwards=6, at_once=at_once, backward=False)


@pytest.mark.parametrize("form", FORMS)
def test_a_round_that_ends_early_keeps_the_steps_it_took(form: str, bert: Base) -> None:
    """The recurrence keeps its steps too, though its last step is only taken at the end."""
    asked = Queries(2, EPSILON, form)
    told = assignment(bert, asked)
    link = ScriptedLink([told, (1e-6, Close("run", 0, True, "deadline")), FINISH])
    [early] = converse(device_of(bert), link)
    short = replace(told, plan=replace(told.plan, local_steps=1))
    [whole] = converse(device_of(bert), ScriptedLink([short, FINISH]))
    assert isinstance(early, Update)
    assert isinstance(whole, Update)
    assert (early.steps, early.samples) == (1, 4)
    assert all(torch.equal(early.adapter[name], value) for name, value in whole.adapter.items())


def test_each_step_of_each_device_has_its_own_directions() -> None:
    seeds: list[Sequence[int]] = [
        step_seeds(seed, device, round, step, 2)
        for seed in range(2)
        for device in ("a", "b")
        for round in range(2)
        for step in range(2)
    ]
    assert len({seed for pair in seeds for seed in pair}) == 32
