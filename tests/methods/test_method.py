"""The settings of a method beside its plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bases import open_base
from cutlayer.config import read_config
from cutlayer.methods.method import Method
from cutlayer.methods.table import TABLE, build_method
from cutlayer.policies.plan import Planner, Situation
from cutlayer.policies.self_prune import SelfPrune, self_pruning
from cutlayer.policies.stragglers import Stragglers, deadline, quorum, wait_all
from cutlayer.policies.trains import Trains
from cutlayer.run.inputs import stragglers_of
from cutlayer.testing.playground import FlatCosts, fleet_of, play, streams_for
from cutlayer.testing.tiny import BLOCKS
from cutlayer.types import Adapter, DevicePlan, History, StepRecord
from cutlayer.wire.messages import Assignment, Update
from real import values_for

SITUATION = Situation(fleet_of(3), FlatCosts(BLOCKS), History(), num_tokens=10, batch_size=4, local_steps=2, rounds=4)
FLORA = build_method("flora", {}, seed=0)


def flora_with(planner: Planner) -> Method:
    return replace(FLORA, plan=(*FLORA.plan, planner))


def test_ranks_may_be_pruned_where_weights_change() -> None:
    """A stack is of any ranks, and nothing of the base is copied."""
    assert flora_with(self_pruning(0.5, 0.1)).make_plan(0, SITUATION)


def test_only_a_stream_with_a_cache_keeps_activations() -> None:
    assert {name for name in TABLE if build_method(name, {}, seed=0).round.keeps_activations} == {"splitfrozen"}
    assert not build_method("splitfrozen", {"cache": False}, seed=0).round.keeps_activations


# ------------------------------------------------------------------ what it says beside its plan


def test_a_method_that_says_nothing_waits_for_all_and_trains_with_adamw() -> None:
    methods = {name: build_method(name, {}, seed=0) for name in TABLE}
    assert {name for name, method in methods.items() if method.patience is not None} == {"adel", "salf", "teasq_fed"}
    assert all(method.trains is None for method in methods.values())
    plan = build_method("fedlora", {}, seed=0).make_plan(0, SITUATION)
    assert all(device.clauses == () for device in plan.devices)
    assert plan.deadline_seconds is None


def test_how_adapters_are_stepped_is_in_every_plan() -> None:
    """After all planners, so none of them can forget it."""
    method = replace(build_method("hetlora", {"gamma": 0.5}, seed=0), trains=Trains(0.9))
    plan = method.make_plan(0, SITUATION)
    assert [device.clause(Trains) for device in plan.devices] == [Trains(0.9)] * 3
    assert any(device.clause(SelfPrune) for device in plan.devices), "other clauses stay"


@pytest.mark.parametrize(
    ("written", "patience", "expected"),
    [
        ({}, None, wait_all()),
        ({}, deadline(5.0, "use"), deadline(5.0, "use")),
        ({}, quorum(0.5), quorum(0.5)),
        ({"stragglers": "wait_all"}, deadline(5.0), wait_all()),
        ({"stragglers": "deadline:7", "late": "use"}, deadline(5.0), deadline(7.0, "use")),
        ({"stragglers": "quorum:0.7"}, None, quorum(0.7)),
    ],
)
def test_a_run_file_overrides_a_methods_patience(
    written: dict[str, str], patience: Stragglers | None, expected: Stragglers, inputs: Path, tmp_path: Path
) -> None:
    values = values_for(inputs, **{f"train__{name}": value for name, value in written.items()})
    config = read_config(None, values={**values, "out": str(tmp_path)})
    method = replace(build_method("fedlora", {}, seed=0), patience=patience)
    assert stragglers_of(config, method) == expected


def test_what_is_observed_of_an_update_is_in_the_history(tiny_model: Callable[[str, str], Path]) -> None:
    base = open_base(tiny_model("bert", "classification"), "classification")

    def seen(plan: DevicePlan, update: Update) -> dict[str, object]:
        return {"samples here": update.samples, "who": plan.device}

    method = replace(build_method("fedlora", {}, seed=0), observe=seen)
    streams = streams_for(fleet_of(2), "classification", steps=2)
    records: list[StepRecord] = play(base, method, fleet_of(2), streams, rounds=1).logbook.history.records
    assert [record.facts for record in records] == [
        {"samples here": record.samples, "who": record.device} for record in records
    ]


def test_a_method_may_broadcast_facts_beside_the_adapter(tiny_model: Callable[[str, str], Path]) -> None:
    base = open_base(tiny_model("bert", "classification"), "classification")

    def broadcast(adapter: Adapter, device: DevicePlan) -> tuple[Adapter, Adapter]:
        return adapter, {"name": torch.tensor([ord(letter) for letter in device.device])}

    method = replace(build_method("fedlora", {}, seed=0), broadcast=broadcast)
    streams = streams_for(fleet_of(2), "classification", steps=2)
    told = [m for m in play(base, method, fleet_of(2), streams, rounds=1).sent_down if isinstance(m, Assignment)]
    assert {"".join(map(chr, message.facts["name"].tolist())) for message in told} == {"device-0", "device-1"}
