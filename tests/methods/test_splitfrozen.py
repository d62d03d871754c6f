"""SplitFrozen's own laws: what one device equals, that lifting changes nothing, what the cache saves, what overlaps."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from bases import open_base
from cutlayer.errors import ConfigError, DivergedError
from cutlayer.fleet.profile import Fleet
from cutlayer.methods.table import build_method
from cutlayer.model.base import Base
from cutlayer.model.part import model_inputs
from cutlayer.policies.plan import Situation
from cutlayer.server.server import Server
from cutlayer.server.steps.mixed import train_mixed
from cutlayer.server.steps.stages import Stages
from cutlayer.testing.playground import (
    FlatCosts,
    ListedBatches,
    Played,
    fleet_of,
    learning_rate,
    play,
    streams_for,
    with_rows,
)
from cutlayer.testing.tiny import BLOCKS, random_batch
from cutlayer.types import Adapter, Batch, DevicePlan, History, StepRecord
from cutlayer.wire.frames import frame_bytes
from cutlayer.wire.messages import Activations, Assignment, Finish, Recall, Update

ModelMaker = Callable[[str, str], Path]
ROUNDS, STEPS = 2, 3
TASKS = {"bert": "classification", "llama": "causal-lm", "gpt2": "causal-lm"}


@pytest.fixture(scope="module", params=TASKS)
def base(request: pytest.FixtureRequest, tiny_model: ModelMaker) -> Base:
    task = TASKS[request.param]
    return open_base(tiny_model(request.param, task), task)


@pytest.fixture(scope="module")
def bert(tiny_model: ModelMaker) -> Base:
    return open_base(tiny_model("bert", "classification"), "classification")


def run(
    base: Base, fleet: Fleet, *, rounds: int = ROUNDS, streams: dict[str, ListedBatches] | None = None, **options: Any
) -> Played:
    streams = streams or streams_for(fleet, base.settings.task, steps=rounds * STEPS)
    return play(base, build_method("splitfrozen", options, seed=0), fleet, streams, rounds=rounds, local_steps=STEPS)


def epochs(base: Base, fleet: Fleet, *, same: bool, num: int = 2) -> dict[str, ListedBatches]:
    """Every device's data, `num` times over: in the same batches, or mixed anew."""
    task = base.settings.task
    streams = {}
    for index, device in enumerate(fleet.devices):
        first = [
            with_rows(random_batch(task, seed=100 * index + step, samples=4, tokens=8 + 2 * step), first=4 * step)
            for step in range(STEPS)
        ]
        again = first if same else remixed(first, random.Random(index))
        streams[device.name] = ListedBatches([*first, *again * (num - 1)])
    return streams


def remixed(batches: Sequence[Batch], rng: random.Random) -> list[Batch]:
    """The same samples in other batches, padded to the longest text of all."""
    num_tokens = max(batch.num_tokens for batch in batches)
    rows = []
    for batch in batches:
        missing = num_tokens - batch.num_tokens

        def wide(tensor: torch.Tensor, value: int, missing: int = missing) -> torch.Tensor:
            return torch.nn.functional.pad(tensor, (0, missing), value=value) if tensor.dim() == 2 else tensor

        columns = (wide(batch.input_ids_BT, 0), wide(batch.attention_mask_BT, 0), wide(batch.labels, -100))
        rows += list(zip(*columns, batch.indices, strict=True))
    rng.shuffle(rows)
    size = batches[0].num_samples
    mixed = []
    for start in range(0, len(rows), size):
        ids, masks, labels, indices = zip(*rows[start : start + size], strict=True)
        stacked = torch.stack(labels)
        weight = size if stacked.dim() == 1 else int((stacked[:, 1:] != -100).sum())
        mixed.append(Batch(torch.stack(ids), torch.stack(masks), stacked, None, indices, weight))
    return mixed


def assert_same(one: Adapter, other: Adapter) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def assert_trained(base: Base, adapter: Adapter, cut: int) -> None:
    start = base.initial_adapter(0)
    assert set(adapter) == {name for name in start if (block := base.block_of(name)) is None or block >= cut}
    assert [name for name in adapter if torch.equal(start[name], adapter[name])] == []


# ------------------------------------------------------------------ one device is plain training above the cut


