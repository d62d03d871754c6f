"""The server's side: adapters swapped in and stepped, what a round hands over, what stops it."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bases import moved_adapter, open_base
from cutlayer.errors import DivergedError
from cutlayer.fleet.clock import run_virtual
from cutlayer.methods.table import build_method
from cutlayer.model.adapter import LoraSettings
from cutlayer.model.base import Base
from cutlayer.model.trainable import OptimizerSettings, Trainable, TrainSettings
from cutlayer.policies.order import ORDERS
from cutlayer.server.ledger import Tally
from cutlayer.server.owners import SHARED, one_for_all, one_per_device
from cutlayer.server.server import Server
from cutlayer.state import State
from cutlayer.testing.playground import fleet_of, learning_rate, play, streams_for
from cutlayer.testing.tiny import BLOCKS, random_batch
from cutlayer.types import Adapter, Batch, DevicePlan, Event, RoundPlan
from cutlayer.wire.messages import Activations, Gradients, Update
from ends import activations_for, served, server_for

ModelMaker = Callable[[str, str], Path]
BATCH = random_batch("classification")


@pytest.fixture(scope="module")
def bert(tiny_model: ModelMaker) -> Base:
    return open_base(tiny_model("bert", "classification"), "classification")


def plan_of(*cuts: int, steps: int = 2, round: int = 0) -> RoundPlan:
    return RoundPlan(round, tuple(DevicePlan(f"device-{i}", cut, 4, steps) for i, cut in enumerate(cuts)))


def step(server: Server, arrived: Activations) -> Gradients:
    return run_virtual(served(server, arrived))


def whole_step(base: Base, start: Adapter, batches: list[Batch], settings: TrainSettings) -> Adapter:
    """The unsplit model, trained on these batches by one optimizer."""
    trainable, whole = Trainable(start, settings.optimizer), base.whole()
    for number, batch in enumerate(batches):
        whole.use(trainable.parameters)
        whole.loss_and_logits(batch)[0].backward()
        trainable.step(learning_rate(0, number))
    return trainable.adapter()


def assert_same(one: Adapter, other: Adapter) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


# ------------------------------------------------------------------ opening a round


def test_an_assignment_is_the_devices_part(bert: Base) -> None:
    server, plan = server_for(bert, fleet_of(2)), plan_of(1, 3, steps=3, round=1)
    server.adapter = moved_adapter(bert)
    server.begin(plan, one_per_device)
    assignment = server.assignment(plan.devices[0])
    assert (assignment.run, assignment.round, assignment.device, assignment.plan) == (
        "run",
        1,
        "device-0",
        plan.devices[0],
    )
    assert assignment.learning_rates == tuple(learning_rate(1, number) for number in range(3))
    assert list(assignment.adapter) == bert.device_names(1)
    assert all(torch.equal(value, server.adapter[name]) for name, value in assignment.adapter.items())


@pytest.mark.parametrize("owner", [one_per_device, one_for_all])
def test_server_adapters_start_from_the_broadcast(owner: Callable[[str], str], bert: Base) -> None:
    """A shared one reaches down to the lowest cut; those of devices to each one's own."""
    server = server_for(bert, fleet_of(2))
    server.begin(plan_of(1, 3), owner)  # a round before: other values, other cuts
    server.adapter = moved_adapter(bert)
    server.begin(plan_of(3, 2), owner)
    adapters = {name: server.adapters.trainable(name).adapter() for name in server.adapters.owners}
    lowest = {"device-0": 3, "device-1": 2} if owner is one_per_device else {SHARED: 2}
    assert adapters.keys() == lowest.keys()
    for name, cut in lowest.items():
        assert_same(adapters[name], {key: server.adapter[key] for key in bert.server_names(cut)})


# ------------------------------------------------------------------ a step


@pytest.mark.parametrize("cut", range(BLOCKS + 1))
def test_a_step_trains_what_the_server_holds(cut: int, bert: Base) -> None:
    server = server_for(bert, fleet_of(1))
    server.begin(plan_of(cut), one_per_device)
    arrived = activations_for(bert, BATCH, cut)
    answer = step(server, arrived)
    trained = whole_step(bert, bert.initial_adapter(0), [BATCH], server.settings)
    assert_same(
        server.adapters.trainable("device-0").adapter(), {name: trained[name] for name in bert.server_names(cut)}
    )
    assert (answer.run, answer.round, answer.step, answer.device) == ("run", 0, 0, "device-0")
    bert.whole().use(bert.initial_adapter(0))
    assert answer.loss == float(bert.whole().loss_and_logits(BATCH)[0])
    if cut == 0:
        assert answer.grad_BTD is None, "nothing on the device trains"
    else:
        assert answer.grad_BTD is not None
        assert answer.grad_BTD.shape == arrived.h_BTD.shape
        assert answer.grad_BTD.abs().sum() > 0
    assert arrived.h_BTD.grad is None
    assert not arrived.h_BTD.requires_grad


