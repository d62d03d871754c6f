"""The U-shape: the unsplit model bit for bit, no label in any frame, late gradients, and who is waited for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from bases import open_base
from cutlayer.errors import ConfigError, DivergedError
from cutlayer.methods.method import Method
from cutlayer.methods.table import build_method
from cutlayer.model.adapter import LoraSettings
from cutlayer.model.base import Base
from cutlayer.model.part import model_inputs
from cutlayer.model.trainable import OptimizerSettings, TrainSettings
from cutlayer.policies.aggregate import mean_per_block
from cutlayer.policies.cut import cut_at, cut_by_memory
from cutlayer.policies.delay import delayed
from cutlayer.policies.labels import labels_on_devices
from cutlayer.policies.order import fifo
from cutlayer.policies.plan import Planner
from cutlayer.policies.select import everyone
from cutlayer.policies.stragglers import stragglers_by_name
from cutlayer.rounds.u_shape import u_shape
from cutlayer.server.owners import one_for_all
from cutlayer.server.steps.halves import HalvedStep, accumulated_in_halves, in_halves
from cutlayer.testing.playground import (
    Played,
    fleet_of,
    learning_rate,
    plain_training,
    play,
    streams_for,
)
from cutlayer.testing.reference import plain_peft_model
from cutlayer.testing.tiny import BLOCKS
from cutlayer.types import Adapter, Batch
from cutlayer.wire.frames import encode
from cutlayer.wire.messages import Activations, Assignment, Gradients, Hidden, HiddenGradients, Message, Update
from watched import guarded_run

ModelMaker = Callable[[str, str], Path]
ROUNDS, STEPS = 2, 3
LATENESS = [
    ("use", "deadline:0.3", 0),
    ("use", "deadline:0.3", 2),
    ("use", "deadline:0.6", 1),
    ("drop", "deadline:0.5", 1),
]
TASKS = {"bert": "classification", "gpt2": "causal-lm", "llama": "causal-lm"}
FRESH = TrainSettings(OptimizerSettings(), keep_moments=False)


@pytest.fixture(scope="module")
def bases(tiny_model: ModelMaker) -> Mapping[str, Base]:
    lora = LoraSettings(targets=("all-linear",))
    return {family: open_base(tiny_model(family, task), task, lora=lora) for family, task in TASKS.items()}


def method_of(*planners: Planner, step: HalvedStep | None = None) -> Method:
    return Method((everyone(), *planners), u_shape(server_step=step or in_halves(fifo())), mean_per_block())


def run(base: Base, method: Method, *, devices: int = 1, speed: float = 1.0, **changes: Any) -> Played:
    fleet = fleet_of(devices)
    if speed != 1:
        quick = fleet.devices[0].model_copy(update={"flops_per_second": speed * fleet.devices[0].flops_per_second})
        fleet = fleet.model_copy(update={"devices": (quick, *fleet.devices[1:])})
    streams = streams_for(fleet, base.settings.task, steps=ROUNDS * STEPS + 3)
    return play(base, method, fleet, streams, **{"rounds": ROUNDS, "local_steps": STEPS, **changes})


def assert_same(one: Adapter, other: Adapter) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


# ------------------------------------------------------------------ the unsplit model


def late_training(base: Base, batches: list[Batch], delay: int) -> Adapter:
    """Plain PEFT training of the unsplit model, each gradient taken where the model was `delay` steps before."""
    model, inside = plain_peft_model(base)
    start = base.initial_adapter(0)
    optimizer = torch.optim.AdamW(inside.values(), lr=0.0, weight_decay=0.0, fused=True)
    now = {name: value.clone() for name, value in start.items()}
    for round in range(ROUNDS):
        points = [now]
        for step in range(STEPS):
            batch = batches[round * STEPS + step]
            put(inside, points[max(0, step - delay)])
            optimizer.zero_grad(set_to_none=True)
            model(**model_inputs(batch), labels=batch.labels).loss.backward()
            put(inside, points[-1])
            optimizer.param_groups[0]["lr"] = learning_rate(round, step)
            optimizer.step()
            points.append({name: parameter.detach().clone() for name, parameter in inside.items()})
        now = points[-1]
    return now


def put(inside: Mapping[str, torch.Tensor], values: Adapter) -> None:
    with torch.no_grad():
        for name, value in values.items():
            inside[name].copy_(value)


@pytest.mark.parametrize(("family", "tail"), [("bert", 0), ("bert", 1), ("gpt2", 0), ("llama", 1)])
def test_without_a_delay_it_is_the_unsplit_model(family: str, tail: int, bases: Mapping[str, Base]) -> None:
    """At every cut, to the bit; where the cut reaches the tail the device has it all, and nothing crosses."""
    base = bases[family]
    for cut in range(BLOCKS + 1):
        played = run(base, method_of(labels_on_devices(tail=tail), cut_at(cut)))
        given = played.streams["device-0"].given
        rates = [learning_rate(round, step) for round in range(ROUNDS) for step in range(STEPS)]
        plain, _ = plain_training(base, base.initial_adapter(0), given, rates)
        assert_same(played.adapter, plain)
        crossing = [message for message in played.sent_down if isinstance(message, Hidden)]
        assert len(crossing) == (0 if cut >= BLOCKS - tail else ROUNDS * STEPS)


@pytest.mark.parametrize(("family", "delay", "tail"), [("bert", 1, 0), ("llama", 2, 1), ("gpt2", STEPS, 0)])
def test_with_a_delay_it_is_the_unsplit_model_trained_late(
    family: str, delay: int, tail: int, bases: Mapping[str, Base]
) -> None:
    base = bases[family]
    played = run(base, method_of(labels_on_devices(tail=tail), cut_at(1), delayed(delay)))
    assert_same(played.adapter, late_training(base, played.streams["device-0"].given, delay))
    prompt = run(base, method_of(labels_on_devices(tail=tail), cut_at(1)))
    assert any(not torch.equal(played.adapter[name], prompt.adapter[name]) for name in prompt.adapter)


@pytest.mark.parametrize("delay", [0, 2])
def test_what_is_learnt_depends_on_nobodys_speed(delay: int, bases: Mapping[str, Base]) -> None:
    def adapter(speed: float) -> Adapter:
        method = method_of(labels_on_devices(), cut_by_memory(), delayed(delay))
        return run(bases["bert"], method, devices=2, speed=speed, rounds=1).adapter

    assert_same(adapter(0.05), adapter(1.0))
    assert_same(adapter(40.0), adapter(1.0))


# ------------------------------------------------------------------ the same method with labels on the server


@pytest.mark.parametrize(
    ("name", "options", "family"),
    [
        ("memsfl", {"order": "optimal"}, "bert"),
        ("memsfl", {}, "llama"),
        ("sfl_v1", {"cut": "memory"}, "bert"),
        ("reindsplit", {"cut": 2}, "bert"),
    ],
)
def test_labels_at_home_change_nothing_where_each_device_has_its_adapter(
    name: str, options: dict[str, Any], family: str, bases: Mapping[str, Base]
) -> None:
    """With unequal cuts, some of which leave the server nothing."""
    home, away = (
        run(bases[family], build_method(name, {**options, "labels": labels}, 0), devices=4)
        for labels in ("device", "server")
    )
    assert_same(home.adapter, away.adapter)
    for one, other in zip(home.logbook.history.records, away.logbook.history.records, strict=True):
        assert (one.device, one.steps, one.samples, one.weight) == (
            other.device,
            other.steps,
            other.samples,
            other.weight,
        )
        assert one.loss == pytest.approx(other.loss, rel=1e-6)
    assert len(set(home.logbook.cuts.values())) > (name != "reindsplit")


@pytest.mark.parametrize("name", ["sl", "vanilla"])
def test_the_relay_with_moments_that_begin_anew(name: str, bases: Mapping[str, Base]) -> None:
    """Else the head's moments go on where they were on the server, and begin on each device."""
    home, away = (
        run(bases["bert"], build_method(name, {"cut": 2, "labels": labels}, 0), devices=3, settings=FRESH)
        for labels in ("device", "server")
    )
    assert_same(home.adapter, away.adapter)


