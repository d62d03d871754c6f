"""SFL-V1: its arithmetic is memsfl's with equal cuts, its memory is a model per device."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bases import open_base
from cutlayer.methods.table import build_method
from cutlayer.model.base import Base
from cutlayer.policies.aggregate import Contribution, mean_per_block
from cutlayer.testing.playground import FlatCosts, fleet_of, learning_rate, plain_training, play, streams_for
from cutlayer.types import Adapter, DevicePlan, RoundPlan

ModelMaker = Callable[[str, str], Path]
ROUNDS, STEPS = 4, 2


@pytest.fixture(scope="module")
def bert(tiny_model: ModelMaker) -> Base:
    return open_base(tiny_model("bert", "classification"), "classification")


def assert_same(one: Adapter, other: Adapter) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.parametrize("cut", [0, 2, 3])
def test_it_learns_what_memsfl_learns_with_equal_cuts(cut: int, bert: Base) -> None:
    def adapter(name: str, options: dict[str, Any]) -> Adapter:
        fleet = fleet_of(3)
        streams = streams_for(fleet, "classification", steps=2 * STEPS)
        return play(bert, build_method(name, {"cut": cut, **options}, seed=0), fleet, streams).adapter

    assert_same(adapter("sfl_v1", {}), adapter("memsfl", {"weighted": False}))
    assert any(not torch.equal(value, adapter("memsfl", {})[name]) for name, value in adapter("sfl_v1", {}).items()), (
        "the batches differ in size, so a weighted mean is another one"
    )


def test_a_device_that_sits_out_goes_on_where_it_left_off(bert: Base) -> None:
    """By hand, with plain PEFT: a device that was not drawn keeps its moments and its place in the data."""
    fleet = fleet_of(4)
    streams = streams_for(fleet, "classification", steps=ROUNDS * STEPS)
    built = build_method("sfl_v1", {"cut": 2, "fraction": 0.5}, seed=0)
    played = play(bert, built, fleet, streams, rounds=ROUNDS, local_steps=STEPS)
    adapter, states, places = bert.initial_adapter(0), defaultdict[str, Any](lambda: None), defaultdict[str, int](int)
    for round in range(ROUNDS):
        cohort = [record.device for record in played.logbook.history.records if record.round == round]
        assert len(cohort) == 2
        trained = []
        for name in cohort:
            batches = streams[name].given[places[name] :][:STEPS]
            places[name] += STEPS
            rates = [learning_rate(round, step) for step in range(STEPS)]
            local, states[name] = plain_training(bert, adapter, batches, rates, states[name])
            trained.append(Contribution(local, dict.fromkeys(local, 1.0)))
        adapter = mean_per_block()(adapter, trained, RoundPlan(round))
    assert set(places.values()) - {0, ROUNDS * STEPS}, "somebody sat out and came back"
    assert_same(played.adapter, adapter)


def test_the_server_holds_a_model_per_device() -> None:
    costs: Any = FlatCosts(3)
    plan = RoundPlan(0, tuple(DevicePlan(f"device-{i}", cut=1, batch_size=4) for i in range(6)))
    one_model = costs.server(plan.devices[0], 4, 10).memory_bytes

    def need(method: str) -> int:
        return build_method(method, {"cut": 1}, seed=0).round.server_bytes(plan, costs, 10)

    assert need("sfl_v1") == 6 * one_model
    assert one_model < need("memsfl") < 2 * one_model
