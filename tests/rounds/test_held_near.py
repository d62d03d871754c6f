"""The round held near: the local round, with a pull."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bases import open_base
from cutlayer.methods.method import Method
from cutlayer.model.base import Base
from cutlayer.model.part import model_inputs
from cutlayer.model.trainable import OptimizerSettings, TrainSettings
from cutlayer.policies.aggregate import mean_per_block
from cutlayer.policies.cut import whole_model
from cutlayer.policies.held_near import holding_near
from cutlayer.policies.select import everyone
from cutlayer.policies.trains import Trains
from cutlayer.rounds.held_near import held_near
from cutlayer.rounds.local import local
from cutlayer.testing.playground import fleet_of, learning_rate, play, streams_for
from cutlayer.testing.reference import plain_peft_model
from cutlayer.types import Adapter

ModelMaker = Callable[[str, str], Path]
STEPS = 3


@pytest.fixture(scope="module")
def bert(tiny_model: ModelMaker) -> Base:
    return open_base(tiny_model("bert", "classification"), "classification")


def trained(base: Base, mu: float | None) -> Adapter:
    """By one device, in one round, by gradient descent; None is the local round."""
    fleet = fleet_of(1)
    planners = (everyone(), whole_model()) if mu is None else (everyone(), whole_model(), holding_near(mu))
    round = local() if mu is None else held_near()
    method = Method(planners, round, mean_per_block(), trains=Trains())
    streams = streams_for(fleet, "classification", steps=STEPS)
    settings = TrainSettings(OptimizerSettings())
    return play(base, method, fleet, streams, rounds=1, local_steps=STEPS, settings=settings).adapter


def test_mu_0_is_the_local_round_bit_for_bit(bert: Base) -> None:
    plain, held = trained(bert, None), trained(bert, 0.0)
    assert not [name for name in plain if not torch.equal(plain[name], held[name])]


def test_the_gradient_of_the_squared_distance(bert: Base) -> None:
    """By autograd, on plain PEFT: F(w) + mu / 2 |w - w0|^2."""
    mu, start = 20.0, bert.initial_adapter(0)
    model, inside = plain_peft_model(bert)
    with torch.no_grad():
        for name, value in start.items():
            inside[name].copy_(value)
    for step, batch in enumerate(streams_for(fleet_of(1), "classification", steps=STEPS)["device-0"].all):
        loss = model(**model_inputs(batch), labels=batch.labels).loss
        distance = sum(((inside[name] - start[name]) ** 2).sum() for name in start)
        (loss + mu / 2 * distance).backward()
        with torch.no_grad():
            for parameter in inside.values():
                if parameter.grad is not None:
                    parameter.sub_(learning_rate(0, step) * parameter.grad)
                    parameter.grad = None
    held, plain = trained(bert, mu), trained(bert, None)
    for name, value in held.items():
        torch.testing.assert_close(value, inside[name].detach(), rtol=1e-4, atol=1e-6)

    def distance_of(adapter: Adapter) -> float:
        return float(sum(((adapter[name] - start[name]) ** 2).sum() for name in start))

    assert distance_of(held) < distance_of(plain)
