"""The pruned round: adapters of what is left find their places in the full one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bases import moved_adapter, open_base, some_kept
from cutlayer.device.talks.pruned import CHANGE, structure_in
from cutlayer.gate.guard import Guard
from cutlayer.methods.table import build_method
from cutlayer.model.adapter import LoraSettings
from cutlayer.model.base import Base
from cutlayer.model.structure import units_by_name
from cutlayer.policies.prune import Prune
from cutlayer.rounds.pruned import places, pruned
from cutlayer.testing.playground import Played, fleet_of, play, streams_for
from cutlayer.types import DevicePlan, RoundPlan
from cutlayer.wire.messages import Assignment, Update

ROUNDS, STEPS = 3, 2


@pytest.fixture(scope="module", params=["bert", "llama"])
def base(request: pytest.FixtureRequest, tiny_model: Callable[[str, str], Path]) -> Base:
    task = {"bert": "classification", "llama": "causal-lm"}[request.param]
    return open_base(tiny_model(request.param, task), task, lora=LoraSettings(targets=("all-linear",)))


def played(base: Base, prune: Prune | None) -> Played:
    """A run in which every device prunes as far in every round; none of its method's own planners says so."""

    def planner(plan: RoundPlan, _situation: object) -> RoundPlan:
        return plan if prune is None else plan.with_each(lambda device: device.having(prune))

    method = build_method("fedlora", {}, seed=0)
    method = replace(method, plan=(*method.plan, planner), round=pruned())
    if prune is not None and prune.ratio:
        method = replace(method, aggregate=build_method("fedspine", {}, seed=0).aggregate)
    streams = streams_for(fleet_of(2), base.settings.task, steps=ROUNDS * STEPS)
    return play(base, method, fleet_of(2), streams, rounds=ROUNDS, local_steps=STEPS)


def test_without_the_clause_it_is_the_local_round(base: Base) -> None:
    fleet = fleet_of(2)
    streams = streams_for(fleet, base.settings.task, steps=ROUNDS * STEPS)
    plain = play(base, build_method("fedlora", {}, seed=0), fleet, streams, rounds=ROUNDS, local_steps=STEPS)
    run = played(base, None)
    assert all(torch.equal(run.adapter[name], value) for name, value in plain.adapter.items())
    assert all(message.facts == {} for message in run.sent_up if isinstance(message, Update))


def test_a_ratio_of_nothing_trains_the_same(base: Base) -> None:
    run, plain = played(base, Prune(0.0)), played(base, None)
    assert all(torch.equal(run.adapter[name], value) for name, value in plain.adapter.items())


def test_a_device_may_prune_less_than_in_the_round_before(base: Base) -> None:
    """As `hfl_prune` asks of it when the fleet changes; what it says is what the server's guard expects."""
    ratios = (0.6, 0.3, 0.0)

    def planner(plan: RoundPlan, _situation: object) -> RoundPlan:
        ratio = ratios[plan.round]
        return plan.with_each(lambda device: device.having(Prune(ratio, score=False)) if ratio else device)

    method = build_method("hfl_prune", {}, seed=0)
    method = replace(method, plan=(*method.plan[:-2], planner, method.plan[-1]))
    streams = streams_for(fleet_of(2), base.settings.task, steps=ROUNDS * STEPS)
    run = play(base, method, fleet_of(2), streams, rounds=ROUNDS, local_steps=STEPS, guard=Guard)
    sent = [structure_in(message.facts) for message in run.sent_up if isinstance(message, Update)]
    left = [base.structure.from_tensors(said, "device")[0] if said else base.structure.everything for said in sent]
    assert [len(kept.channels[0]) for kept in left[::2]] == [base.structure.left(ratio)[1] for ratio in ratios]


def test_what_is_gone_is_no_longer_sent_up_nor_trained(base: Base) -> None:
    run = played(base, Prune(0.5))
    heads, channels = base.structure.left(0.5)
    for message in run.sent_up:
        assert isinstance(message, Update)
        kept, _ = base.structure.from_tensors(structure_in(message.facts), message.device)
        assert {len(units) for units in kept.heads} == {heads}
        assert {len(units) for units in kept.channels} == {channels}
        assert float(message.facts[CHANGE]) > 0
    down = [message for message in run.sent_down if isinstance(message, Assignment)]
    assert all({n: tuple(v.shape) for n, v in message.adapter.items()} == base.shapes for message in down)


def test_each_tensor_lies_at_the_units_that_are_left(base: Base) -> None:
    """Cutting the full adapter at these places is what a device trains."""
    kept = some_kept(base.structure, seed=3)
    full = moved_adapter(base)
    scores = {name: torch.zeros(base.structure.count(name)) for name, _ in units_by_name(kept)}
    cut = base.structure.slice_all(full, kept)
    update = Update("run", 0, "pi", cut, 2, 8, 8, 0.5, 1.0, base.structure.to_tensors(kept, scores))
    found = places(base, update)
    for name, value in cut.items():
        whole = full[name]
        if name in found:
            axis, positions = found[name]
            whole = whole.index_select(axis, torch.as_tensor(positions))
        assert torch.equal(whole, value)
    assert {name for name, value in cut.items() if value.shape != full[name].shape} <= found.keys()
    assert places(base, replace(update, facts={})) == {}


def test_contributions_say_where_their_tensors_lie(base: Base) -> None:
    run = played(base, Prune(0.5))
    shrunk = 0
    for contributions in run.contributions:
        for part in contributions:
            for name, value in part.adapter.items():
                if value.shape != torch.Size(base.shapes[name]):
                    axis, positions = part.where[name]
                    assert len(positions) == value.shape[axis] < base.shapes[name][axis]
                    shrunk += 1
    assert shrunk


def test_a_plan_that_prunes_needs_a_model_that_can_be(base: Base) -> None:
    plan = DevicePlan("pi", base.num_blocks, top=base.num_blocks).having(Prune(0.5))
    assert pruned().shape.copies_weights
    pruned().shape.prepare(base, plan)
