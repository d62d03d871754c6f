"""Steps on samples of several devices: lifted to one cut, trained on as one batch. Whole rounds: rounds/test_stream.py
and methods/test_splitfrozen.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bases import moved_adapter, open_base
from cutlayer.errors import DivergedError
from cutlayer.fleet.clock import run_virtual
from cutlayer.model.base import Base
from cutlayer.server.owners import SHARED, one_for_all
from cutlayer.server.samples import one_by_one
from cutlayer.server.server import Server
from cutlayer.server.steps.mixed import lift, train_mixed
from cutlayer.server.steps.stages import Stages
from cutlayer.server.steps.train import train
from cutlayer.testing.playground import FlatCosts, fleet_of, learning_rate
from cutlayer.testing.tiny import random_batch
from cutlayer.types import Adapter, DevicePlan, Event, RoundPlan
from cutlayer.wire.messages import Activations
from ends import activations_for, rehearsing, server_for

ModelMaker = Callable[[str, str], Path]
DEEPEST = 2
RANKS = (0, 0, 8)
"""Blocks that devices hold have no adapter: what they send does not change from round to round."""


@pytest.fixture(scope="module", params=["classification", "causal-lm"])
def base(request: pytest.FixtureRequest, tiny_model: ModelMaker) -> Base:
    return open_base(tiny_model("llama", request.param), request.param)


def opened(base: Base, *cuts: int, events: list[Event] | None = None) -> Server:
    server = server_for(base, fleet_of(len(cuts)), events)
    server.adapter = {name: moved_adapter(base)[name] for name in base.initial_adapter(0, RANKS)}
    devices = tuple(DevicePlan(f"device-{i}", cut, 4, 2, ranks=RANKS) for i, cut in enumerate(cuts))
    server.begin(RoundPlan(0, devices, RANKS), one_for_all)
    return server


def sent(base: Base, cut: int, *, device: str = "device-0", tokens: int = 12) -> Activations:
    batch = random_batch(base.settings.task, seed=len(device) + int(device[-1]), tokens=tokens)
    return activations_for(base, batch, cut, device=device)


def stages_of(base: Base) -> Stages:
    return Stages(base, DEEPEST, frozenset({2}))


def values(server: Server) -> Adapter:
    return server.adapters.trainable(SHARED).adapter()


def mix(server: Server, samples: list[Activations], *, step: int = 0, local_step: int = 0) -> None:
    run_virtual(train_mixed(server, samples, stages_of(server.base), step=step, local_step=local_step))


# ------------------------------------------------------------------ lift


@pytest.mark.parametrize("cut", [0, 1])
def test_activations_are_lifted_to_those_of_a_deeper_device(cut: int, base: Base) -> None:
    events: list[Event] = []
    server, arrived = opened(base, cut, DEEPEST, events=events), sent(base, cut)
    lifted = run_virtual(lift(server, arrived, DEEPEST))
    deeper = sent(base, DEEPEST)
    assert torch.equal(lifted.h_BTD, deeper.h_BTD)
    assert replace(lifted, h_BTD=arrived.h_BTD) == arrived, "all else stays"
    costs, shape = FlatCosts(base.num_blocks), arrived.h_BTD.shape[:2]
    plan = server.ledger.device("device-0")
    flops = costs.server(plan, *shape).forward_flops - costs.server(replace(plan, cut=DEEPEST), *shape).forward_flops
    assert [(event.what, event.flops, event.peer) for event in events] == [("forward", flops, "device-0")]


def test_at_the_deepest_cut_there_is_nothing_to_lift(base: Base) -> None:
    events: list[Event] = []
    server, arrived = opened(base, DEEPEST, events=events), sent(base, DEEPEST)
    assert run_virtual(lift(server, arrived, DEEPEST)) is arrived
    assert events == []


# ------------------------------------------------------------------ a mixed step


def test_a_mixed_step_on_one_devices_batch_is_the_step_on_it(base: Base) -> None:
    mixed, plain, arrived = opened(base, DEEPEST), opened(base, DEEPEST), sent(base, DEEPEST)
    mix(mixed, one_by_one(arrived))
    loss, grad_BTD = run_virtual(train(plain, arrived, plain.ledger.device("device-0")))
    assert grad_BTD is None, "nothing below trains"
    assert all(torch.equal(value, values(plain)[name]) for name, value in values(mixed).items())
    tally = mixed.ledger.take_tallies()["device-0"]
    assert (tally.steps, tally.weight) == (0, arrived.weight), "a step was counted when it came in"
    assert tally.loss == pytest.approx(loss)


def test_samples_of_several_devices_of_unequal_lengths_are_one_batch(base: Base) -> None:
    events: list[Event] = []
    server = opened(base, DEEPEST, DEEPEST, events=events)
    one, other = sent(base, DEEPEST, tokens=8), sent(base, DEEPEST, device="device-1", tokens=12)
    samples = [*one_by_one(one)[:1], *one_by_one(other)[:3]]
    start = values(server)
    mix(server, samples, step=5, local_step=1)
    moved = [name for name, value in values(server).items() if not torch.equal(value, start[name])]
    assert moved == list(start)
    tallies = server.ledger.take_tallies()
    assert {name: tally.weight for name, tally in tallies.items()} == {
        name: sum(sample.weight for sample in samples if sample.device == name) for name in ("device-0", "device-1")
    }
    assert len({tally.loss for tally in tallies.values()}) == 1, "each has the batch's loss"
    plan = replace(server.ledger.plan.devices[0], cut=DEEPEST)
    cost = FlatCosts(base.num_blocks).server(plan, 4, max(sample.h_BTD.shape[1] for sample in samples))
    assert [(event.what, event.flops, event.step, event.peer) for event in events] == [
        ("step", cost.forward_flops + cost.backward_flops, 5, None)
    ]


def test_the_rate_is_that_of_its_place_in_the_schedule(base: Base) -> None:
    moved = []
    for local_step in (0, 1):
        server = opened(base, DEEPEST)
        start = values(server)
        mix(server, one_by_one(sent(base, DEEPEST)), step=3, local_step=local_step)
        moved.append(max(float((value - start[name]).abs().max()) for name, value in values(server).items()))
    assert moved[0] / moved[1] == pytest.approx(learning_rate(0, 0) / learning_rate(0, 1), rel=1e-3)


def test_a_rehearsal_trains_nothing_and_takes_as_long(base: Base) -> None:
    events: list[Event] = []
    server, arrived = opened(base, 1, DEEPEST, events=events), sent(base, 1)
    start = values(server)
    with rehearsing(server):
        likeness = run_virtual(lift(server, arrived, DEEPEST))
        mix(server, one_by_one(likeness))
    assert all(torch.equal(value, start[name]) for name, value in values(server).items())
    lifted = run_virtual(lift(server, arrived, DEEPEST))
    assert (likeness.h_BTD.shape, likeness.h_BTD.dtype) == (lifted.h_BTD.shape, lifted.h_BTD.dtype)
    mix(server, one_by_one(lifted))
    assert [(e.what, e.flops) for e in events[:2]] == [(e.what, e.flops) for e in events[2:]]


def test_a_loss_that_is_not_finite_names_everybody_in_the_batch(base: Base) -> None:
    server = opened(base, DEEPEST, DEEPEST)
    one, other = sent(base, DEEPEST), sent(base, DEEPEST, device="device-1")
    other.h_BTD[0, -1, 0] = float("nan")
    start = values(server)
    with pytest.raises(
        DivergedError, match="device device-0, device-1, round 0, step 4: expected a finite loss, got nan"
    ):
        mix(server, [*one_by_one(other), *one_by_one(one)], step=4)
    assert all(torch.equal(value, start[name]) for name, value in values(server).items())
    assert server.ledger.take_tallies() == {}