def plain_training_above(base: Base, cut: int, batches: Sequence[Batch], rates: Sequence[float]) -> Adapter:
    """transformers and PEFT with LoRA on blocks `[cut, L)` and the head; none of our code in the computation."""
    settings = base.settings
    maker = AutoModelForCausalLM if settings.task == "causal-lm" else AutoModelForSequenceClassification
    extra = {} if settings.task == "causal-lm" else {"num_labels": settings.num_labels}
    model = maker.from_pretrained(base.files.location, **extra)
    model.config.pad_token_id = settings.pad_id
    config = LoraConfig(
        r=settings.lora.rank,
        lora_alpha=settings.lora.alpha,
        target_modules=base.target_names,
        layers_to_transform=list(range(cut, base.num_blocks)),
        modules_to_save=[name.rpartition(".")[2] for name in base.trained_heads] or None,
        fan_in_fan_out=base.family.name == "gpt2",
    )
    peft_model = get_peft_model(model, config).eval()
    inside = {
        name.replace(".default.", ".").replace(".modules_to_save", ""): parameter
        for name, parameter in peft_model.named_parameters()
        if parameter.requires_grad
    }
    start = base.initial_adapter(0)
    with torch.no_grad():
        for name, parameter in inside.items():
            parameter.copy_(start[name])
    optimizer = torch.optim.AdamW(inside.values(), lr=0.0, weight_decay=0.0, fused=True)
    for batch, rate in zip(batches, rates, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        peft_model(**model_inputs(batch), labels=batch.labels).loss.backward()
        optimizer.step()
    return {name: parameter.detach().clone() for name, parameter in inside.items()}


@pytest.mark.parametrize("cut", range(BLOCKS))
def test_one_device_is_plain_training_above_the_cut(cut: int, base: Base) -> None:
    """A window of one batch leaves the batches as they are."""
    fleet = fleet_of(1)
    streams = streams_for(fleet, base.settings.task, steps=ROUNDS * STEPS, samples=lambda _: 4)
    played = run(base, fleet, streams=streams, cut=cut)
    rates = [learning_rate(round, step) for round in range(ROUNDS) for step in range(STEPS)]
    assert_same(played.adapter, plain_training_above(base, cut, streams["device-0"].given, rates))
    assert_trained(base, played.adapter, cut)


@pytest.mark.parametrize("stages", [2, 3])
@pytest.mark.parametrize("decomposed", [False, True])
def test_stages_and_decomposed_backward_train_the_same(stages: int, decomposed: bool, base: Base) -> None:
    """Bit for bit, over all steps of a run."""
    plain = run(base, fleet_of(3), cut=0)
    staged = run(base, fleet_of(3), cut=0, stages=stages, decomposed=decomposed)
    assert_same(staged.adapter, plain.adapter)
    assert [row["loss"] for row in staged.rows] == [row["loss"] for row in plain.rows]


# ------------------------------------------------------------------ cuts, mixing


@pytest.mark.parametrize("cache", [True, False])
def test_lifting_is_exact(cache: bool, base: Base) -> None:
    """Unequal cuts train, bit for bit, what the deepest cut for everyone trains."""
    fleet = fleet_of(4)
    unequal = run(base, fleet, deepest=2, cache=cache)
    assert set(unequal.logbook.cuts.values()) == {1, 2}
    lifted = {event.peer for event in unequal.events if event.who == "server" and event.what == "forward"}
    assert lifted == {name for name, cut in unequal.logbook.cuts.items() if cut == 1}
    assert_same(unequal.adapter, run(base, fleet, cut=2, cache=cache).adapter)
    assert_trained(base, unequal.adapter, 2)


def test_what_is_mixed_does_not_depend_on_who_is_fast(bert: Base) -> None:
    """Other speeds, links and places in the fleet: another time, the same adapter, whatever the window."""
    fleet = fleet_of(4)
    turned = [
        device.model_copy(update={"flops_per_second": 1e11 / (1 + index), "up_bits_per_second": 1e5 * (1 + index)})
        for index, device in enumerate(fleet.devices)
    ]
    other = fleet.model_copy(update={"devices": tuple(reversed(turned))})
    for window in (None, 5, 1000):
        one, two = (
            run(bert, these, streams=streams_for(fleet, "classification", steps=ROUNDS * STEPS), cut=1, window=window)
            for these in (fleet, other)
        )
        assert one.rows[-1]["virtual_seconds"] != two.rows[-1]["virtual_seconds"]
        assert_same(one.adapter, two.adapter)


def test_the_window_decides_what_is_mixed(bert: Base) -> None:
    adapters = [run(bert, fleet_of(3), window=window).adapter for window in (1, None, 1000)]
    seeds = [play_with_seed(bert, seed) for seed in (0, 1)]
    for one, other in ((adapters[0], adapters[1]), (adapters[1], adapters[2]), (seeds[0], seeds[1])):
        assert any(not torch.equal(one[name], other[name]) for name in one)


def play_with_seed(base: Base, seed: int) -> Adapter:
    fleet = fleet_of(3)
    streams = streams_for(fleet, "classification", steps=STEPS)
    return play(base, build_method("splitfrozen", {}, seed=seed), fleet, streams, rounds=1, local_steps=STEPS).adapter


def test_lifting_costs_the_blocks_between_the_cuts(bert: Base) -> None:
    """One MFLOP per block, sample and token: as many as the devices that hold a block less do not spend."""
    unequal, equal = (run(bert, fleet_of(4), **options) for options in ({"deepest": 2}, {"cut": 2}))
    lifted = sum(event.flops for event in unequal.events if event.who == "server" and event.what == "forward")
    spared = sum(r.flops for r in equal.logbook.history.records) - sum(r.flops for r in unequal.logbook.history.records)
    assert lifted == pytest.approx(spared)
    assert lifted > 0


def test_the_loss_of_a_round_is_that_of_its_batches_by_weight(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens for causal LM: every device's part adds up to what the server lost."""
    lost: list[tuple[int, float]] = []
    backward = Stages.backward
    monkeypatch.setattr(Stages, "backward", lambda *given: lost.append((0, backward(*given))) or lost[-1][1])

    async def watched(server: Server, samples: Sequence[Activations], stages: Any, **named: Any) -> None:
        await train_mixed(server, samples, stages, **named)
        lost[-1] = (sum(sample.weight for sample in samples), lost[-1][1])

    monkeypatch.setattr("cutlayer.rounds.stream.train_mixed", watched)
    [row] = run(base, fleet_of(3), rounds=1).rows
    assert row["loss"] == pytest.approx(sum(weight * loss for weight, loss in lost) / row["weight"])
    assert row["weight"] == sum(weight for weight, _ in lost)


@pytest.mark.parametrize("options", [{}, {"window": 7, "server_batch": 3}, {"cache": False, "deepest": 2}], ids=str)
def test_every_sample_is_trained_on_once_an_epoch(
    options: dict[str, Any], base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, tuple[str, str]]] = []
    batches: Counter[int] = Counter()

    async def watched(server: Server, samples: Sequence[Activations], stages: Any, **named: Any) -> None:
        round = server.ledger.plan.round
        seen.extend((round, (sample.device, str(without_padding(sample.labels[0])))) for sample in samples)
        batches[round] += 1
        await train_mixed(server, samples, stages, **named)

    monkeypatch.setattr("cutlayer.rounds.stream.train_mixed", watched)
    fleet = fleet_of(3)
    streams = epochs(base, fleet, same=False)
    played = run(base, fleet, streams=streams, **options)
    for round in range(2):
        expected = Counter(
            (name, str(without_padding(label)))
            for name, stream in streams.items()
            for batch in stream.given[round * STEPS : (round + 1) * STEPS]
            for label in batch.labels
        )
        assert Counter(sample for number, sample in seen if number == round) == expected
        assert batches[round] == -(-sum(expected.values()) // options.get("server_batch", 4))
    given = {name: sum(batch.weight for batch in stream.given) for name, stream in streams.items()}
    assert {name: sum(r.weight for r in played.logbook.history.of(name)) for name in streams} == given


def without_padding(label: torch.Tensor) -> list[int]:
    return label.tolist() if label.dim() == 0 else [token for token in label.tolist() if token != -100]


def test_the_schedule_of_learning_rates_is_passed_once_a_round(bert: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    """With three devices each place of it lasts three server steps."""
    places: list[int] = []

    async def watched(server: Server, samples: Any, stages: Any, *, step: int, local_step: int) -> None:
        assert step == len(places)
        places.append(local_step)
        await train_mixed(server, samples, stages, step=step, local_step=local_step)

    monkeypatch.setattr("cutlayer.rounds.stream.train_mixed", watched)
    fleet = fleet_of(3)
    run(bert, fleet, rounds=1, streams=epochs(bert, fleet, same=True))
    assert places == [0, 0, 0, 1, 1, 1, 2, 2, 2]


# ------------------------------------------------------------------ what crosses the network


def test_nothing_comes_down_and_no_adapter_goes_up(bert: Base) -> None:
    played = run(bert, fleet_of(3), deepest=2)
    assert {type(message) for message in played.sent_down} == {Assignment, Finish}
    assert all(not message.adapter for message in played.sent_down if isinstance(message, Assignment))
    assert all(not message.adapter for message in played.sent_up if isinstance(message, Update))
    assert not [event for event in played.events if event.what == "backward"]


def test_a_loss_that_is_not_finite_names_those_in_the_batch(bert: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cutlayer.server.steps.stages.Stages.backward", lambda *_: float("nan"))
    with pytest.raises(BaseExceptionGroup) as error:
        run(bert, fleet_of(2))
    found: Any = error.value.subgroup(DivergedError)
    while isinstance(found, BaseExceptionGroup):
        [found] = found.exceptions
    assert "device device-0, device-1, round 0, step 0: expected a finite loss, got nan." in str(found)


# ------------------------------------------------------------------ the cache


def saved(record: StepRecord, what: str) -> float:
    """The FLOPs (`flops`) or bytes (`bytes`) that a device's round saved; 0 where nothing is said of them."""
    return float(record.facts.get(f"saved_{what}", 0))


def test_one_epoch_with_the_cache_is_one_without(base: Base) -> None:
    """The run is the same whatever it stores, and it sends no more than the names of the samples beside."""
    fleet = fleet_of(3)
    plain = run(base, fleet, deepest=2, cache=False)
    for stored in ("fp32", "bf16", "int8"):
        kept = run(base, fleet, deepest=2, cache_dtype=stored)
        assert_same(kept.adapter, plain.adapter)
        assert not [message for message in kept.sent_up if isinstance(message, Recall)]
        assert all(saved(record, what) == 0 for record in kept.logbook.history.records for what in ("flops", "bytes"))


def test_the_same_batches_again_are_the_same_run(base: Base) -> None:
    """Activations that are kept are those that were sent, to the bit."""
    fleet = fleet_of(3)
    plain, kept = (
        run(base, fleet, streams=epochs(base, fleet, same=True), deepest=2, cache=cache) for cache in (False, True)
    )
    assert len([message for message in kept.sent_up if isinstance(message, Recall)]) == 3 * STEPS
    assert_same(kept.adapter, plain.adapter)


def test_other_batches_round_differently(base: Base) -> None:
    """A sample's activations depend on its batch in their last bits only; stored in fewer bits, in more than those."""
    fleet = fleet_of(3)
    plain = run(base, fleet, streams=epochs(base, fleet, same=False), cache=False).adapter
    for stored, tolerance in (("fp32", 1e-5), ("bf16", 2e-2), ("int8", 2e-2)):
        kept = run(base, fleet, streams=epochs(base, fleet, same=False), cache_dtype=stored).adapter
        for name, value in plain.items():
            torch.testing.assert_close(kept[name], value, rtol=0, atol=tolerance)


def test_what_the_cache_saves_is_what_was_not_done(bert: Base) -> None:
    """Device FLOPs of forward passes and bytes of activations, to the last one."""
    fleet = fleet_of(3)
    plain, kept = (
        run(bert, fleet, streams=epochs(bert, fleet, same=False, num=3), rounds=3, deepest=2, cache=cache)
        for cache in (False, True)
    )
    for device in fleet.devices:
        whole, rest = plain.logbook.history.of(device.name), kept.logbook.history.of(device.name)
        for before, after in zip(whole, rest, strict=True):
            assert after.flops + saved(after, "flops") == pytest.approx(before.flops)
            assert (saved(after, "flops") > 0) == (after.round > 0)
        assert rest[1].flops == 0
    activations = [message for message in plain.sent_up if isinstance(message, Activations)]
    repeated = sum(message.h_BTD.nbytes for message in activations if message.round > 0)
    assert sum(saved(record, "bytes") for record in kept.logbook.history.records) == repeated
    names = [message for message in kept.sent_up if isinstance(message, Recall)]
    assert max(frame_bytes(message) for message in names) < 200
    assert kept.rows[1]["bytes_up"] < plain.rows[1]["bytes_up"] / 4
    assert kept.rows[-1]["virtual_seconds"] < plain.rows[-1]["virtual_seconds"]


# ------------------------------------------------------------------ time


@pytest.mark.parametrize("slow", ["device", "uplink", "server"])
def test_a_step_takes_what_the_slowest_of_the_three_takes(slow: str, bert: Base) -> None:
    """Device, uplink and server work at the same time: the largest of the three counts, not their sum."""
    seconds = {"device": 0.1, "uplink": 0.1, "server": 0.1} | {slow: 1.0}
    costs, batch = FlatCosts(bert.num_blocks), with_rows(random_batch("classification"), first=0)
    shape = (batch.num_samples, batch.num_tokens)
    [profile] = fleet_of(1).devices
    plan = DevicePlan(profile.name, 1, 4, 1)
    server = costs.server(plan, *shape)
    fleet = fleet_of(1).model_copy(
        update={
            "devices": (
                profile.model_copy(
                    update={
                        "flops_per_second": costs.device(plan, *shape).forward_flops / seconds["device"],
                        "up_bits_per_second": 8 * costs.activation_bytes(*shape) / seconds["uplink"],
                        "latency_seconds": 0.0,
                    }
                ),
            ),
            "server": fleet_of(1).server.model_copy(
                update={"flops_per_second": (server.forward_flops + server.backward_flops) / seconds["server"]}
            ),
        }
    )
    steps = 20
    batches = [replace(batch, indices=tuple(range(4 * step, 4 * step + 4))) for step in range(steps)]
    played = play(
        bert,
        build_method("splitfrozen", {"cut": 1}, seed=0),
        fleet,
        {profile.name: ListedBatches(batches)},
        rounds=1,
        local_steps=steps,
    )
    fill = sum(seconds.values())
    assert steps * 1.0 <= played.rows[0]["virtual_seconds"] < 1.15 * (steps + fill)


# ------------------------------------------------------------------ what contradicts itself


def situation(**changes: Any) -> Situation:
    fleet = fleet_of(3)
    return Situation(fleet, FlatCosts(BLOCKS), History(), num_tokens=10, batch_size=4, local_steps=STEPS, **changes)


def test_dropout_and_the_cache_contradict_each_other() -> None:
    with pytest.raises(ConfigError, match=r"model\.base_dropout=false, or method\.cache=false"):
        build_method("splitfrozen", {}, seed=0).make_plan(0, situation(base_dropout=True))
    build_method("splitfrozen", {"cache": False}, seed=0).make_plan(0, situation(base_dropout=True))


def test_dropout_without_the_cache_repeats_by_seed(tiny_model: ModelMaker) -> None:
    base = open_base(tiny_model("bert", "classification"), "classification", base_dropout=True)
    one, other = (run(base, fleet_of(3), deepest=2, cache=False).adapter for _ in range(2))
    assert_same(one, other)
    quiet = open_base(tiny_model("bert", "classification"), "classification")
    assert any(
        not torch.equal(one[name], value)
        for name, value in run(quiet, fleet_of(3), deepest=2, cache=False).adapter.items()
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cut": BLOCKS}, r"method\.cut: expected at most 2.*got 3"),
        ({"deepest": BLOCKS}, r"method\.cut: expected at most 2.*got 3"),
        ({"cut": 2, "stages": 2}, r"method\.cut: expected at most 1.*each of 2 stages, got 2"),
        ({"deepest": 1, "least": 2}, r"method\.least: expected 0 to method\.deepest, 1, got 2"),
    ],
    ids=str,
)
def test_a_plan_that_leaves_nothing_to_train_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build_method("splitfrozen", options, seed=0).make_plan(0, situation())
