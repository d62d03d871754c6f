"""Adapters that are stepped by gradient descent where a method says so: on both sides of the cut, as torch does it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bases import open_base
from cutlayer.methods.table import build_method
from cutlayer.model.adapter import LoraSettings
from cutlayer.model.base import Base
from cutlayer.model.part import model_inputs
from cutlayer.model.trainable import OptimizerSettings, TrainSettings
from cutlayer.policies.trains import Trains, rule_of
from cutlayer.testing.playground import fleet_of, learning_rate, play, streams_for
from cutlayer.testing.reference import plain_peft_model
from cutlayer.testing.tiny import BLOCKS
from cutlayer.types import Adapter, Batch, DevicePlan

ROUNDS, STEPS = 2, 2


@pytest.fixture(scope="module")
def bert(tiny_model: Callable[[str, str], Path]) -> Base:
    lora = LoraSettings(targets=("all-linear",))
    return open_base(tiny_model("bert", "classification"), "classification", lora=lora)


def plain_descent(base: Base, batches: Sequence[Batch], momentum: float, settings: OptimizerSettings) -> Adapter:
    """Ordinary PEFT training of the unsplit model with torch's SGD."""
    model, inside = plain_peft_model(base)
    with torch.no_grad():
        for name, value in base.initial_adapter(0).items():
            inside[name].copy_(value)
    optimizer = torch.optim.SGD(inside.values(), lr=0.0, momentum=momentum, weight_decay=settings.weight_decay)
    rates = [learning_rate(round, step) for round in range(ROUNDS) for step in range(STEPS)]
    for batch, rate in zip(batches, rates, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        model(**model_inputs(batch), labels=batch.labels).loss.backward()
        optimizer.step()
    return {name: parameter.detach().clone() for name, parameter in inside.items()}


@pytest.mark.parametrize("settings", [OptimizerSettings(), OptimizerSettings(weight_decay=0.1)], ids=["", "decay"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize(("method", "cut"), [("memsfl", cut) for cut in range(BLOCKS + 1)] + [("fedlora", None)])
def test_one_device_is_plain_gradient_descent(
    method: str, cut: int | None, momentum: float, settings: OptimizerSettings, bert: Base
) -> None:
    """Bit for bit, at every cut: the clause reaches the device and the server."""
    fleet, options = fleet_of(1), {} if cut is None else {"cut": cut}
    streams = streams_for(fleet, "classification", steps=ROUNDS * STEPS)
    built = replace(build_method(method, options, seed=0), trains=Trains(momentum))
    run = play(bert, built, fleet, streams, rounds=ROUNDS, local_steps=STEPS, settings=TrainSettings(settings))
    expected = plain_descent(bert, streams["device-0"].given, momentum, settings)
    assert run.adapter.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(run.adapter[name], expected[name])] == []
    start = bert.initial_adapter(0)
    assert not [name for name in start if torch.equal(run.adapter[name], start[name])]


def test_without_the_clause_it_is_adamw(bert: Base) -> None:
    fleet = fleet_of(1)

    def trained(trains: Trains | None) -> Adapter:
        streams = streams_for(fleet, "classification", steps=ROUNDS * STEPS)
        return play(bert, replace(build_method("memsfl", {"cut": 2}, seed=0), trains=trains), fleet, streams).adapter

    adamw, descent = trained(None), trained(Trains())
    assert not [name for name in adamw if torch.equal(adamw[name], descent[name])]


@pytest.mark.parametrize("method", ["memsfl", "splitlora", "sfl_v2", "vanilla", "mergesfl", "splitfrozen", "hetlora"])
def test_every_server_step_follows_it(method: str, bert: Base) -> None:
    """Every owner of a server adapter remembers what gradient descent remembers, and so does the device."""
    fleet = fleet_of(2)
    streams = streams_for(fleet, "classification", steps=ROUNDS * STEPS, samples=lambda _: 4)

    def trained(trains: Trains | None) -> Adapter:
        again = {name: streams_for(fleet, "classification", steps=4, samples=lambda _: 4)[name] for name in streams}
        return play(bert, replace(build_method(method, {}, seed=0), trains=trains), fleet, again).adapter

    adamw, descent = trained(None), trained(Trains())
    start = bert.initial_adapter(0)
    moved = [name for name, value in adamw.items() if not torch.equal(start[name], value)]
    assert moved
    assert not [name for name in moved if torch.equal(adamw[name], descent[name])]


def test_clipping_holds_for_both_rules() -> None:
    """The largest norm of a gradient is a setting of the run, whatever the rule."""
    for plan in (DevicePlan("device-0"), DevicePlan("device-0").having(Trains())):
        parameter = torch.nn.Parameter(torch.zeros(4))
        parameter.grad = torch.full((4,), 10.0)
        with torch.no_grad():
            rule_of(plan, OptimizerSettings(clip=1.0))({"w": parameter}, {}, 0.1)
        assert float(parameter.grad.norm()) == pytest.approx(1.0)
