"""A device: what it sends, what it trains, what it keeps and what outlives a round."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bases import moved_adapter, open_base
from cutlayer.device.device import Device
from cutlayer.fleet.clock import run_virtual
from cutlayer.model.base import Base
from cutlayer.model.part import model_inputs
from cutlayer.model.trainable import OptimizerSettings, Trainable, TrainSettings
from cutlayer.policies.trains import Trains
from cutlayer.state import State
from cutlayer.testing.tiny import BLOCKS, random_batch
from cutlayer.types import Adapter, DevicePlan, Event
from cutlayer.wire.messages import Activations, Assignment, Gradients
from ends import ADAMW, device_for

ModelMaker = Callable[[str, str], Path]
BATCHES = [random_batch("classification", seed=seed, samples=2 + seed) for seed in range(4)]
RATES = (0.01, 0.002)


@pytest.fixture(scope="module")
def bert(tiny_model: ModelMaker) -> Base:
    return open_base(tiny_model("bert", "classification"), "classification")


def assignment(base: Base, cut: int, *, round: int = 0, adapter: Adapter | None = None) -> Assignment:
    full = adapter or moved_adapter(base)
    plan = DevicePlan("device-0", cut, batch_size=3, local_steps=2)
    return Assignment("run", round, "device-0", plan, RATES, {name: full[name] for name in base.device_names(cut)})


def gradients_for(activations: Activations) -> Gradients:
    grad_BTD = torch.linspace(-1, 1, activations.h_BTD.numel()).reshape(activations.h_BTD.shape)
    return Gradients("run", activations.round, activations.step, "device-0", grad_BTD.to(activations.h_BTD.dtype), 0.5)


def local_step(device: Device, step: int) -> Activations:
    """A step of a device whose batch is one part."""

    async def run() -> Activations:
        batch = device.draw()
        h_BTD = await device.bottom(batch, step)
        activations = device.activations(batch, h_BTD, step)
        device.count(batch)
        await device.back(batch, h_BTD, gradients_for(activations).grad_BTD, step, moves=True)
        return activations

    return run_virtual(run())


def sent_by(device: Device, step: int) -> Activations:
    """The message that a device would send first in a step."""
    batch = device.draw()
    return device.activations(batch, run_virtual(device.bottom(batch, step)), step)


def by_hand(base: Base, cut: int, settings: TrainSettings = ADAMW) -> Adapter:
    """The same two steps on the part alone."""
    start = {name: moved_adapter(base)[name] for name in base.device_names(cut)}
    trainable, part = Trainable(start, settings.optimizer), base.device_part(cut)
    for step in range(2):
        part.use(trainable.parameters)
        h_BTD = part.forward(model_inputs(BATCHES[step]))
        h_BTD.backward(torch.linspace(-1, 1, h_BTD.numel()).reshape(h_BTD.shape))
        trainable.step(RATES[step])
    return trainable.adapter()


@pytest.mark.parametrize("cut", range(BLOCKS + 1))
def test_it_sends_the_batch_as_it_leaves_its_part(cut: int, bert: Base) -> None:
    device = device_for(bert, BATCHES)
    device.begin(assignment(bert, cut, round=5))
    sent = sent_by(device, 1)
    part = bert.device_part(cut)
    part.use(moved_adapter(bert))
    assert torch.equal(sent.h_BTD, part.forward(model_inputs(BATCHES[0])))
    assert not sent.h_BTD.requires_grad
    assert torch.equal(sent.mask_BT, BATCHES[0].attention_mask_BT == 1)
    assert torch.equal(sent.labels, BATCHES[0].labels)
    assert sent.labels.dtype is torch.int32
    assert (sent.run, sent.round, sent.step, sent.device, sent.weight) == ("run", 5, 1, "device-0", 2)


@pytest.mark.parametrize("settings", [ADAMW, TrainSettings(OptimizerSettings(weight_decay=0.5, clip=1e-3))])
def test_it_trains_its_blocks_at_the_rates_of_its_steps(settings: TrainSettings, bert: Base) -> None:
    device = device_for(bert, BATCHES, settings=settings)
    device.begin(assignment(bert, 2))
    for step in range(2):
        local_step(device, step)
    update, expected = device.update(), by_hand(bert, 2, settings)
    assert update.adapter.keys() == expected.keys() == set(bert.device_names(2))
    assert all(torch.equal(update.adapter[name], expected[name]) for name in expected)
    start = moved_adapter(bert)
    assert not any(torch.equal(update.adapter[name], start[name]) for name in expected)


def test_an_update_says_what_was_trained(bert: Base) -> None:
    device = device_for(bert, BATCHES)
    device.begin(assignment(bert, 1))
    for step in range(2):
        local_step(device, step)
    update = device.update()
    assert (update.run, update.round, update.device) == ("run", 0, "device-0")
    assert (update.samples, update.weight) == (2 + 3, 2 + 3)
    busy = 2e6 * 1.1 * 12 * 5 / 1e9  # forward and backward of 1.1 blocks, 12 tokens, 5 samples, at 1 GFLOP/s
    assert update.busy_seconds == pytest.approx(busy)
    device.begin(assignment(bert, 1, round=1))
    local_step(device, 0)
    second = device.update()
    assert (second.round, second.samples, second.weight) == (1, 4, 4)
    assert second.busy_seconds == pytest.approx(2e6 * 1.1 * 12 * 4 / 1e9)


def test_tokens_weigh_for_causal_lm(tiny_model: ModelMaker) -> None:
    base, batch = open_base(tiny_model("llama", "causal-lm"), "causal-lm"), random_batch("causal-lm")
    device = device_for(base, [batch])
    device.begin(assignment(base, 1))
    sent = local_step(device, 0)
    update = device.update()
    targets = int((batch.labels[:, 1:] != -100).sum())
    assert (sent.weight, update.weight, update.samples) == (targets, targets, 4)
    assert torch.equal(sent.labels, batch.labels)


def test_a_device_without_blocks_trains_nothing_and_counts(bert: Base) -> None:
    events: list[Event] = []
    device = device_for(bert, BATCHES, events)
    device.begin(assignment(bert, 0))
    batch = device.draw()
    h_BTD = run_virtual(device.bottom(batch, 0))
    device.count(batch)
    run_virtual(device.back(batch, h_BTD, None, 0, moves=True))
    update = device.update()
    assert update.adapter == {}
    assert (update.samples, update.weight) == (2, 2)
    assert [event.what for event in events] == ["forward"]


def test_every_piece_of_work_is_an_event(bert: Base) -> None:
    events: list[Event] = []
    device = device_for(bert, BATCHES, events)
    device.begin(assignment(bert, 2, round=3))
    local_step(device, 1)
    seconds = pytest.approx(1e6 * 2.1 * 12 * 2 / 1e9)
    assert [(event.who, event.what, event.round, event.step) for event in events] == [
        ("device-0", "forward", 3, 1),
        ("device-0", "backward", 3, 1),
    ]
    assert [event.end_seconds - event.start_seconds for event in events] == [seconds, seconds]


def test_the_graph_is_gone_after_the_step(bert: Base) -> None:
    device = device_for(bert, BATCHES)
    device.begin(assignment(bert, 2))
    batch = device.draw()
    h_BTD = run_virtual(device.bottom(batch, 0))
    grad_BTD = torch.ones_like(h_BTD)
    run_virtual(device.back(batch, h_BTD, grad_BTD, 0, moves=True))
    with pytest.raises(RuntimeError, match="second time"):
        run_virtual(device.back(batch, h_BTD, grad_BTD, 0, moves=True))


def test_without_a_graph_nothing_can_be_followed_back(bert: Base) -> None:
    device = device_for(bert, BATCHES)
    device.begin(assignment(bert, 2))
    batch = device.draw()
    h_BTD = run_virtual(device.bottom(batch, 0, graph=False))
    assert not h_BTD.requires_grad
    assert torch.equal(h_BTD, run_virtual(device.bottom(batch, 0)))


def test_an_adapter_moves_with_the_last_part_of_a_step(bert: Base) -> None:
    device = device_for(bert, BATCHES)
    device.begin(assignment(bert, 2))
    batch, before = device.draw(), device.update().adapter
    for moves in (False, True):
        assert all(torch.equal(value, before[name]) for name, value in device.update().adapter.items())
        h_BTD = run_virtual(device.bottom(batch, 0))
        run_virtual(device.back(batch, h_BTD, torch.ones_like(h_BTD), 0, moves=moves))
    assert not any(torch.equal(value, before[name]) for name, value in device.update().adapter.items())


def test_a_batch_that_is_put_back_is_drawn_again(bert: Base) -> None:
    """A step that is not done to its end does not count."""
    device = device_for(bert, BATCHES)
    device.begin(assignment(bert, 2))
    local_step(device, 0)
    before = device.state().branch("data")
    second = device.draw()
    device.take_back()
    assert device.state().branch("data") == before
    assert device.draw() is second
    assert (device.update().samples, device.update().weight) == (2, 2)


def test_forward_passes_aside_cost_a_share_of_a_step(bert: Base) -> None:
    events: list[Event] = []
    device = device_for(bert, BATCHES, events)
    device.begin(assignment(bert, 2, round=3))
    batch = device.draw()
    assert run_virtual(device.forwards(lambda: "done", batch, 1, like=lambda: "nothing", share=0.25)) == "done"
    run_virtual(device.bottom(batch, 1, share=0.75))
    assert [(event.what, event.round, event.step) for event in events] == [("forward", 3, 1)] * 2
    whole = 1e6 * 2.1 * 12 * 2
    assert [event.flops for event in events] == pytest.approx([0.25 * whole, 0.75 * whole])


def test_a_plan_may_say_gradient_descent(bert: Base) -> None:
    """Then a step is w - lr g, and no moments are kept."""
    device, given = device_for(bert, BATCHES), assignment(bert, 2)
    device.begin(replace(given, plan=given.plan.having(Trains())))
    start = {name: value.clone() for name, value in device.update().adapter.items()}
    local_step(device, 0)
    assert device.state().branch("moments") == State()
    trainable, part = Trainable(start, ADAMW.optimizer), bert.device_part(2)
    part.use(trainable.parameters)
    h_BTD = part.forward(model_inputs(BATCHES[0]))
    h_BTD.backward(torch.linspace(-1, 1, h_BTD.numel()).reshape(h_BTD.shape))
    for name, value in device.update().adapter.items():
        gradient = trainable.parameters[name].grad
        assert gradient is not None
        assert torch.equal(value, start[name].add(gradient, alpha=-RATES[0]))
    device.begin(assignment(bert, 2, round=1))
    local_step(device, 0)
    assert steps_in(device) == {1.0}, "the next round's plan says nothing: AdamW"


def test_a_talk_may_change_what_is_loaded(bert: Base) -> None:
    device = device_for(bert, BATCHES)
    device.begin(assignment(bert, 2), lambda adapter: {name: value * 2 for name, value in adapter.items()})
    full = moved_adapter(bert)
    assert all(torch.equal(value, 2 * full[name]) for name, value in device.update().adapter.items())
    assert all(torch.equal(value, 2 * full[name]) for name, value in device.broadcast.items())


def test_an_update_says_what_the_talk_says(bert: Base) -> None:
    device = device_for(bert, BATCHES)
    device.begin(assignment(bert, 2))
    said = device.update({"fact": torch.ones(2)}, adapter={})
    assert (set(said.facts), said.adapter) == ({"fact"}, {})
    assert device.update().facts == {}


def test_before_a_round_it_may_go_back(bert: Base) -> None:
    """The hook that goes back may also say more of the assignment (`commit.py`)."""
    device = device_for(bert, BATCHES)
    device.before_round = lambda given: replace(given, learning_rates=(0.5, 0.5))
    device.begin(assignment(bert, 2))
    assert device.now.learning_rates == (0.5, 0.5)


def test_a_device_that_trains_alone_says_its_loss(bert: Base) -> None:
    device, batches = device_for(bert, BATCHES), BATCHES[:2]
    plan = DevicePlan("device-0", BLOCKS, 3, 2, top=BLOCKS)
    device.begin(Assignment("run", 0, "device-0", plan, RATES, moved_adapter(bert)))
    trainable, losses, called = Trainable(moved_adapter(bert), ADAMW.optimizer), [], []
    for step, batch in enumerate(batches):
        run_virtual(
            device.train(step, before_step=lambda: called.append("before"), after_step=lambda: called.append("after"))
        )
        whole = bert.whole()
        whole.use(trainable.parameters)
        loss = whole.loss(batch)
        loss.backward()
        trainable.step(RATES[step])
        losses.append(float(loss.detach()))
    update, expected = device.update(), trainable.adapter()
    assert all(torch.equal(update.adapter[name], expected[name]) for name in expected)
    assert (update.steps, update.samples, update.weight) == (2, 5, 5)
    assert update.loss == (losses[0] * 2 + losses[1] * 3) / 5
    assert called == ["before", "after"] * 2


def test_a_gradient_may_be_added_to_before_a_step(bert: Base) -> None:
    def trained(before_step: Callable[[Device], None]) -> Adapter:
        device = device_for(bert, BATCHES)
        plan = DevicePlan("device-0", BLOCKS, 3, 1, top=BLOCKS)
        device.begin(Assignment("run", 0, "device-0", plan, RATES[:1], moved_adapter(bert)))
        run_virtual(device.train(0, before_step=lambda: before_step(device)))
        return device.update().adapter

    def forget(device: Device) -> None:
        for parameter in device.trainable.parameters.values():
            parameter.grad = None

    start = moved_adapter(bert)
    assert all(torch.equal(value, start[name]) for name, value in trained(forget).items())
    assert not any(torch.equal(value, start[name]) for name, value in trained(lambda _device: None).items())


def test_each_batch_is_of_the_size_that_the_plan_asks(bert: Base) -> None:
    asked: list[int | None] = []
    device = device_for(bert, BATCHES)
    stream = device._batches.next

    def next_batch(batch_size: int | None = None) -> object:
        asked.append(batch_size)
        return stream(batch_size)

    device._batches.next = next_batch  # type: ignore[method-assign, assignment]
    device.begin(assignment(bert, 1))
    local_step(device, 0)
    assert asked == [3]


def test_in_bf16_activations_are_bf16_and_the_adapter_fp32(tiny_model: ModelMaker) -> None:
    base = open_base(tiny_model("bert", "classification"), "classification", dtype="bf16")
    device = device_for(base, BATCHES)
    device.begin(assignment(base, 2))
    assert local_step(device, 0).h_BTD.dtype is torch.bfloat16
    trained, start = device.update().adapter, moved_adapter(base)
    assert {value.dtype for value in trained.values()} == {torch.float32}
    assert not any(torch.equal(value, start[name]) for name, value in trained.items())


def test_dropout_is_drawn_for_each_step_of_each_device(tiny_model: ModelMaker) -> None:
    base = open_base(tiny_model("bert", "classification"), "classification", base_dropout=True)

    def sent(*, name: str = "device-0", seed: int = 0, round: int = 0, step: int = 0) -> torch.Tensor:
        device = device_for(base, BATCHES, settings=TrainSettings(OptimizerSettings(), seed=seed), name=name)
        device.begin(assignment(base, 2, round=round))
        return sent_by(device, step).h_BTD

    assert torch.equal(sent(), sent())
    for other in (sent(name="device-1"), sent(seed=1), sent(round=1), sent(step=1)):
        assert not torch.equal(sent(), other)


# ------------------------------------------------------------------ from round to round


def steps_in(device: Device) -> set[float]:
    return {float(value) for name, value in device.state().branch("moments").tensors.items() if name.endswith("#step")}


@pytest.mark.parametrize(("keep", "count"), [(True, 4.0), (False, 2.0)])
def test_moments_live_on_or_not(keep: bool, count: float, bert: Base) -> None:
    device = device_for(bert, BATCHES, settings=TrainSettings(OptimizerSettings(), keep_moments=keep))
    for round in range(2):
        device.begin(assignment(bert, 2, round=round))
        for step in range(2):
            local_step(device, step)
    assert steps_in(device) == {count}


def test_a_moved_cut_takes_its_names_along(bert: Base) -> None:
    device = device_for(bert, BATCHES)
    device.begin(assignment(bert, 2))
    local_step(device, 0)
    device.begin(assignment(bert, 1, round=1))
    local_step(device, 0)
    assert steps_in(device) == {2.0}
    assert device.update().adapter.keys() == set(bert.device_names(1))
    device.begin(assignment(bert, 3, round=2))
    local_step(device, 0)
    assert steps_in(device) == {3.0, 1.0}


def test_a_device_goes_on_from_its_state(bert: Base) -> None:
    """Killed between two rounds and started again, it draws the next batches and steps as if nothing had been."""

    def second_round(device: Device) -> tuple[torch.Tensor, Adapter]:
        device.begin(assignment(bert, 2, round=1))
        sent = [local_step(device, step).h_BTD for step in range(2)]
        return torch.cat([h_BTD.flatten() for h_BTD in sent]), device.update().adapter

    one = device_for(bert, BATCHES)
    one.begin(assignment(bert, 2))
    for step in range(2):
        local_step(one, step)
    state = one.state().copied()
    other = device_for(bert, BATCHES)
    other.load(state)
    (sent, trained), (again, retrained) = second_round(one), second_round(other)
    assert torch.equal(sent, again)
    assert all(torch.equal(trained[name], retrained[name]) for name in trained)
