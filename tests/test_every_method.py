"""The laws, on every row of the method table (design, section 6). Equalities are bit for bit on the CPU."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import pytest
import torch
from _pytest.mark import ParameterSet

import cutlayer.run.run as whole_run
from cutlayer.config import read_config
from cutlayer.errors import ConfigError
from cutlayer.fleet.profile import Fleet
from cutlayer.methods.method import Method
from cutlayer.methods.table import TABLE, build_method
from cutlayer.model.adapter import LoraSettings
from cutlayer.model.base import Base
from cutlayer.model.settings import ModelSettings
from cutlayer.model.trainable import OptimizerSettings, TrainSettings
from cutlayer.policies.aggregate import mean_per_block
from cutlayer.policies.order import ORDERS
from cutlayer.report.progress import NoProgress
from cutlayer.run.inputs import prepare
from cutlayer.run.simulated import simulate
from cutlayer.server.evaluate import evaluate
from cutlayer.testing.laws import LAWS, Subject, judge
from cutlayer.testing.playground import (
    ListedBatches,
    Played,
    fleet_of,
    learning_rate,
    plain_training,
    play,
    streams_for,
)
from cutlayer.testing.tiny import BLOCKS, LABELS, save_inputs
from cutlayer.types import Adapter, Batch, DevicePlan, Kept, RoundPlan
from cutlayer.wire.messages import Gradients
from real import values_for
from turns import CASES, by_turns

METHODS = sorted(TABLE)
CUT = [name for name in METHODS if "cut" in TABLE[name].options]
"""Those that cut the model; the others leave all of it on every device."""
SPLIT = {
    *("epsl", "fedsl", "gan_hfsl", "hsfl", "memsfl", "mergesfl", "reindsplit", "sfl_v1", "sfl_v2", "sfpl", "sl"),
    *("splitlora", "vanilla"),
}
ALONE = {
    *("adel", "centralized", "fedlora", "fedspine", "hetlora", "hfl_prune", "legend", "local_only", "petals", "salf"),
    "teasq_fed",
}
HELD = {
    "one_device_is_plain_training": SPLIT | ALONE,
    "one_device_trains_the_products_of_plain_training": {"flexlora", "flora", "hsplitlora"},
    "the_order_of_the_fleet_does_not_matter": {
        "fedlora",
        "fedsl",
        "fedspine",
        "flexlora",
        "flora",
        "gan_hfsl",
        "hetlora",
        "memsfl",
        "petals",
        "sfl_v1",
        "teasq_fed",
    },
    "frozen_weights_never_change": SPLIT | ALONE | {"flexlora", "ho_sfl", "prge", "splitfrozen"},
}
"""Methods to which a law must apply. A law finds out for itself whether it does, and must not stop to unnoticed."""
ROUNDS, STEPS = 2, 2
ModelMaker = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def bert(tiny_model: ModelMaker) -> Base:
    return open_base(tiny_model, "bert", "classification")


@pytest.fixture(scope="module")
def llama(tiny_model: ModelMaker) -> Base:
    return open_base(tiny_model, "llama", "causal-lm")


def open_base(tiny_model: ModelMaker, family: str, task: str) -> Base:
    """LoRA on every linear layer: some methods need it, the others do not mind."""
    labels, lora = LABELS if task == "classification" else 0, LoraSettings(targets=("all-linear",))
    return Base(ModelSettings(str(tiny_model(family, task)), task, num_labels=labels, lora=lora))  # type: ignore[arg-type]


def rates() -> list[float]:
    return [learning_rate(round, step) for round in range(ROUNDS) for step in range(STEPS)]


def assert_same(one: Adapter, other: Adapter) -> None:
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different


def assert_trained(base: Base, adapter: Adapter) -> None:
    start = base.initial_adapter(0)
    untouched = [name for name in start if torch.equal(start[name], adapter[name])]
    assert not untouched, "a law about training that trains nothing proves nothing"


@pytest.fixture(scope="module")
def subjects() -> dict[str, Subject]:
    """Each method of the table; several laws look at one run of it."""
    return {name: Subject(TABLE[name]) for name in METHODS}


def every_law_on_every_row() -> Iterator[ParameterSet]:
    """`test_resume.py` stops runs of every method in more places: here that law is slow on most rows."""
    stopped = [(method, "stop_and_resume_is_never_stopped") for method in METHODS]
    yield from by_turns(
        stopped, one_of=len(METHODS), always=[row for row in stopped if row[0] in ("memsfl", "vanilla")]
    )
    yield from by_turns((row for row in product(METHODS, LAWS) if row not in stopped), one_of=2)


@pytest.mark.parametrize(("method", "law"), list(every_law_on_every_row()))
def test_every_law_on_every_row(method: str, law: str, subjects: dict[str, Subject]) -> None:
    [verdict] = judge(subjects[method], {law: LAWS[law]})
    assert verdict.word != "broken", verdict.why
    assert verdict.word == "holds" or method not in HELD.get(law, ()), verdict.why
    if law == "only_the_chosen_take_part":
        assert (verdict.word == "holds") == ("fraction" in TABLE[method].options)


# Law 1: one device, nothing compressed = ordinary PEFT training of the same batches.


@pytest.mark.parametrize("method", ["memsfl", "fedlora"])
@pytest.mark.parametrize(("family", "task"), list(by_turns(CASES, one_of=2)))
def test_one_device_is_plain_training_in_every_family(
    family: str, task: str, method: str, tiny_model: ModelMaker
) -> None:
    base = open_base(tiny_model, family, task)
    fleet = fleet_of(1)
    streams = streams_for(fleet, task, steps=ROUNDS * STEPS)
    options = {"cut": 2} if method in CUT else {}
    played = play(base, build_method(method, options, seed=0), fleet, streams, rounds=ROUNDS, local_steps=STEPS)
    plain, _ = plain_training(base, base.initial_adapter(0), streams["device-0"].given, rates())
    assert_same(played.adapter, plain)
    assert_trained(base, played.adapter)


# Law 2: one base with swapped adapters = that many separate server models, in any processing order.


@pytest.mark.parametrize("order", sorted(ORDERS))
def test_swapped_adapters_are_separate_models(order: str, bert: Base) -> None:
    fleet = fleet_of(4)
    streams = streams_for(fleet, "classification", steps=3)
    played = play(bert, build_method("memsfl", {"order": order}, seed=5), fleet, streams, rounds=1, local_steps=3)
    assert_same(played.adapter, mean_of_plain(bert, fleet, streams, rounds=1, steps=3))
    assert len({event.peer for event in played.events if event.what == "step"}) == 4


def mean_of_plain(base: Base, fleet: Fleet, streams: dict[str, ListedBatches], *, rounds: int, steps: int) -> Adapter:
    """FedAvg by hand: every device trains the whole model with plain PEFT, then A, B and head are averaged."""
    adapter = base.initial_adapter(0)
    states: dict[str, dict[str, object] | None] = {device.name: None for device in fleet.devices}
    for round in range(rounds):
        trained, weights = [], []
        for name in sorted(states):
            batches = streams[name].given[round * steps : (round + 1) * steps]
            local_rates = [learning_rate(round, step) for step in range(steps)]
            local, states[name] = plain_training(base, adapter, batches, local_rates, states[name])
            trained.append(local)
            weights.append(sum(batch.weight for batch in batches))
        total = sum(weights)
        adapter = {
            key: sum(
                part[key].double() * (weight / total) for part, weight in zip(trained, weights, strict=True)
            ).float()
            for key in adapter
        }
    return adapter


# Law 3: the neutral setting gives the simpler method.


@pytest.mark.parametrize("cut", range(BLOCKS + 1))
def test_memsfl_with_equal_cuts_is_sfl_v1(cut: int, bert: Base) -> None:
    """A server model per device, both sides averaged at the end of the round, whatever the cut."""
    fleet = fleet_of(3)
    streams = streams_for(fleet, "classification", steps=ROUNDS * STEPS)
    played = play(bert, build_method("memsfl", {"cut": cut}, seed=0), fleet, streams, rounds=ROUNDS, local_steps=STEPS)
    assert_same(played.adapter, mean_of_plain(bert, fleet, streams, rounds=ROUNDS, steps=STEPS))


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_memsfl_with_unequal_cuts_is_the_same_mean(family: str, bert: Base, llama: Base) -> None:
    """Names are global, so unequal cuts need no mapping and change nothing; tokens weigh for causal LM."""
    base = {"bert": bert, "llama": llama}[family]
    fleet = fleet_of(4)
    streams = streams_for(fleet, base.settings.task, steps=ROUNDS * STEPS)
    played = play(base, build_method("memsfl", {}, seed=0), fleet, streams, rounds=ROUNDS, local_steps=STEPS)
    assert sorted(set(played.logbook.cuts.values())) == [1, 2, 3]
    assert_same(played.adapter, mean_of_plain(base, fleet, streams, rounds=ROUNDS, steps=STEPS))
    assert_trained(base, played.adapter)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_fedlora_is_memsfl_is_the_mean_of_plain_trainings(family: str, bert: Base, llama: Base) -> None:
    """Where the model is cut changes nothing of what is learnt."""
    base = {"bert": bert, "llama": llama}[family]
    fleet = fleet_of(3)
    streams = streams_for(fleet, base.settings.task, steps=ROUNDS * STEPS)
    played = play(base, build_method("fedlora", {}, seed=0), fleet, streams, rounds=ROUNDS, local_steps=STEPS)
    assert_same(played.adapter, mean_of_plain(base, fleet, streams, rounds=ROUNDS, steps=STEPS))
    assert_trained(base, played.adapter)


def test_vanilla_is_plain_training_of_one_device_after_another(bert: Base) -> None:
    """With one local step, one round and fresh moments, the relay is one step per device on what the last one left."""
    fleet = fleet_of(3)
    streams = streams_for(fleet, "classification", steps=1)
    settings = TrainSettings(OptimizerSettings(), keep_moments=False)
    played = play(
        bert, build_method("vanilla", {"cut": 2}, seed=0), fleet, streams, rounds=1, local_steps=1, settings=settings
    )
    adapter = bert.initial_adapter(0)
    for name in sorted(streams):
        adapter, _ = plain_training(bert, adapter, streams[name].given, [learning_rate(0, 0)])
    assert_same(played.adapter, adapter)


def test_splitlora_keeps_one_server_adapter(bert: Base) -> None:
    """The shared adapter takes a step per device; only device adapters are averaged, and unweighted."""
    fleet = fleet_of(3)
    streams = streams_for(fleet, "classification", steps=1)
    played = play(bert, build_method("splitlora", {"cut": 2}, seed=0), fleet, streams, rounds=1, local_steps=1)
    *devices, server = played.contributions[0]
    served = [event.peer for event in played.events if event.what == "step"]
    assert sorted(served) == sorted(streams)
    assert set(server.adapter) == set(bert.server_names(2))
    for name in bert.server_names(2):
        assert torch.equal(played.adapter[name], server.adapter[name])
    for name in bert.device_names(2):
        mean = sum(part.adapter[name].double() / 3 for part in devices)
        torch.testing.assert_close(played.adapter[name], mean.float())


def test_momentum_by_hand(bert: Base) -> None:
    """Two rounds of `with_momentum` against its two formulas; momentum 0 is the plain mean itself."""

    def run(momentum: float) -> Played:
        fleet = fleet_of(3)
        streams = streams_for(fleet, "classification", steps=ROUNDS * STEPS)
        return play(bert, build_method("memsfl", {"momentum": momentum}, seed=0), fleet, streams, local_steps=STEPS)

    plain, moved = run(0.0), run(0.5)
    mean = mean_per_block()
    start = bert.initial_adapter(0)
    first = mean(start, moved.contributions[0], RoundPlan(0))
    assert_same(first, mean(start, plain.contributions[0], RoundPlan(0)))
    velocity = {name: first[name] - start[name] for name in start}
    after_one = {name: start[name] + velocity[name] + 0.5 * velocity[name] for name in start}
    second = mean(after_one, moved.contributions[1], RoundPlan(1))
    for name in start:
        change = second[name] - after_one[name]
        velocity[name] = 0.5 * velocity[name] + change
        assert torch.equal(moved.adapter[name], after_one[name] + change + 0.5 * velocity[name])
    assert_same(plain.adapter, mean(start, plain.contributions[1], RoundPlan(1)))


# Law 4: every sample counts once; the order of the cohort does not matter, or the method says it does.


@pytest.mark.parametrize("order", sorted(ORDERS))
def test_the_order_of_the_cohort_does_not_matter_to_memsfl(order: str, bert: Base) -> None:
    def adapter(fleet: Fleet) -> Adapter:
        streams = streams_for(fleet_of(4), "classification", steps=ROUNDS * STEPS)
        return play(bert, build_method("memsfl", {"order": order}, seed=0), fleet, streams, local_steps=STEPS).adapter

    fleet = fleet_of(4)
    devices = list(fleet.devices)
    random.Random(3).shuffle(devices)
    assert [device.name for device in devices] != [device.name for device in fleet.devices]
    assert_same(adapter(fleet), adapter(fleet.model_copy(update={"devices": tuple(devices)})))


# Law 7: frozen weights never change, raw text never leaves a device, reported bytes = bytes serialised.


# Time: a device is busy, on the network or waiting, and the round lasts as long as the slowest. FLOPs are those that
# its machine took the time for.


def test_a_frozen_device_gets_no_gradients(bert: Base) -> None:
    """At cut 0 nothing on the device trains, so nothing is sent back but the loss."""
    fleet = fleet_of(2)
    streams = streams_for(fleet, "classification", steps=STEPS)
    played = play(bert, build_method("memsfl", {"cut": 0}, seed=0), fleet, streams, rounds=1, local_steps=STEPS)
    answers = [message for message in played.sent_down if isinstance(message, Gradients)]
    assert len(answers) == 2 * STEPS
    assert all(answer.grad_BTD is None for answer in answers)


def test_a_tensor_is_averaged_over_those_who_trained_it(bert: Base) -> None:
    """splitlora's plan with unequal cuts: block 1 is trained on device-1 itself and on the server for device-0."""
    fleet = fleet_of(2)
    streams = streams_for(fleet, "classification", steps=1)
    built = build_method("splitlora", {}, seed=0)

    def unequal(plan, known):  # type: ignore[no-untyped-def]
        cuts = {"device-0": 1, "device-1": 2}
        return plan.with_each(lambda device: DevicePlan(device.device, cuts[device.device], 4, 1))

    method = Method((built.plan[0], unequal), built.round, mean_per_block(weighted=True))
    played = play(bert, method, fleet, streams, rounds=1, local_steps=1)
    first, second, server = played.contributions[0]
    weights = {name: stream.given[0].weight for name, stream in streams.items()}
    for name in bert.shapes:
        block = bert.block_of(name)
        if block == 0:
            assert set(first.adapter) <= set(second.adapter)
            assert name not in server.adapter
        elif block == 1:
            assert server.weights[name] == weights["device-0"]
            assert second.weights[name] == weights["device-1"]
        else:
            assert server.weights[name] == sum(weights.values())


