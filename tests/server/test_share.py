"""A share of a round: a server that is given one trains what the giver would have, and gives it back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bases import moved_adapter, open_base
from cutlayer.fleet.clock import run_virtual
from cutlayer.model.base import Base
from cutlayer.policies.aggregate import Contribution
from cutlayer.server.owners import one_per_device
from cutlayer.server.server import Server
from cutlayer.server.share import share_of, take_share, take_yield, yield_of
from cutlayer.testing.playground import fleet_of
from cutlayer.testing.tiny import random_batch
from cutlayer.types import DevicePlan, RoundPlan
from cutlayer.wire.messages import Update
from ends import activations_for, served, server_for

ModelMaker = Callable[[str, str], Path]
BATCH = random_batch("classification")


@pytest.fixture(scope="module")
def bert(tiny_model: ModelMaker) -> Base:
    return open_base(tiny_model("bert", "classification"), "classification")


def plan_of(round: int, *devices: str) -> RoundPlan:
    return RoundPlan(round, tuple(DevicePlan(device, 1, 4, 2) for device in devices))


def hold(server: Server, plan: RoundPlan, *, gone: str = "") -> dict[str, int | None]:
    """A round of two steps of each device, in which one leaves after its first; what each is told that it counted."""
    server.begin(plan, one_per_device)
    counted = {device.device: server.assignment(device).counted for device in plan.devices}
    for device in plan.devices:
        for step in range(2):
            arrived = activations_for(server.base, BATCH, 1, device=device.device, step=step)
            run_virtual(served(server, replace(arrived, round=plan.round)))
            if device.device == gone:
                server.leave(gone)
                break
        else:
            adapter = server.assignment(device).adapter
            server.accept(Update(server.run, plan.round, device.device, adapter, 0, 8, 8, 0.0, 0.0))
    return counted


def same(one: Contribution, other: Contribution) -> bool:
    return one.weights == other.weights and all(
        torch.equal(value, other.adapter[name]) for name, value in one.adapter.items()
    )


def test_two_servers_that_share_a_round_are_one_round_after_round(bert: Base) -> None:
    alone, head, *workers = (server_for(bert, fleet_of(3)) for _ in range(4))
    for round in range(3):
        gone = "device-1" if round == 1 else ""
        told = hold(alone, plan_of(round, "device-0", "device-1", "device-2"), gone=gone)
        expected, expected_tallies = alone.contributions(), alone.ledger.take_tallies()
        found: dict[str, Contribution] = {}
        for worker, names in zip(workers, [("device-0", "device-2"), ("device-1",)], strict=True):
            take_share(worker, share_of(head, plan_of(round, *names)))
            assert hold(worker, plan_of(round, *names), gone=gone) == {name: told[name] for name in names}
            found |= take_yield(head, yield_of(worker, worker.contributions()))
        assert sorted(found) == ["device-0", "device-2"] if gone else ["device-0", "device-1", "device-2"]
        assert all(same(found[name], one) for name, one in zip(sorted(found), expected, strict=True))
        assert head.ledger.take_tallies() == expected_tallies
        assert head.ledger.counted == alone.ledger.counted
        alone.adapter = head.adapter = moved_adapter(bert, seed=round)
        if round == 1:  # a worker that was begun again knows nothing
            workers[0] = server_for(bert, fleet_of(3))


def test_what_is_shared_is_a_copy(bert: Base) -> None:
    head = server_for(bert, fleet_of(1))
    plan = plan_of(0, "device-0")
    share = share_of(head, plan)
    worker = server_for(bert, fleet_of(1))
    take_share(worker, share)
    before = share.state.copied()
    hold(worker, plan)
    done = yield_of(worker, worker.contributions())
    kept = {name: value.clone() for name, value in done.contributions["device-0"].adapter.items()}
    hold(worker, plan)
    assert share.state.facts == before.facts
    assert all(torch.equal(value, before.tensors[name]) for name, value in share.state.tensors.items())
    assert all(torch.equal(value, kept[name]) for name, value in done.contributions["device-0"].adapter.items())