def test_a_shared_adapter_waits_for_the_device_whose_turn_it_is(bases: Mapping[str, Base]) -> None:
    """As with labels on the server: one whole step after the other."""
    played = run(bases["bert"], build_method("splitlora", {"labels": "device"}, 0), devices=3)
    served = [(event.what, event.peer, event.step) for event in played.events if event.who == "server"]
    assert [what for what, *_ in served] == ["forward", "step"] * (3 * ROUNDS * STEPS)
    assert all(one[1:] == other[1:] for one, other in zip(served[::2], served[1::2], strict=True))


def test_the_server_serves_others_between_the_halves(bases: Mapping[str, Base]) -> None:
    played = run(bases["bert"], build_method("memsfl", {"labels": "device", "cut": 1}, 0), devices=3)
    served = [(event.what, event.peer) for event in played.events if event.who == "server"]
    assert any(one[0] == "forward" and one[1] != other[1] for one, other in pairwise(served))


def test_an_adapter_that_moves_once_a_round(bases: Mapping[str, Base]) -> None:
    """hsfl: one step of the server's blocks, by the gradients of all; the head is averaged, as it is on devices."""
    played = run(bases["bert"], build_method("hsfl", {"labels": "device", "cut": 1}, 0), devices=3)
    moved = [event for event in played.events if event.who == "server" and event.what == "step" and event.peer is None]
    assert len(moved) == ROUNDS
    head = [name for name in played.adapter if bases["bert"].block_of(name) is None]
    parts = [part for part in played.contributions[-1] if part.device]
    for name in head:
        total = sum(part.weights[name] for part in parts)
        mean = sum(part.adapter[name].double() * (part.weights[name] / total) for part in parts)
        torch.testing.assert_close(played.adapter[name], mean.float())  # type: ignore[union-attr]