def test_a_devices_step_touches_only_its_owners_adapter(bert: Base) -> None:
    server = server_for(bert, fleet_of(2))
    server.begin(plan_of(1, 1), one_per_device)
    step(server, activations_for(bert, BATCH, 1, device="device-1"))
    start = {name: bert.initial_adapter(0)[name] for name in bert.server_names(1)}
    assert_same(server.adapters.trainable("device-0").adapter(), start)
    assert not torch.equal(
        server.adapters.trainable("device-1").adapter()["base_model.model.classifier.weight"],
        start["base_model.model.classifier.weight"],
    )
    assert_same(server.adapter, bert.initial_adapter(0))


def test_steps_of_all_train_a_shared_adapter(bert: Base) -> None:
    server = server_for(bert, fleet_of(2))
    server.begin(plan_of(0, 0), one_for_all)
    batches = [BATCH, random_batch("classification", seed=5)]
    for number, batch in enumerate(batches):
        step(server, activations_for(bert, batch, 0, device=f"device-{number}", step=number))
    trained = whole_step(bert, bert.initial_adapter(0), batches, server.settings)
    assert_same(server.adapters.trainable(SHARED).adapter(), trained)


def test_a_step_takes_the_servers_time_and_is_recorded(bert: Base) -> None:
    events: list[Event] = []
    server = server_for(bert, fleet_of(1), events)
    server.begin(plan_of(1, round=4), one_per_device)
    step(server, replace(activations_for(bert, BATCH, 1, step=1), round=4))
    flops = 2 * 1e6 * 2.1 * 4 * 12
    assert events == [Event("server", "step", 0.0, flops / 3e10, 4, 1, "device-0", flops=flops)]


def test_clipping_and_weight_decay_reach_the_servers_optimizer(bert: Base) -> None:
    settings = TrainSettings(OptimizerSettings(weight_decay=0.3, clip=1e-3))
    server = server_for(bert, fleet_of(1), settings=settings)
    server.begin(plan_of(0), one_per_device)
    step(server, activations_for(bert, BATCH, 0))
    assert_same(
        server.adapters.trainable("device-0").adapter(), whole_step(bert, bert.initial_adapter(0), [BATCH], settings)
    )


def test_a_server_that_is_done_lets_go_of_its_model(bert: Base) -> None:
    """A process may hold one run after another."""
    server = server_for(bert, fleet_of(1))
    server.begin(plan_of(1), one_per_device)
    step(server, activations_for(bert, BATCH, 1))
    gone = weakref.ref(server)
    del server
    gc.collect()
    assert gone() is None


# ------------------------------------------------------------------ what was seen


def test_a_tally_is_weighted_by_what_was_trained(bert: Base) -> None:
    server = server_for(bert, fleet_of(2))
    server.begin(plan_of(1, 1), one_per_device)
    batches = [BATCH, random_batch("classification", seed=5, samples=2)]
    losses = [step(server, activations_for(bert, batch, 1, step=n)).loss for n, batch in enumerate(batches)]
    server.accept(Update("run", 0, "device-0", {}, steps=0, samples=6, weight=6, loss=0.0, busy_seconds=0.0))
    tally = server.ledger.take_tallies()["device-0"]
    assert (tally.steps, tally.samples, tally.weight) == (2, 6, 6)
    assert tally.loss == pytest.approx((4 * losses[0] + 2 * losses[1]) / 6)
    assert server.ledger.take_tallies() == {}, "each round counts anew"
    assert math.isnan(Tally().loss)


def contributions_of(
    server: Server, plan: RoundPlan, weights: dict[str, int]
) -> list[tuple[set[str], dict[str, float]]]:
    for device in plan.devices:
        adapter = {name: server.adapter[name] + 1 for name in server.base.device_names(device.cut)}
        weight = weights[device.device]
        server.accept(
            Update("run", 0, device.device, adapter, 0, samples=weight, weight=weight, loss=0.0, busy_seconds=0.0)
        )
    return [(set(part.adapter), dict(part.weights)) for part in server.contributions()]


def test_a_device_with_its_own_server_adapter_brings_all_tensors(bert: Base) -> None:
    server, plan = server_for(bert, fleet_of(2)), plan_of(1, 3)
    server.begin(plan, one_per_device)
    step(server, activations_for(bert, BATCH, 1))
    (one, one_weights), (other, _) = contributions_of(server, plan, {"device-0": 5, "device-1": 7})
    assert one == other == set(bert.shapes)
    assert set(one_weights.values()) == {5.0}
    first, second = (part.adapter for part in server.contributions())
    for name in bert.device_names(1):
        assert torch.equal(first[name], server.adapter[name] + 1), "of a device's tensors, the device's values"
    assert any(not torch.equal(first[name], server.adapter[name]) for name in bert.server_names(1))
    assert all(torch.equal(second[name], server.adapter[name]) for name in bert.server_names(3))


