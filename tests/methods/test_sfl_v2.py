"""SFL-V2: one server adapter takes every device's step, in an order that is drawn; device sides alone are averaged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bases import open_base
from cutlayer.methods.table import build_method
from cutlayer.model.base import Base
from cutlayer.policies.aggregate import mean_per_block
from cutlayer.server.owners import SHARED
from cutlayer.testing.playground import Played, fleet_of, play, streams_for
from cutlayer.types import RoundPlan

ModelMaker = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def bert(tiny_model: ModelMaker) -> Base:
    return open_base(tiny_model("bert", "classification"), "classification")


def played(base: Base, seed: int, samples: Callable[[int], int] = lambda index: 3) -> Played:
    """Equal devices, so that all arrive at once and any order is open."""
    fleet = fleet_of(5)
    alike = [fleet.devices[0].model_copy(update={"name": device.name}) for device in fleet.devices]
    fleet = fleet.model_copy(update={"devices": tuple(alike)})
    streams = streams_for(fleet, "classification", steps=2, samples=samples)
    return play(base, build_method("sfl_v2", {"cut": 2}, seed=seed), fleet, streams, rounds=1, local_steps=2)


def served(run: Played) -> list[str | None]:
    return [event.peer for event in run.events if event.what == "step"]


def test_the_order_is_drawn(bert: Base) -> None:
    orders = [served(played(bert, seed)) for seed in range(3)]
    assert all(sorted(map(str, order)) == sorted(f"device-{i}" for i in range(5) for _ in range(2)) for order in orders)
    assert orders[0] != orders[1] != orders[2]
    assert served(played(bert, 0)) == orders[0]


def test_one_server_adapter_and_the_plain_mean_of_the_device_sides(bert: Base) -> None:
    run = played(bert, 0, samples=lambda index: 2 + index)
    *devices, server = run.contributions[0]
    assert SHARED == "*"
    assert set(server.adapter) == set(bert.server_names(2))
    assert all(torch.equal(run.adapter[name], value) for name, value in server.adapter.items())
    mean = mean_per_block(weighted=False)(bert.initial_adapter(0), devices, RoundPlan(0))
    assert all(torch.equal(run.adapter[name], mean[name]) for name in bert.device_names(2))
