"""A step on what several devices sent together: whose part diverges alone is taken out, and the others train as if they
had come without it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bases import open_base
from cutlayer.errors import DivergedError
from cutlayer.fleet.clock import run_virtual
from cutlayer.model.base import Base
from cutlayer.server.owners import SHARED, one_for_all
from cutlayer.server.server import Server
from cutlayer.server.steps.apart import train_apart
from cutlayer.server.steps.merged import merge, span_of
from cutlayer.server.steps.train import train
from cutlayer.testing.playground import fleet_of
from cutlayer.testing.tiny import random_batch
from cutlayer.types import Adapter, DevicePlan, RoundPlan
from cutlayer.wire.messages import Activations
from ends import activations_for, server_for

ModelMaker = Callable[[str, str], Path]
PLAN = RoundPlan(0, tuple(DevicePlan(f"device-{index}", 1, 4, local_steps=1) for index in range(3)))


@pytest.fixture(scope="module")
def bert(tiny_model: ModelMaker) -> Base:
    return open_base(tiny_model("bert", "classification"), "classification")


def sent(base: Base, index: int, value: float | None = None) -> Activations:
    """The activations of a device; of one that lies, all of them are this number."""
    batch = random_batch("classification", seed=index, samples=2 + index, tokens=8)
    honest = activations_for(base, batch, 1, device=f"device-{index}")
    return honest if value is None else replace(honest, h_BTD=torch.full_like(honest.h_BTD, value))


def opened(base: Base, blamed: list[DivergedError] | None) -> Server:
    server = server_for(base, fleet_of(3))
    server.begin(PLAN, one_for_all)
    server.turn_out = None if blamed is None else blamed.append
    return server


def trained(server: Server, arrived: Sequence[Activations]) -> tuple[list[str], float | None, Adapter]:
    """The devices that were trained on, the loss, and the shared adapter then."""

    async def step(parts: Sequence[Activations]) -> float:
        return (await train(server, merge(parts), PLAN.devices[0]))[0]

    parts, loss = run_virtual(train_apart(server, arrived, span_of(server, arrived), step))
    return [part.device for part in parts], loss, server.adapters.trainable(SHARED).adapter()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_who_diverges_alone_is_left_out_and_nothing_of_it_stays(value: float, bert: Base) -> None:
    blamed: list[DivergedError] = []
    arrived = [sent(bert, 0), sent(bert, 1, value), sent(bert, 2)]
    with_it = trained(opened(bert, blamed), arrived)
    without = trained(opened(bert, []), [arrived[0], arrived[2]])
    assert with_it[:2] == without[:2]
    assert all(torch.equal(with_it[2][name], without[2][name]) for name in without[2])
    assert [error.device for error in blamed] == ["device-1"]
    assert "device device-1, round 0, step 0: expected" in str(blamed[0])


def test_honest_devices_are_trained_on_at_once(bert: Base) -> None:
    blamed: list[DivergedError] = []
    names, loss, _ = trained(opened(bert, blamed), [sent(bert, index) for index in range(3)])
    assert names == ["device-0", "device-1", "device-2"]
    assert loss is not None
    assert not blamed


def test_where_all_are_to_blame_nothing_is_trained(bert: Base) -> None:
    blamed: list[DivergedError] = []
    server = opened(bert, blamed)
    before = server.adapters.trainable(SHARED).adapter()
    names, loss, after = trained(server, [sent(bert, index, float("nan")) for index in range(3)])
    assert (names, loss) == ([], None)
    assert len(blamed) == len(server.diverged) == 3
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_where_nobody_may_leave_the_run_has_diverged(bert: Base) -> None:
    with pytest.raises(DivergedError, match="all devices, round 0, step 0: expected a finite loss"):
        trained(opened(bert, None), [sent(bert, 0), sent(bert, 1, float("nan"))])


def test_an_adapter_that_has_diverged_is_nobodys_fault_alone(bert: Base) -> None:
    """Everybody's part then diverges: all are taken out, and the run says that it diverged (`Patience.hold`)."""
    blamed: list[DivergedError] = []
    server = opened(bert, blamed)
    for parameter in server.adapters.trainable(SHARED).parameters.values():
        parameter.data.fill_(float("nan"))
    assert trained(server, [sent(bert, index) for index in range(2)])[0] == []
    assert {error.device for error in blamed} == {"device-0", "device-1"}