def test_a_shared_adapter_counts_at_each_block_for_those_who_passed_it(bert: Base) -> None:
    server, plan = server_for(bert, fleet_of(3)), plan_of(1, 3, 2)
    server.begin(plan, one_for_all)
    *devices, (shared, weights) = contributions_of(server, plan, {"device-0": 5, "device-1": 7, "device-2": 11})
    assert [names for names, _ in devices] == [set(bert.device_names(cut)) for cut in (1, 3, 2)]
    assert shared == set(bert.server_names(1))
    expected = {1: 5.0, 2: 16.0, None: 23.0}
    assert weights == {name: expected[bert.block_of(name)] for name in shared}


def test_contributions_come_by_name_not_by_arrival(bert: Base) -> None:
    server, plan = server_for(bert, fleet_of(3)), plan_of(1, 2, 3)
    plan = replace(plan, devices=tuple(reversed(plan.devices)))
    server.begin(plan, one_per_device)
    parts = contributions_of(server, plan, {"device-0": 5, "device-1": 7, "device-2": 11})
    assert [next(iter(weights.values())) for _, weights in parts] == [5.0, 7.0, 11.0]


@pytest.mark.parametrize("name", ["shared", "server"])
def test_no_device_can_be_taken_for_all_of_them(name: str, bert: Base) -> None:
    fleet = fleet_of(2)
    named = fleet.devices[0].model_copy(update={"name": name})
    server = server_for(bert, fleet.model_copy(update={"devices": (named, fleet.devices[1])}))
    plan = RoundPlan(0, (DevicePlan(name, 1, 4, 1), DevicePlan("device-1", 1, 4, 1)))
    server.begin(plan, one_for_all)
    parts = contributions_of(server, plan, {name: 5, "device-1": 7})
    assert sorted(len(names) for names, _ in parts) == sorted(
        [len(bert.device_names(1))] * 2 + [len(bert.server_names(1))]
    )


# ------------------------------------------------------------------ moments


def test_moments_live_on_or_not_from_round_to_round(bert: Base) -> None:
    def two_rounds(keep: bool) -> Adapter:
        server = server_for(bert, fleet_of(1), settings=TrainSettings(OptimizerSettings(), keep_moments=keep))
        for _ in range(2):
            server.begin(plan_of(1), one_per_device)
            step(server, activations_for(bert, BATCH, 1))
        moments = server.adapters.moments().branch("device-0").tensors
        return {name: value for name, value in moments.items() if name.endswith("#step")}

    assert {float(value) for value in two_rounds(True).values()} == {2.0}
    assert {float(value) for value in two_rounds(False).values()} == {1.0}


def test_a_server_goes_on_from_moments(bert: Base) -> None:
    def begun(moments: State | None) -> Server:
        server = server_for(bert, fleet_of(2))
        if moments is not None:
            server.adapters.load_moments(moments)
        server.begin(plan_of(1, 2), one_per_device)
        return server

    one = begun(None)
    step(one, activations_for(bert, BATCH, 1))
    other = begun(one.adapters.moments().copied())
    one.begin(plan_of(1, 2), one_per_device)
    for server in (one, other):
        step(server, activations_for(bert, random_batch("classification", seed=6), 1))
    assert_same(one.adapters.trainable("device-0").adapter(), other.adapters.trainable("device-0").adapter())
    moments, others = one.adapters.moments(), other.adapters.moments()
    assert moments.branches().keys() == others.branches().keys() == {"device-0", "device-1"}
    assert_same(moments.tensors, others.tensors)


# ------------------------------------------------------------------ divergence


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_step(value: float, bert: Base) -> None:
    server = server_for(bert, fleet_of(1))
    server.begin(plan_of(1, round=3), one_per_device)
    arrived = replace(activations_for(bert, BATCH, 1, step=1), round=3)
    arrived.h_BTD[0, 0, 0] = value
    with pytest.raises(DivergedError) as error:
        step(server, arrived)
    assert (error.value.device, error.value.round, error.value.step) == ("device-0", 3, 1)
    text = str(error.value)
    assert "\n" not in text
    assert "device device-0, round 3, step 1: expected a finite loss, got nan. Lower the learning rate" in text
    trained = server.adapters.trainable("device-0").adapter()
    assert all(torch.equal(trained[name], server.adapter[name]) for name in trained), "nothing was stepped"
    assert server.ledger.take_tallies() == {}


