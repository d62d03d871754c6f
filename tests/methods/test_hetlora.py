"""HETLoRA: who trains at which rank, what is sent, and what equal ranks make of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bases import open_base
from cutlayer.methods.table import build_method
from cutlayer.model.adapter import at_rank
from cutlayer.model.base import Base
from cutlayer.policies.plan import Situation
from cutlayer.policies.self_prune import SelfPrune
from cutlayer.policies.zero_pad import zero_pad
from cutlayer.testing.playground import FlatCosts, Played, fleet_of, play, streams_for
from cutlayer.types import History, RoundPlan
from cutlayer.wire.messages import Assignment, Update

RANKS = {"device-0": 1, "device-1": 4, "device-2": 8}
"""Ranks for the playground's speeds, 1 : 3 : 5."""


@pytest.fixture(scope="module")
def bert(tiny_model: Callable[[str, str], Path]) -> Base:
    return open_base(tiny_model("bert", "classification"), "classification")


def played(base: Base, method: str, options: dict[str, Any]) -> Played:
    fleet = fleet_of(3)
    streams = streams_for(fleet, "classification", steps=4)
    return play(base, build_method(method, options, seed=0), fleet, streams)


@pytest.mark.parametrize("method", ["hetlora", "flexlora"])
def test_every_device_trains_at_its_rank(method: str, bert: Base) -> None:
    run = played(bert, method, {})
    assert {record.device: record.ranks for record in run.logbook.history.records} == {
        name: (rank,) * 3 for name, rank in RANKS.items()
    }
    for message in (*run.sent_up, *run.sent_down):
        if isinstance(message, Assignment | Update):
            shapes = {name: tuple(value.shape) for name, value in message.adapter.items()}
            assert shapes == bert.shapes_of((RANKS[message.device],) * 3)
    assert {name: tuple(value.shape) for name, value in run.adapter.items()} == bert.shapes


@pytest.mark.parametrize("method", ["hetlora", "flexlora", "flora"])
@pytest.mark.parametrize(
    ("options", "ranks"),
    [
        ({"lowest": 3}, (3, 4, 8)),
        ({"by": "memory"}, (8, 8, 8)),  # which is the same for all there
        ({"by": "uplink", "lowest": 4}, (4, 4, 8)),  # 1 : 2 : 3
    ],
)
def test_who_gets_which_rank_is_an_option(method: str, options: dict[str, Any], ranks: tuple[int, ...]) -> None:
    situation = Situation(fleet_of(3), FlatCosts(3), History(), num_tokens=10, batch_size=4, local_steps=2)
    plan = build_method(method, options, seed=0).make_plan(0, situation)
    assert tuple(device.ranks[0] for device in plan.devices) == ranks


def test_the_lowest_rank_holds_for_pruning_too() -> None:
    situation = Situation(fleet_of(3), FlatCosts(3), History(), num_tokens=10, batch_size=4, local_steps=2)
    plan = build_method("hetlora", {"lowest": 3, "gamma": 0.5, "lam": 0.25}, seed=0).make_plan(0, situation)
    clauses = [device.clause(SelfPrune) for device in plan.devices]
    assert clauses == [None, SelfPrune((3, 3, 3), 0.25), SelfPrune((4, 4, 4), 0.25)]


@pytest.mark.parametrize("method", ["hetlora", "flexlora"])
def test_a_device_is_sent_the_first_rows_and_columns(method: str, bert: Base) -> None:
    run = played(bert, method, {})
    second = [message for message in run.sent_down if isinstance(message, Assignment) and message.round == 1]
    broadcast = next(message.adapter for message in second if message.device == "device-2")
    for message in second:
        for name, value in message.adapter.items():
            assert torch.equal(value, at_rank(name, broadcast[name], RANKS[message.device]))


def test_the_aggregate_is_zero_padding_with_its_options(bert: Base) -> None:
    for options in ({"by_norm": True}, {"by_norm": False}, {"owners_only": True}):
        run = played(bert, "hetlora", options)
        last = next(
            m.adapter for m in run.sent_down if isinstance(m, Assignment) and (m.round, m.device[-1]) == (1, "2")
        )
        expected = zero_pad(**options)(last, run.contributions[1], RoundPlan(1))
        assert all(torch.equal(run.adapter[name], value) for name, value in expected.items())


def test_equal_ranks_weighted_by_samples_are_fedlora(bert: Base) -> None:
    equal = played(bert, "hetlora", {"lowest": 8, "by_norm": False}).adapter
    for name, value in played(bert, "fedlora", {}).adapter.items():
        assert torch.equal(equal[name], value)