def test_an_adapter_that_moves_once_a_round_weighs_devices_as_where_labels_are_sent(bases: Mapping[str, Base]) -> None:
    """Devices of unequal batches: the server's blocks take the step that they take where the server has the head."""
    base, fleet = bases["llama"], fleet_of(3)
    ends = []
    for where in ("server", "device"):
        streams = streams_for(fleet, "causal-lm", steps=STEPS, samples=lambda index: 2 + 2 * index)
        method = build_method("hsfl", {"labels": where, "cut": 1}, 0)
        ends.append(play(base, method, fleet, streams, rounds=1, local_steps=1).adapter)
    for name in ends[0]:
        if (block := base.block_of(name)) is not None and block >= 1 and ".lora_B." in name:  # A has no slope yet
            assert not torch.equal(ends[0][name], base.initial_adapter(0)[name])
            torch.testing.assert_close(ends[0][name], ends[1][name], rtol=1e-4, atol=1e-6)


def test_devices_may_not_be_ahead_of_a_shared_adapter(bases: Mapping[str, Base]) -> None:
    method = method_of(labels_on_devices(), cut_at(1), delayed(1), step=in_halves(fifo(), owner=one_for_all))
    with pytest.raises(ExceptionGroup) as group:
        run(bases["bert"], method, devices=2)
    assert group.group_contains(ConfigError, match=r"method\.delay: expected 0 where devices share")
    run(bases["bert"], method_of(labels_on_devices(), cut_at(1), delayed(1), step=accumulated_in_halves()), devices=2)


# ------------------------------------------------------------------ labels stay


def secrets(batches: list[Batch]) -> Iterator[tuple[str, bytes]]:
    """Labels and token ids as they would lie in a frame, in whatever type; of each text, and of each batch."""
    types = ("u1", "<i2", "<i4", "<i8", "<f2", "<f4", "<f8")
    for batch in batches:
        rows = [("labels", batch.labels.flatten())]
        rows += [("a text", ids_T) for ids_T in batch.input_ids_BT]
        rows += [("labels of a text", labels_T) for labels_T in batch.labels if labels_T.dim()]
        for what, row in rows:
            if len(row.unique()) > (2 if row is batch.labels or what == "labels" else 5):  # others come by chance
                yield from ((f"{what} as {kind}", row.numpy().astype(kind).tobytes()) for kind in types)


def found_in(messages: list[Message], batches: list[Batch]) -> set[str]:
    frames = [encode(message) for message in messages]
    return {what for what, secret in secrets(batches) if any(secret in frame for frame in frames)}


@pytest.mark.parametrize(
    ("name", "family"),
    [("memsfl", "bert"), ("memsfl", "llama"), ("sl", "bert"), ("hsfl", "bert"), ("splitlora", "llama")],
)
def test_no_frame_holds_a_label_or_a_token(name: str, family: str, bases: Mapping[str, Base]) -> None:
    """Nor could it be missed: the same search finds them where they go up."""
    for labels in ("device", "server"):
        fleet = fleet_of(3)
        task = bases[family].settings.task
        streams = streams_for(fleet, task, steps=4, samples=lambda index: 8 + index)
        method = build_method(name, {"labels": labels, "cut": 1}, 0)
        played = play(bases[family], method, fleet, streams, rounds=2, local_steps=2)
        batches = [batch for stream in streams.values() for batch in stream.given]
        assert len(list(secrets(batches))) > 100
        found = found_in([*played.sent_up, *played.sent_down], batches)
        assert bool(found) == (labels == "server"), found
        said = {type(message) for message in (*played.sent_up, *played.sent_down)}
        assert {Hidden, HiddenGradients} <= said or labels == "server"
        batches_up = [message for message in played.sent_up if isinstance(message, Activations)]
        assert {message.labels is None for message in batches_up} == {labels == "device"}