@pytest.mark.parametrize("method", ["memsfl", "splitlora", "vanilla"])
def test_a_run_that_diverges_ends(method: str, bert: Base) -> None:
    """Weight decay so large that the first step makes infinities; devices and server stop, nothing hangs."""
    fleet, settings = fleet_of(3), TrainSettings(OptimizerSettings(weight_decay=1e38))
    streams = streams_for(fleet, "classification", steps=8)
    with pytest.raises(BaseExceptionGroup) as group:
        play(bert, build_method(method, {}, seed=0), fleet, streams, rounds=2, local_steps=4, settings=settings)
    diverged = group.value.subgroup(DivergedError)
    assert diverged is not None
    assert group.value.split(DivergedError)[1] is None, "and nothing else went wrong"


# ------------------------------------------------------------------ half precision and dropout


def test_a_run_in_bf16_is_training_of_the_whole_model_in_bf16(tiny_model: ModelMaker) -> None:
    """Activations cross the cut in bf16; what is trained stays fp32."""
    base = open_base(tiny_model("bert", "classification"), "classification", dtype="bf16")
    fleet = fleet_of(1)
    streams = streams_for(fleet, "classification", steps=3)
    played = play(base, build_method("memsfl", {"cut": 2}, seed=0), fleet, streams, rounds=1, local_steps=3)
    whole = whole_step(base, base.initial_adapter(0), streams["device-0"].given, TrainSettings(OptimizerSettings()))
    assert_same(played.adapter, whole)
    assert {value.dtype for value in played.adapter.values()} == {torch.float32}
    sent = [message for message in played.sent_up if isinstance(message, Activations)]
    answers = [message for message in played.sent_down if isinstance(message, Gradients)]
    assert {message.h_BTD.dtype for message in sent} == {torch.bfloat16}
    assert {answer.grad_BTD.dtype for answer in answers if answer.grad_BTD is not None} == {torch.bfloat16}


def with_dropout(tiny_model: ModelMaker, *, order: str = "fifo", seed: int = 0, **changes: Any) -> Adapter:
    folder = tiny_model("bert", "classification")
    base = open_base(folder, "classification", **{"base_dropout": True, "lora": LoraSettings(dropout=0.1), **changes})
    fleet = fleet_of(3)
    streams = streams_for(fleet, "classification", steps=2)
    settings = TrainSettings(OptimizerSettings(), seed=seed)
    method = build_method("memsfl", {"order": order}, seed=0)
    return play(base, method, fleet, streams, rounds=1, local_steps=2, settings=settings).adapter


def test_dropout_does_not_depend_on_who_was_served_before(tiny_model: ModelMaker) -> None:
    adapters = [with_dropout(tiny_model, order=order) for order in sorted(ORDERS)]
    for adapter in adapters[1:]:
        assert_same(adapter, adapters[0])


@pytest.mark.parametrize("changes", [{"base_dropout": False}, {"lora": LoraSettings()}])
def test_either_dropout_is_drawn_by_the_seed(changes: dict[str, Any], tiny_model: ModelMaker) -> None:
    """The seed draws it whatever the global generator has been through; another seed is another run."""
    torch.manual_seed(1)
    one = with_dropout(tiny_model, **changes)
    torch.manual_seed(2)
    assert_same(one, with_dropout(tiny_model, **changes))
    other = with_dropout(tiny_model, seed=1, **changes)
    assert any(not torch.equal(one[name], other[name]) for name in one)
    without = with_dropout(tiny_model, base_dropout=False, lora=LoraSettings())
    assert any(not torch.equal(one[name], without[name]) for name in one)


def test_dropout_is_drawn_for_each_step_of_each_device(tiny_model: ModelMaker, bert: Base) -> None:
    base = open_base(tiny_model("bert", "classification"), "classification", base_dropout=True)

    def loss(*, device: str = "device-0", seed: int = 0, round: int = 0, number: int = 0) -> float:
        server = server_for(base, fleet_of(2), settings=TrainSettings(OptimizerSettings(), seed=seed))
        server.begin(plan_of(1, 1, round=round), one_per_device)
        arrived = activations_for(bert, BATCH, 1, device=device, step=number)
        return step(server, replace(arrived, round=round)).loss

    assert loss() == loss()
    others = [loss(device="device-1"), loss(seed=1), loss(round=1), loss(number=1)]
    assert len({loss(), *others}) == 5


def test_recomputing_drops_out_the_same(tiny_model: ModelMaker) -> None:
    assert_same(with_dropout(tiny_model), with_dropout(tiny_model, checkpoint_device=True, checkpoint_server=True))
