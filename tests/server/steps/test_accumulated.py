"""One shared adapter that moves once a round: by everybody's gradients, whatever the order and the cuts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bases import open_base
from cutlayer.methods.method import Method
from cutlayer.model.base import Base
from cutlayer.model.trainable import Trainable
from cutlayer.policies.aggregate import mean_per_block
from cutlayer.policies.cut import cut_at
from cutlayer.policies.scope import personal_below_the_cut
from cutlayer.policies.select import everyone
from cutlayer.rounds.split import split
from cutlayer.server.steps.accumulated import accumulated
from cutlayer.testing.playground import FlatCosts, LeavingLink, Played, fleet_of, learning_rate, play, streams_for
from cutlayer.types import Adapter, DevicePlan, RoundPlan
from cutlayer.wire.link import Link
from ends import ADAMW

ModelMaker = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def bert(tiny_model: ModelMaker) -> Base:
    return open_base(tiny_model("bert", "classification"), "classification")


def played(base: Base, cut: int, *, steps: int = 1, leaves: str = "") -> Played:
    def link_of(device: str, link: Link) -> Link:
        return LeavingLink(link, device, round=0, after=1) if device == leaves else link

    fleet = fleet_of(3)
    method = Method(
        plan=(everyone(), cut_at(cut)),
        round=split(server_step=accumulated()),
        aggregate=mean_per_block(),
        scope=personal_below_the_cut,
    )
    streams = streams_for(fleet, "classification", steps=2 * steps)
    return play(base, method, fleet, streams, rounds=1, local_steps=steps, link_of=link_of)


def by_hand(base: Base, steps: int, devices: tuple[str, ...]) -> Adapter:
    """One step of the whole model on the mean gradient, of devices that hold nothing."""
    start, streams = base.initial_adapter(0), streams_for(fleet_of(3), "classification", steps=2 * steps)
    trainable, whole = Trainable(start, ADAMW.optimizer), base.whole()
    sums, weight = {name: [] for name in start}, 0
    for device in devices:
        own: Adapter = {}
        for batch in streams[device].all[:steps]:
            whole.use(trainable.parameters)
            whole.loss(batch).backward()
            for name, parameter in trainable.parameters.items():
                assert parameter.grad is not None
                own[name] = (
                    own[name].add_(parameter.grad, alpha=batch.weight) if name in own else parameter.grad * batch.weight
                )
                parameter.grad = None
            weight += batch.weight
        for name, value in own.items():
            sums[name].append(value)
    for name, parameter in trainable.parameters.items():
        parameter.grad = torch.stack(sums[name]).sum(0) / weight
    trainable.step(learning_rate(0, 0))
    return trainable.adapter()


@pytest.mark.parametrize("steps", [1, 2])
def test_it_is_one_step_on_everybodys_mean_gradient(steps: int, bert: Base) -> None:
    run = played(bert, 0, steps=steps)
    expected = by_hand(bert, steps, ("device-0", "device-1", "device-2"))
    assert [name for name in expected if not torch.equal(expected[name], run.adapter[name])] == []


def test_what_the_server_learns_does_not_depend_on_the_cut(bert: Base) -> None:
    """In a round of one step nothing below has moved yet, so above both cuts the gradients are the same."""
    shallow, deep = played(bert, 1), played(bert, 2)
    above = bert.server_names(2)
    assert above
    assert [name for name in above if not torch.equal(shallow.adapter[name], deep.adapter[name])] == []


def test_who_leaves_counts_for_nothing(bert: Base) -> None:
    run = played(bert, 0, steps=2, leaves="device-1")
    expected = by_hand(bert, 2, ("device-0", "device-2"))
    assert [name for name in expected if not torch.equal(expected[name], run.adapter[name])] == []


def test_memory_is_a_step_a_gradient_each_and_a_queue(bert: Base) -> None:
    costs, plan = FlatCosts(3), RoundPlan(0, tuple(DevicePlan(f"device-{i}", 1, 4, 2) for i in range(3)))
    step, queue = costs.server(plan.devices[0], 4, 10).memory_bytes, costs.activation_bytes(4, 10)
    assert (
        accumulated().server_bytes(plan, costs, 10)
        == step + 3 * costs.server_trainable_bytes(plan.devices[0]) // 3 + 3 * queue
    )