def test_every_integer_that_goes_up_is_a_count(bases: Mapping[str, Base]) -> None:
    """No tensor but the mask is of whole numbers, whatever the tensors hold."""
    played = run(bases["llama"], build_method("memsfl", {"labels": "device", "cut": 1}, 0), devices=2)
    for message in played.sent_up:
        tensors = [
            value for name in type(message).__dataclass_fields__ if torch.is_tensor(value := getattr(message, name))
        ]
        assert all(tensor.is_floating_point() or tensor.dtype is torch.bool for tensor in tensors)


# ------------------------------------------------------------------ crossings, time, trouble


def test_two_more_crossings(bases: Mapping[str, Base]) -> None:
    home, away = (
        run(bases["bert"], build_method("memsfl", {"labels": labels, "cut": 1}, 0)) for labels in ("device", "server")
    )
    for messages, kind, more in ((home.sent_up, Activations, HiddenGradients), (home.sent_down, Gradients, Hidden)):
        one, other = ([m for m in messages if isinstance(m, wanted)] for wanted in (kind, more))
        assert len(one) == len(other) == ROUNDS * STEPS
    up = sum(row["bytes_up"] for row in home.rows) / sum(row["bytes_up"] for row in away.rows)
    assert 1.1 < up < 2.1
    assert home.rows[-1]["virtual_seconds"] > away.rows[-1]["virtual_seconds"]


def test_a_delay_saves_waiting(bases: Mapping[str, Base]) -> None:
    def seconds(delay: int) -> float:
        return float(
            run(bases["bert"], method_of(labels_on_devices(), cut_at(1), delayed(delay))).rows[-1]["virtual_seconds"]
        )

    assert seconds(1) < 0.9 * seconds(0)
    assert seconds(2) <= seconds(1)


@pytest.mark.parametrize(("late", "policy", "delay"), LATENESS)
def test_what_counts_of_who_is_late(late: Any, policy: str, delay: int, bases: Mapping[str, Base]) -> None:
    """The steps that were answered, on both sides; every batch that does not count is drawn again."""
    method = method_of(labels_on_devices(), cut_at(1), delayed(delay))
    played = run(bases["bert"], method, devices=3, stragglers=stragglers_by_name(policy, late))
    for device, stream in played.streams.items():
        records = played.logbook.history.of(device)
        samples = [batch.num_samples for batch in stream.all]
        counted = sum(record.steps for record in records)
        assert sum(record.samples for record in records) == sum(samples[:counted])
    updates = [message for message in played.sent_up if isinstance(message, Update)]
    assert all(update.steps == 0 for update in updates)


def test_every_message_passes_a_guard(bases: Mapping[str, Base]) -> None:
    for delay in (0, 2):
        method = method_of(labels_on_devices(), cut_by_memory(), delayed(delay))
        played, seen = guarded_run(bases["llama"], method, rounds=2)
        assert {type(message) for *_, message in seen} == {Activations, HiddenGradients, Update}
        assert [message.plan.top for message in played.sent_down if isinstance(message, Assignment)] == [BLOCKS] * 6


def test_training_that_diverges_says_so(bases: Mapping[str, Base], monkeypatch: pytest.MonkeyPatch) -> None:
    """By the hidden states that the device would be sent, in the step in which it happens."""
    base, fleet = bases["bert"], fleet_of(1)
    streams = streams_for(fleet, "classification", steps=4)
    method = build_method("memsfl", {"labels": "device", "cut": 1}, 0)
    broken = {name: value * torch.nan for name, value in base.initial_adapter(0).items()}
    monkeypatch.setattr(base, "initial_adapter", lambda *_: broken)
    with pytest.raises(ExceptionGroup) as group:
        play(base, method, fleet, streams, rounds=1, local_steps=2)
    assert group.group_contains(
        DivergedError, match="device device-0, round 0, step 0: expected finite hidden states, got others"
    )


def test_micro_batches_are_refused(bases: Mapping[str, Base]) -> None:
    with pytest.raises(ConfigError, match=r"train\.micro_batches: expected 1 .* where labels stay on devices"):
        run(bases["bert"], build_method("memsfl", {"labels": "device"}, 0), micro_batches=2)


def test_who_waits_for_whom() -> None:
    steps = {"one": in_halves(fifo()), "all": in_halves(fifo(), owner=one_for_all), "once": accumulated_in_halves()}
    rounds = {name: u_shape(server_step=step) for name, step in steps.items()}
    told = {name: (round.together, round.divisible) for name, round in rounds.items()}
    assert told == {"one": (False, True), "all": (True, False), "once": (False, False)}
