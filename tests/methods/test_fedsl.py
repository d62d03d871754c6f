"""FedSL: with nothing pruned, dropped or rounded it is SFL-V1; what each of the three does to a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bases import open_base
from cutlayer.methods.table import build_method
from cutlayer.model.adapter import LoraSettings
from cutlayer.model.base import Base
from cutlayer.packing import UNCOMPRESSED, Compression, compression
from cutlayer.testing.playground import Played, fleet_of, play, streams_for
from cutlayer.wire.messages import Activations, Update

ModelMaker = Callable[[str, str], Path]
ROUNDS, STEPS = 2, 2
NEUTRAL: dict[str, Any] = {"prune": 0.0, "dropout": 0.0, "bits": None}


@pytest.fixture(scope="module", params=[("bert", "classification"), ("llama", "causal-lm")], ids=str)
def base(request: pytest.FixtureRequest, tiny_model: ModelMaker) -> Base:
    family, task = request.param
    return open_base(tiny_model(family, task), task, lora=LoraSettings(targets=("all-linear",)))


def played(
    base: Base,
    method: str = "fedsl",
    *,
    rounds: int = ROUNDS,
    steps: int = STEPS,
    codecs: Compression = UNCOMPRESSED,
    micro_batches: int = 1,
    **options: Any,
) -> Played:
    fleet = fleet_of(3)
    streams = streams_for(fleet, base.settings.task, steps=8)
    built = build_method(method, options, seed=0)
    return play(
        base,
        built,
        fleet,
        streams,
        rounds=rounds,
        local_steps=steps,
        compression=codecs,
        micro_batches=micro_batches,
    )


def assert_same(one: Played, other: Played) -> None:
    assert one.adapter.keys() == other.adapter.keys()
    assert [name for name, value in one.adapter.items() if not torch.equal(value, other.adapter[name])] == []


@pytest.mark.parametrize("cut", [0, 1, 3])
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_with_nothing_thinned_it_is_sfl_v1(cut: int, micro_batches: int, base: Base) -> None:
    """Bit for bit, in time and bytes too."""
    fedsl = played(base, cut=cut, micro_batches=micro_batches, **NEUTRAL)
    sfl_v1 = played(base, "sfl_v1", cut=cut, micro_batches=micro_batches)
    assert_same(fedsl, sfl_v1)
    assert fedsl.events == sfl_v1.events
    assert [row["bytes_up"] for row in fedsl.rows] == [row["bytes_up"] for row in sfl_v1.rows]


def test_an_interval_is_as_many_steps_more(base: Base) -> None:
    assert_same(played(base, rounds=1, steps=2, interval=2, **NEUTRAL), played(base, "sfl_v1", rounds=1, steps=4))


@pytest.mark.parametrize("option", [{"prune": 0.5}, {"dropout": 0.5}, {"bits": 3}, {"bits": 8}], ids=str)
def test_each_changes_what_is_learnt_and_trains(option: dict[str, Any], base: Base) -> None:
    thinned, plain = played(base, **NEUTRAL | option), played(base, **NEUTRAL)
    assert any(not torch.equal(value, plain.adapter[name]) for name, value in thinned.adapter.items())
    start = base.initial_adapter(0)
    assert all(not torch.equal(value, start[name]) for name, value in thinned.adapter.items())


def test_the_seed_draws(base: Base) -> None:
    def once(seed: int) -> Played:
        fleet = fleet_of(2)
        streams = streams_for(fleet, base.settings.task, steps=4)
        return play(base, build_method("fedsl", {"prune": 0.0}, seed=seed), fleet, streams, rounds=1, local_steps=2)

    one, same, other = once(0), once(0), once(1)
    assert_same(one, same)
    assert any(not torch.equal(value, other.adapter[name]) for name, value in one.adapter.items())


def test_other_channels_are_dropped_in_each_message(base: Base) -> None:
    """As they arrive, by round, step and device; half of them."""
    run = played(base, **NEUTRAL | {"dropout": 0.5, "cut": 1})
    assert {message.h_BTD.shape[-1] for message in run.sent_up if isinstance(message, Activations)} == {8}


def test_gradients_and_changes_have_few_levels(base: Base) -> None:
    """A change has at most 2^bits - 1 values in each tensor, whatever a round's steps add up to."""
    run = played(base, **NEUTRAL | {"bits": 3})
    sizes = {name: value.numel() for name, value in base.initial_adapter(0).items()}
    for update in (message for message in run.sent_up if isinstance(message, Update)):
        for name, packed in update.adapter.items():
            assert packed.dtype is torch.uint8
            assert packed.numel() == -(-3 * sizes[name] // 8) + 4


def test_what_the_run_file_packs_stays_packed(base: Base) -> None:
    run = played(base, codecs=compression(activations="int8", adapters="int8"), **NEUTRAL | {"bits": 3, "dropout": 0.5})
    [first, *_] = [message for message in run.sent_up if isinstance(message, Activations)]
    assert first.h_BTD.shape[-1] == 8 + 4
