"""MergeSFL: its training loop against the official one, written down here with nothing of ours; what it refuses.

Shapes: B batch, T tokens, D hidden size at the cut.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from bases import open_base
from cutlayer.errors import BudgetError, ConfigError
from cutlayer.methods.table import build_method
from cutlayer.model.base import Base
from cutlayer.model.part import model_inputs
from cutlayer.model.trainable import OptimizerSettings, TrainSettings
from cutlayer.policies.plan import Situation
from cutlayer.testing.playground import FlatCosts, ListedBatches, Played, fleet_of, learning_rate, play, streams_for
from cutlayer.testing.reference import plain_peft_model
from cutlayer.testing.tiny import random_batch
from cutlayer.types import Adapter, Batch, Cost, DevicePlan, History, StepRecord
from cutlayer.wire.messages import Activations, Gradients
from turns import by_turns

ModelMaker = Callable[[str, str], Path]
ROUNDS, STEPS = 3, 2
BLOCKS = {"bert": "bert.encoder.layer", "llama": "model.layers"}


def base_of(tiny_model: ModelMaker, family: str) -> Base:
    task = "classification" if family == "bert" else "causal-lm"
    return open_base(tiny_model(family, task), task)


def unequal_batches(task: str, device: int) -> list[Batch]:
    """Neither samples nor lengths are alike, from device to device and from step to step."""
    return [
        random_batch(
            task, seed=100 * device + step, samples=2 + (device + step) % 3, tokens=8 + (3 * device + step) % 5
        )
        for step in range(ROUNDS * STEPS)
    ]


# ------------------------------------------------------------------ the test of record


class Plain:
    """A plain PEFT model of which one side of the cut is used: transformers, peft, torch's AdamW, nothing of ours."""

    def __init__(self, base: Base, start: Adapter, cut: int, *, top: bool) -> None:
        self.model, inside = plain_peft_model(base)
        with torch.no_grad():
            for name, value in start.items():
                inside[name].copy_(value)
        blocks = self.model.get_base_model().get_submodule(BLOCKS[base.family.name])
        blocks[cut].register_forward_pre_hook(self._at_the_cut, with_kwargs=True)
        above = {name: is_above(name, cut) for name in inside}
        self.inside = {name: parameter for name, parameter in inside.items() if above[name] == top}
        self.begin()
        self._put_in_BTD: Tensor | None = None
        self._seen_BTD: Tensor | None = None

    def begin(self) -> None:
        """A new optimizer."""
        self.optimizer = torch.optim.AdamW(self.inside.values(), lr=0.0, weight_decay=0.0, fused=True)

    def _at_the_cut(self, _block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The hidden states that come in at the first block above the cut: looked at, or exchanged."""
        inputs = list(args)
        hidden_BTD = inputs[0] if inputs else kwargs["hidden_states"]
        if self._put_in_BTD is None:
            self._seen_BTD = hidden_BTD
            return None
        if inputs:
            return (self._put_in_BTD, *inputs[1:]), kwargs
        return (), {**kwargs, "hidden_states": self._put_in_BTD}

    def bottom(self, batch: Batch) -> Tensor:
        """Activations at the cut, with their graph."""
        self.model(input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT)
        assert self._seen_BTD is not None
        return self._seen_BTD

    def loss(self, v_BTD: Tensor, mask_BT: Tensor, labels: Tensor, ids_BT: Tensor) -> Tensor:
        """The loss of the whole model with these activations put in at the cut."""
        self._put_in_BTD = v_BTD
        loss: Tensor = self.model(input_ids=ids_BT, attention_mask=mask_BT, labels=labels).loss
        return loss

    def step(self, rate: float) -> None:
        self.optimizer.param_groups[0]["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def is_above(name: str, cut: int) -> bool:
    """Whether a trainable tensor belongs to a block above the cut, or to the head."""
    numbers = [int(part) for part in name.split(".") if part.isdecimal()]
    return not numbers or numbers[0] >= cut


def official(
    base: Base, batches: Sequence[Sequence[Batch]], cut: int, *, keep_moments: bool, weighted: bool
) -> Adapter:
    """The authors' rounds (server.py, client.py), with LoRA and AdamW in the place of all weights and SGD.

    v_i = bottom_i(x); V = concat v_i; one mean loss; one backward; one step of the one top model; worker i gets its
    rows of dL/dV times D / d_i, d_i being what the mean counts: samples, or target tokens.
    """
    start = base.initial_adapter(0)
    workers = [Plain(base, start, cut, top=False) for _ in batches]
    server = Plain(base, start, cut, top=True)
    for round in range(ROUNDS):
        for step in range(STEPS):
            rate, turn = learning_rate(round, step), [stream[round * STEPS + step] for stream in batches]
            v = [worker.bottom(batch) for worker, batch in zip(workers, turn, strict=True)]
            longest = max(part.shape[1] for part in v)
            rights = [longest - part.shape[1] for part in v]
            whole_BTD = torch.cat([pad(part.detach(), (0, 0, 0, right)) for part, right in zip(v, rights, strict=True)])
            whole_BTD.requires_grad_()

            def joined(tensors: list[Tensor], fill: int, rights: list[int] = rights) -> Tensor:
                return torch.cat([pad(t, (0, right), value=fill) for t, right in zip(tensors, rights, strict=True)])

            labels = [batch.labels for batch in turn]
            loss = server.loss(
                whole_BTD,
                joined([batch.attention_mask_BT for batch in turn], 0),
                torch.cat(labels) if labels[0].dim() == 1 else joined(labels, -100),
                joined([batch.input_ids_BT for batch in turn], 0),
            )
            loss.backward()
            server.step(rate)
            assert whole_BTD.grad is not None
            d = [len(y) if y.dim() == 1 else int((y[:, 1:] != -100).sum()) for y in labels]
            first = 0
            for worker, part_BTD, d_i in zip(workers, v, d, strict=True):
                rows_BTD = whole_BTD.grad[first : first + len(part_BTD), : part_BTD.shape[1]]
                first += len(part_BTD)
                part_BTD.backward(rows_BTD * (sum(d) / d_i))
                worker.step(rate)
        n = [sum(batch.weight for batch in stream[round * STEPS : (round + 1) * STEPS]) for stream in batches]
        with torch.no_grad():
            for name in workers[0].inside:
                shares = [n_i / sum(n) if weighted else 1 / len(n) for n_i in n]
                values = [worker.inside[name].double() * share for worker, share in zip(workers, shares, strict=True)]
                mean = sum(values[1:], start=values[0]).float()
                for worker in workers:
                    worker.inside[name].copy_(mean)
        if not keep_moments:
            for side in (*workers, server):
                side.begin()
    return {name: value.detach() for side in (workers[0], server) for name, value in side.inside.items()}


def ours(base: Base, batches: Sequence[Sequence[Batch]], cut: int, *, keep_moments: bool, weighted: bool) -> Adapter:
    fleet = fleet_of(len(batches))
    streams = {device.name: ListedBatches(some) for device, some in zip(fleet.devices, batches, strict=True)}
    settings = TrainSettings(OptimizerSettings(), keep_moments=keep_moments)
    method = build_method("mergesfl", {"cut": cut, "weighted": weighted}, seed=0)
    return play(base, method, fleet, streams, rounds=ROUNDS, local_steps=STEPS, settings=settings).adapter


LOOPS = by_turns(product(("bert", "llama"), (1, 2), (True, False), (True, False)), one_of=3)


@pytest.mark.parametrize(("family", "cut", "weighted", "keep_moments"), list(LOOPS))
def test_it_is_the_official_training_loop(
    family: str, cut: int, weighted: bool, keep_moments: bool, tiny_model: ModelMaker
) -> None:
    """Bit for bit: three workers, three rounds, batches of unequal size and length."""
    base = base_of(tiny_model, family)
    batches = [unequal_batches(base.settings.task, device) for device in range(3)]
    how = {"keep_moments": keep_moments, "weighted": weighted}
    trained, expected = ours(base, batches, cut, **how), official(base, batches, cut, **how)
    assert trained.keys() == expected.keys() == base.shapes.keys()
    assert [name for name in trained if not torch.equal(trained[name], expected[name])] == []
    start = base.initial_adapter(0)
    assert all(not torch.equal(trained[name], start[name]) for name in start)
    others = [{"keep_moments": not keep_moments, "weighted": weighted}, {**how, "weighted": not weighted}]
    for other in others:
        changed = ours(base, batches, cut, **other)
        assert any(not torch.equal(changed[name], trained[name]) for name in trained), other


# ------------------------------------------------------------------ invariants


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_the_mean_of_the_devices_gradients_is_that_of_the_centralised_batch(
    family: str, tiny_model: ModelMaker
) -> None:
    """Weighted by what each mean counts; with equal batches it is the plain mean."""
    base = base_of(tiny_model, family)
    fleet, cut = fleet_of(3), 2
    for samples in (lambda index: 3, lambda index: 2 + index):
        streams = streams_for(fleet, base.settings.task, steps=1, samples=samples)
        method = build_method("mergesfl", {"cut": cut}, seed=0)
        played = play(base, method, fleet, streams, rounds=1, local_steps=1)
        answers = {message.device: message for message in played.sent_down if isinstance(message, Gradients)}
        start = base.initial_adapter(0)
        total = sum(stream.given[0].weight for stream in streams.values())
        below = base.device_names(cut)
        mean = {name: torch.zeros_like(start[name]) for name in below}
        for name, stream in streams.items():
            batch, parameters = stream.given[0], {key: nn.Parameter(start[key].clone()) for key in below}
            part = base.device_part(cut)
            part.use(parameters)
            part.forward(model_inputs(batch)).backward(answers[name].grad_BTD)
            for key, parameter in parameters.items():
                assert parameter.grad is not None
                mean[key] += parameter.grad * (batch.weight / total)
        whole, inside = plain_peft_model(base)
        with torch.no_grad():
            for key, value in start.items():
                inside[key].copy_(value)
        batches = [stream.given[0] for stream in streams.values()]
        losses = [whole(**model_inputs(batch), labels=batch.labels).loss * (batch.weight / total) for batch in batches]
        sum(losses[1:], start=losses[0]).backward()
        for key in below:
            torch.testing.assert_close(mean[key], inside[key].grad, rtol=1e-4, atol=1e-6)
        assert any(mean[key].abs().max() > 1e-4 for key in below)


def test_the_order_of_the_cohort_does_not_matter(tiny_model: ModelMaker) -> None:
    base, fleet = base_of(tiny_model, "bert"), fleet_of(4)

    def adapter(devices: Sequence[Any]) -> Adapter:
        streams = streams_for(fleet, "classification", steps=4)
        turned = fleet.model_copy(update={"devices": tuple(devices)})
        return play(base, build_method("mergesfl", {}, seed=0), turned, streams).adapter

    one, other = adapter(fleet.devices), adapter(fleet.devices[::-1])
    assert all(torch.equal(one[name], other[name]) for name in one)


# ------------------------------------------------------------------ the barrier, and what is measured


def run(base: Base, num_devices: int = 3, steps: int = 2, **options: Any) -> Played:
    fleet = fleet_of(num_devices)
    streams = streams_for(fleet, base.settings.task, steps=2 * steps)
    return play(base, build_method("mergesfl", options, seed=0), fleet, streams, rounds=2, local_steps=steps)


def test_the_server_takes_one_step_for_everybody(tiny_model: ModelMaker) -> None:
    played = run(base_of(tiny_model, "bert"))
    steps = [event for event in played.events if event.what == "step"]
    assert [(event.round, event.step, event.peer) for event in steps] == [(r, s, None) for r in (0, 1) for s in (0, 1)]
    for step in steps:
        uploads = [
            event
            for event in played.events
            if (event.what, event.round, event.step) == ("upload", step.round, step.step)
        ]
        assert len(uploads) == 3
        assert max(event.end_seconds for event in uploads) <= step.start_seconds


def test_every_device_has_the_merged_loss_by_its_weight(tiny_model: ModelMaker) -> None:
    played = run(base_of(tiny_model, "llama"))
    answers = [message for message in played.sent_down if isinstance(message, Gradients)]
    assert len({answer.loss for answer in answers if (answer.round, answer.step) == (0, 0)}) == 1
    sent = {(m.device, m.round, m.step): m.weight for m in played.sent_up if isinstance(m, Activations)}
    for record in played.logbook.history.records:
        mine = [answer for answer in answers if (answer.device, answer.round) == (record.device, record.round)]
        weights = [sent[answer.device, answer.round, answer.step] for answer in mine]
        assert record.weight == sum(weights)
        mean = sum(answer.loss * weight for answer, weight in zip(mine, weights, strict=True)) / sum(weights)
        assert record.loss == pytest.approx(mean)


def test_the_second_round_has_batches_by_measured_speed(tiny_model: ModelMaker) -> None:
    played = run(base_of(tiny_model, "bert"), d_max=12)
    sizes = [{r.device: r.batch_size for r in played.logbook.history.records if r.round == n} for n in (0, 1)]
    assert set(sizes[0].values()) == {4}, "nothing is measured yet: the run's batch size"
    for record in played.logbook.history.records:
        crossing = [
            event.end_seconds - event.start_seconds
            for event in played.events
            if event.who == record.device and event.round == record.round and event.step is not None
            if event.what in ("upload", "download")
        ]
        assert len(crossing) == 2 * 2
        assert record.step_network_seconds == pytest.approx(sum(crossing)), "of steps, not of adapters"
        assert record.step_network_seconds < record.network_seconds
    seconds = {
        r.device: (r.busy_seconds + r.step_network_seconds) / r.samples
        for r in played.logbook.history.records
        if r.round == 0
    }
    fastest = min(seconds.values())
    assert sizes[1] == {name: int(12 * (fastest / own)) for name, own in seconds.items()}
    assert max(sizes[1].values()) == 12
    assert len(set(sizes[1].values())) > 1


# ------------------------------------------------------------------ what it refuses


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch": "quick"}, "method.batch: expected speed or fixed, got 'quick'"),
        ({"select": "best"}, "method.select: expected kl or random, got 'best'"),
        ({"select": "random", "ingress_mbit": 8.0}, "method.ingress_mbit: expected null with select random, got 8.0"),
        ({"ingress_mbit": 0.0}, "method.ingress_mbit: expected above 0, or null, got 0.0"),
        ({"d_max": 0}, "method.d_max: expected at least 1, or null, got 0"),
        ({"max_kl": -1.0}, "method.max_kl: expected at least 0, or null, got -1.0"),
        ({"fraction": 0.0}, "method.fraction: expected above 0"),
        ({"cut": None}, "method.cut: expected int for mergesfl, got None"),
        ({"owner": "device"}, "method.owner: expected an option of mergesfl (cut, batch, d_max, select"),
    ],
    ids=str,
)
def test_options_that_make_no_sense(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        build_method("mergesfl", options, seed=0)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def situation_of(num_devices: int, costs: Any = FlatCosts(3)) -> Situation:  # noqa: B008  it is frozen
    return Situation(fleet_of(num_devices), costs, History(), num_tokens=10, batch_size=4, local_steps=2)


@pytest.mark.parametrize("options", [{"fraction": 0.5}, {"ingress_mbit": 1.0}, {"max_kl": 0.1}], ids=str)
def test_labels_that_a_language_model_has_not(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="expected the class counts of every device, got none of device-0"):
        build_method("mergesfl", options, seed=0).make_plan(0, situation_of(4))


class HeavyCosts(FlatCosts):
    """64 MiB a sample, of the 1 GiB that a device has."""

    def device(self, plan: DevicePlan, num_samples: int, num_tokens: int) -> Cost:  # noqa: ARG002
        return Cost(1.0, 1.0, num_samples * 2**26)


def test_a_batch_size_that_a_device_cannot_hold() -> None:
    with pytest.raises(BudgetError, match="Batch size 16 would fit"):
        build_method("mergesfl", {"batch": "fixed", "d_max": 32}, seed=0).make_plan(0, situation_of(2, HeavyCosts(3)))


def test_speed_gives_nobody_more_than_it_holds() -> None:
    situation = situation_of(2, HeavyCosts(3))
    quick, slow = (StepRecord(0, f"device-{i}", 1, 4, 4, 1.0, s, 0, 0, 0, 0) for i, s in enumerate((1.0, 4.0)))
    situation.history.records.extend((quick, slow))
    plan = build_method("mergesfl", {"d_max": 32}, seed=0).make_plan(1, situation)
    assert [device.batch_size for device in plan.devices] == [16, 8]


def test_a_cohort_uses_all_that_the_server_takes_in() -> None:
    """One device of those whose batch the server takes in; then its batch grows to all that the server takes in."""
    situation = replace(situation_of(6), label_counts={f"device-{i}": (10, 10) for i in range(6)})
    for index in range(6):
        situation.history.records.append(StepRecord(0, f"device-{index}", 1, 4, 4, 1.0, 1.0 + index, 0, 0, 0, 0))
    mbit = 24 * situation.costs.activation_bytes(1, situation.num_tokens) * 8 / 1e6
    options = {"fraction": 0.17, "ingress_mbit": mbit, "d_max": 32}
    [alone] = build_method("mergesfl", options, seed=0).make_plan(1, situation).devices
    assert alone.device != "device-0", "32 samples are too many"
    assert alone.batch_size == 24
