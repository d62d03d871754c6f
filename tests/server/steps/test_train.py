"""The step on one device's activations: computed as one piece of work, answered, and counted when it is answered."""

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
from cutlayer.server.engine import Engine
from cutlayer.server.owners import SHARED, Owner, one_for_all, one_per_device
from cutlayer.server.server import Server
from cutlayer.server.steps.train import answer, train
from cutlayer.testing.playground import FlatCosts, fleet_of, learning_rate
from cutlayer.testing.tiny import random_batch
from cutlayer.types import Adapter, DevicePlan, Event, RoundPlan
from cutlayer.wire.messages import Activations
from ends import activations_for, rehearsing, server_for

ModelMaker = Callable[[str, str], Path]


@pytest.fixture(scope="module", params=["classification", "causal-lm"])
def base(request: pytest.FixtureRequest, tiny_model: ModelMaker) -> Base:
    return open_base(tiny_model("llama", request.param), request.param)


def opened(base: Base, *cuts: int, owner: Owner = one_per_device, events: list[Event] | None = None) -> Server:
    server = server_for(base, fleet_of(2), events)
    server.adapter = moved_adapter(base)
    devices = tuple(DevicePlan(f"device-{i}", cut, 4, 2, micro_batches=2) for i, cut in enumerate(cuts))
    server.begin(RoundPlan(0, devices), owner)
    return server


def sent(base: Base, cut: int, *, step: int = 0, device: str = "device-0") -> Activations:
    return activations_for(base, random_batch(base.settings.task), cut, step=step, device=device)


def halves(whole: Activations) -> list[Activations]:
    """The step in two parts of unequal weight."""
    cuts = (slice(0, 1), slice(1, None))
    weights = [_weight(whole.labels[rows]) for rows in cuts]
    return [
        replace(
            whole,
            h_BTD=whole.h_BTD[rows],
            mask_BT=whole.mask_BT[rows],
            labels=whole.labels[rows],
            weight=weights[number],
            micro_batch=number,
            micro_batches=2,
            others_weight=sum(weights) - weights[number],
        )
        for number, rows in enumerate(cuts)
    ]


def _weight(labels: torch.Tensor) -> int:
    return len(labels) if labels.dim() == 1 else int((labels[:, 1:] != -100).sum())


def do(server: Server, arrived: Activations) -> tuple[float, torch.Tensor | None]:
    device = server.ledger.plan.devices[0]
    return run_virtual(train(server, arrived, device))


def values(server: Server, owner: str = "device-0") -> Adapter:
    return server.adapters.trainable(owner).adapter()


def test_it_is_the_engines_loss_followed_back_and_stepped(base: Base) -> None:
    server, other, arrived = opened(base, 1), opened(base, 1), sent(base, 1)
    loss, grad_BTD = do(server, arrived)
    engine = other.engine
    graph = engine.loss("device-0", engine.span(1, None), arrived)
    assert loss == graph.value
    expected = graph.back()
    assert expected is not None
    assert grad_BTD is not None
    assert torch.equal(grad_BTD, expected)
    engine.step("device-0", learning_rate(0, 0))
    stepped = values(other)
    assert all(torch.equal(value, stepped[name]) for name, value in values(server).items())


def test_parts_of_a_step_are_the_step(base: Base) -> None:
    """The adapter waits for the last of them; each part's gradient goes down by its share."""
    server, other, whole = opened(base, 1), opened(base, 1), sent(base, 1)
    loss, grad_BTD = do(other, whole)
    start = values(server)
    first, last = halves(whole)
    first_loss, first_grad_BTD = do(server, first)
    assert all(torch.equal(value, start[name]) for name, value in values(server).items()), "not yet"
    last_loss, last_grad_BTD = do(server, last)
    assert first_loss * first.share + last_loss * last.share == pytest.approx(loss, rel=1e-5)
    assert first_grad_BTD is not None
    assert last_grad_BTD is not None
    torch.testing.assert_close(torch.cat([first_grad_BTD, last_grad_BTD]), grad_BTD)
    for name, value in values(other).items():
        assert not torch.equal(value, start[name])
        torch.testing.assert_close(values(server)[name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("cut", [0, 1, 3])
def test_a_rehearsal_returns_what_the_work_would(cut: int, base: Base) -> None:
    """In kind and in shape, at the same cost; and trains nothing."""
    events: list[Event] = []
    server, arrived = opened(base, cut, events=events), sent(base, cut)
    start = values(server)
    with rehearsing(server):
        likeness = do(server, arrived)
    assert all(torch.equal(value, start[name]) for name, value in values(server).items())
    result = do(server, arrived)
    assert type(likeness[0]) is type(result[0]) is float
    assert (likeness[1] is None) == (result[1] is None) == (cut == 0)
    if likeness[1] is not None and result[1] is not None:
        assert (likeness[1].shape, likeness[1].dtype) == (result[1].shape, result[1].dtype)
    one, other = events
    assert replace(other, start_seconds=0.0, end_seconds=0.0) == replace(one, start_seconds=0.0, end_seconds=0.0)


def test_it_takes_the_servers_time_for_whom_it_serves(base: Base) -> None:
    events: list[Event] = []
    server, arrived = opened(base, 1, 1, owner=one_for_all, events=events), sent(base, 1, step=1)
    do(server, arrived)
    do(server, replace(arrived, device=SHARED))
    cost = FlatCosts(base.num_blocks).server(server.ledger.device("device-0"), *arrived.h_BTD.shape[:2])
    assert [(event.what, event.flops, event.step, event.peer) for event in events] == [
        ("step", cost.forward_flops + cost.backward_flops, 1, peer) for peer in ("device-0", None)
    ]


def test_it_counts_when_it_is_answered(base: Base) -> None:
    server, arrived = opened(base, 1), sent(base, 1)
    loss, grad_BTD = do(server, arrived)
    assert server.ledger.take_tallies() == {}
    told = answer(server, arrived, loss, grad_BTD)
    assert (told.run, told.round, told.step, told.device, told.micro_batch) == ("run", 0, 0, "device-0", 0)
    assert (told.loss, told.grad_BTD) == (loss, grad_BTD)
    tally = server.ledger.take_tallies()["device-0"]
    assert (tally.steps, tally.weight, tally.loss) == (1, arrived.weight, pytest.approx(loss))
    part = halves(arrived)[1]
    assert answer(server, part, 2.0, None).micro_batch == 1


def test_a_loss_that_is_not_finite_steps_nothing(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    server, arrived = opened(base, 1), sent(base, 1)
    arrived.h_BTD[0, -1, 0] = float("nan")
    stepped: list[str] = []
    monkeypatch.setattr(Engine, "step", lambda _engine, owner, _rate: stepped.append(owner))
    with pytest.raises(DivergedError, match="device device-0, round 0, step 0: expected a finite loss, got nan"):
        do(server, arrived)
    assert stepped == []
    assert all(parameter.grad is None for parameter in server.adapters.trainable("device-0").parameters.values())
