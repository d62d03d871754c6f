"""ReinDSplit: cuts that move change nothing that they should not, and what they move is LoRA tensors alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bases import open_base
from cutlayer.errors import ConfigError
from cutlayer.fleet.profile import Fleet
from cutlayer.methods.method import Method
from cutlayer.methods.table import build_method
from cutlayer.model.base import Base
from cutlayer.model.trainable import OptimizerSettings, TrainSettings
from cutlayer.policies.select import everyone
from cutlayer.testing.playground import (
    ListedBatches,
    Played,
    fleet_of,
    learning_rate,
    plain_training,
    play,
    streams_for,
)
from cutlayer.testing.reference import plain_peft_model
from cutlayer.testing.tiny import BLOCKS
from cutlayer.types import Adapter, RoundPlan
from cutlayer.wire.frames import frame_bytes
from cutlayer.wire.messages import Assignment
from real import served, simulated, values_for

ModelMaker = Callable[[str, str], Path]
STEPS = 2
CUTS = ({"device-0": 1, "device-1": 2}, {"device-0": 2, "device-1": 2}, {"device-0": 1, "device-1": 3})
"""Cuts of three rounds: one moves up and back again, the other stays and then moves up to the last block."""


@pytest.fixture(scope="module")
def bert(tiny_model: ModelMaker) -> Base:
    return open_base(tiny_model("bert", "classification"), "classification")


@pytest.fixture(scope="module")
def llama(tiny_model: ModelMaker) -> Base:
    return open_base(tiny_model("llama", "causal-lm"), "causal-lm")


def lending(num_devices: int) -> Fleet:
    """Unequal devices that would hold the whole model."""
    return fleet_of(num_devices, max_blocks=(BLOCKS,))


def moving(cuts: Sequence[Mapping[str, int]]) -> Method:
    """The method with a table that says these cuts, round by round."""

    def planner(plan: RoundPlan, _situation: Any) -> RoundPlan:
        return plan.with_each(lambda device: replace(device, cut=cuts[plan.round][device.device]))

    return replace(build_method("reindsplit", {}, seed=0), plan=(everyone(), planner))


def played(base: Base, method: Method, *, devices: int, rounds: int, **more: Any) -> tuple[Played, Any]:
    streams = streams_for(lending(devices), base.settings.task, steps=rounds * STEPS)
    return play(base, method, lending(devices), streams, rounds=rounds, local_steps=STEPS, **more), streams


def mean_of_plain(
    base: Base,
    streams: Mapping[str, ListedBatches],
    rounds: int,
    forget: Callable[[int, str, int], bool],
) -> Adapter:
    """FedAvg of plain PEFT trainings of the whole model, of which AdamW forgets some tensors before a round.

    Args:
      base: The model.
      streams: What was trained on.
      rounds: How many.
      forget: (round, device, block) -> whether the moments of that block's tensors begin anew; -1 is the head.
    """
    order = list(plain_peft_model(base)[1])  # in which AdamW counts its parameters
    adapter, states = base.initial_adapter(0), dict[str, Any]()
    for round in range(rounds):
        trained, weights = [], []
        for name, stream in streams.items():
            if name in states:
                for index, tensor in enumerate(order):
                    block = base.block_of(tensor)
                    if forget(round, name, -1 if block is None else block):
                        states[name]["state"].pop(index)
            batches = stream.all[round * STEPS : (round + 1) * STEPS]
            rates = [learning_rate(round, step) for step in range(STEPS)]
            local, states[name] = plain_training(base, adapter, batches, rates, states.get(name))
            trained.append(local)
            weights.append(sum(batch.weight for batch in batches))
        shares = [weight / sum(weights) for weight in weights]
        adapter = {
            key: sum(part[key].double() * share for part, share in zip(trained, shares, strict=True)).float()
            for key in adapter
        }
    return adapter


def different(one: Adapter, other: Adapter) -> list[str]:
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]


# ------------------------------------------------------------------ what a moved cut changes


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_moments_begin_anew_where_tensors_change_sides_and_nowhere_else(family: str, bert: Base, llama: Base) -> None:
    """Bit for bit plain training whose AdamW forgets exactly the blocks that crossed, whichever way they went."""
    base = {"bert": bert, "llama": llama}[family]
    run, streams = played(base, moving(CUTS), devices=2, rounds=3)
    crossed = {
        (round, device): range(*sorted((CUTS[round - 1][device], CUTS[round][device])))
        for round in (1, 2)
        for device in CUTS[round]
    }
    assert list(map(list, crossed.values())) == [[1], [], [1], [2]]
    expected = mean_of_plain(base, streams, 3, lambda round, device, block: block in crossed[round, device])
    assert not different(run.adapter, expected)
    assert different(run.adapter, mean_of_plain(base, streams, 3, lambda *_: False)), "somebody did forget"
    assert different(run.adapter, mean_of_plain(base, streams, 3, lambda *_: True)), "somebody did not"


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_without_moments_the_table_may_say_what_it_likes(family: str, bert: Base, llama: Base) -> None:
    """Where moments begin anew anyway, cuts change no bit: the run is the mean of plain trainings."""
    base, rounds = {"bert": bert, "llama": llama}[family], 6
    settings = TrainSettings(OptimizerSettings(), keep_moments=False)
    method = build_method("reindsplit", {"deepest": BLOCKS, "explore": 1.0}, seed=0)
    run, streams = played(base, method, devices=3, rounds=rounds, settings=settings)
    cuts = {name: [record.cut for record in run.logbook.history.of(name)] for name in streams}
    assert all(len(set(moved)) > 1 for moved in cuts.values()), "everybody's cut moved"
    assert {cut for moved in cuts.values() for cut in moved} == {1, 2, 3}
    assert not different(run.adapter, mean_of_plain(base, streams, rounds, lambda *_: True))


@pytest.mark.parametrize("cut", range(BLOCKS + 1))
def test_one_action_is_a_fixed_cut(cut: int, bert: Base) -> None:
    """A table of one cut, the option `cut` and memsfl at that cut: the same adapter, and the same events."""
    methods = [
        build_method("reindsplit", {"least": cut, "deepest": cut}, seed=0),
        build_method("reindsplit", {"cut": cut}, seed=0),
        build_method("memsfl", {"cut": cut, "order": "fifo"}, seed=0),
    ]
    learning, fixed, memsfl = (played(bert, method, devices=3, rounds=3)[0] for method in methods)
    for other in (fixed, memsfl):
        assert not different(learning.adapter, other.adapter)
        assert learning.events == other.events


def test_a_moved_cut_moves_lora_tensors_only(bert: Base) -> None:
    """The adapter of the blocks that it has now is all that a device is sent, and to be cut anew costs that alone."""
    run, _ = played(bert, moving(CUTS), devices=2, rounds=3)
    sent = [message for message in run.sent_down if isinstance(message, Assignment)]
    assert len(sent) == 6
    for message in sent:
        cut = CUTS[message.round][message.device]
        assert message.plan.cut == cut
        assert list(message.adapter) == bert.device_names(cut)
        assert all(".lora_" in name for name in message.adapter)
        assert not message.folds
        tensors = sum(value.nbytes for value in message.adapter.values())
        assert tensors < frame_bytes(message) < tensors + 300 * (2 + len(message.adapter))
    staying, moved = (
        [set(message.adapter) for message in sent if message.device == device] for device in ("device-1", "device-0")
    )
    assert staying[0] == staying[1]
    assert bert.blocks_in(moved[1] ^ moved[0]) == bert.blocks_in(moved[2] ^ moved[1]) == {1}


def test_frozen_blocks_are_read_once_and_stay(tiny_model: ModelMaker) -> None:
    base = open_base(tiny_model("bert", "classification"), "classification")
    read = []
    for cut in (1, 2, 1, 2, 0, 2, 3, 1):
        base.device_part(cut)
        read.append(base.weights.bytes_read)
    one, two, three = read[0], read[1], read[6]
    assert 0 < one < two < three
    assert read == [one, *[two] * 5, *[three] * 2]


# ------------------------------------------------------------------ what it learns


def test_a_played_fleet_finds_its_cuts(bert: Base) -> None:
    """Real records of real rounds: each device ends where it computes for half the threshold or more, and keeps it."""
    speeds = {"device-0": 1e8, "device-1": 4e8, "device-2": 2.2e8}
    devices = tuple(
        device.model_copy(update={"flops_per_second": speeds[device.name], "up_bits_per_second": 1e8})
        for device in lending(3).devices
    )
    fleet, rounds = lending(3).model_copy(update={"devices": devices}), 60
    streams = streams_for(fleet, "classification", steps=rounds, samples=lambda _: 4)
    method = build_method("reindsplit", {"deepest": BLOCKS, "threshold": 1.0}, seed=0)
    run = play(bert, method, fleet, streams, rounds=rounds, local_steps=1)
    late = {name: [record.cut for record in run.logbook.history.of(name)][40:] for name in speeds}
    for name, cut in {"device-0": 1, "device-1": 3, "device-2": 2}.items():
        assert late[name].count(cut) >= 18, f"{name}: {late[name]}"


# ------------------------------------------------------------------ runs


def test_a_real_fleet_trains_and_its_cuts_may_move(inputs: Path, tmp_path: Path) -> None:
    """Its times are its own, so are its plans; with fresh moments these change no bit of the adapter."""
    options = {"method__name": "reindsplit", "method__explore": 1.0, "train__rounds": 4}
    values = values_for(inputs, train__keep_moments=False, **options)
    real, modelled = served(values, tmp_path / "real"), simulated(values, tmp_path / "simulated")
    one, other = (outcome.adapter / "adapter_model.safetensors" for outcome in (real, modelled))
    assert one.read_bytes() == other.read_bytes()
    kept = served(values_for(inputs, **options), tmp_path / "kept")
    assert math.isfinite(kept.metrics["loss"])


# ------------------------------------------------------------------ options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"choices": 0}, r"method\.choices: expected at least 1, got 0"),
        ({"threshold": -1.0}, r"method\.threshold: expected seconds above 0, or null, got -1\.0"),
        ({"explore": 2}, r"method\.explore: expected 0 to 1, got 2"),
        ({"discount": 1}, r"method\.discount: expected at least 0 and below 1, got 1"),
        ({"w_acc": -1}, r"method\.w_acc: expected at least 0, got -1"),
        ({"w_lat": -0.5}, r"method\.w_lat: expected at least 0, got -0\.5"),
        ({"w_load": float("nan")}, r"method\.w_load: expected at least 0, got nan"),
        ({"fraction": 0.0}, r"method\.fraction: expected above 0 and at most 1, got 0\.0"),
        ({"cut": 2, "choices": 0}, r"method\.choices: expected at least 1, got 0"),
        ({"threshold": "soon"}, r"method\.threshold: expected float \| None for reindsplit, got 'soon'"),
        ({"learning": 0.1}, r"method\.learning: expected an option of reindsplit \(cut, least, .*\), got 'learning'"),
    ],
)
def test_bad_options_are_refused_before_anything_is_read(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_method("reindsplit", options, seed=0)