# Judging: devices say of rows that they hold out what the server would say of the same rows.


@pytest.fixture(scope="module")
def judged_inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_inputs(tmp_path_factory.mktemp("judged"), rows=24)


@pytest.mark.parametrize("method", list(by_turns(METHODS, one_of=3)))
def test_devices_say_what_the_server_would_say_of_their_rows(
    method: str, judged_inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batch for batch, in the last round; of each device with the adapter that is its own, where it has one."""
    more = {"data__hold_out": 0.25, "data__max_length": 16, "train__local_steps": 1, "train__eval_every": 2}
    chosen = values_for(judged_inputs, method__name=method, lora__targets=["all-linear"], **more)
    config = read_config(None, values=chosen | {"out": str(tmp_path / "run")})
    if build_method(method, {}, seed=0).moved is not None:
        with pytest.raises(ConfigError, match=r"data\.hold_out: expected a method that leaves the base's weights"):
            prepare(config)
        return
    inputs, asked = prepare(config), list[dict[str, dict[str, float]]]()
    held = {device.name: inputs.held_out(place) for place, device in enumerate(inputs.fleet.devices)}

    def evaluated(
        base: Base, adapter: Adapter, batches: list[Batch], kept: Kept | None, *, told: Callable[[int], None]
    ) -> dict[str, float]:
        asked.append({name: evaluate(base, adapter, rows.batches(4), kept) for name, rows in held.items()})
        return evaluate(base, adapter, batches, kept, told=told)

    monkeypatch.setattr(whole_run, "evaluate", evaluated)
    *_, row = simulate(inputs, NoProgress()).rows
    own = len(asked) > 2  # an evaluation for each device's adapter
    after = {name: asked[1 + own * place][name] for place, name in enumerate(held)}
    said = row["held_out"]["devices"]
    assert said.keys() <= held.keys()
    assert len(said) == sum(1 for device in row["devices"].values() if device["samples"]) > 0
    for name, metrics in said.items():
        assert metrics.pop("samples") == len(held[name].rows) == 3
        assert metrics == pytest.approx({what: after[name][what] for what in metrics}, rel=1e-6)
        assert {"loss", "accuracy"} <= metrics.keys()
    over_all = row["held_out"]["metrics"]
    assert over_all["loss"] == pytest.approx(sum(one["loss"] for one in said.values()) / len(said))
    assert over_all["accuracy"] == pytest.approx(sum(one["accuracy"] for one in said.values()) / len(said))
