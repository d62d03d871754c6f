"""The bound: what one device equals is a law of test_every_method.py; here, what several are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bases import open_base
from cutlayer.methods.table import build_method
from cutlayer.model.base import Base
from cutlayer.testing.playground import Played, fleet_of, play, streams_for
from cutlayer.wire.messages import Activations

ModelMaker = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def bert(tiny_model: ModelMaker) -> Base:
    return open_base(tiny_model("bert", "classification"), "classification")


def run(base: Base, window: int | None = None) -> Played:
    fleet = fleet_of(3)
    streams = streams_for(fleet, "classification", steps=4, samples=lambda _: 4)
    return play(base, build_method("centralized", {"window": window}, seed=0), fleet, streams)


def test_every_block_trains_and_no_device_does(bert: Base) -> None:
    played, start = run(bert), bert.initial_adapter(0)
    assert [name for name, value in start.items() if torch.equal(value, played.adapter[name])] == []
    sent = [message for message in played.sent_up if isinstance(message, Activations)]
    part = bert.device_part(0)
    assert part.names == []
    assert {message.h_BTD.shape[0] for message in sent} == {4}
    assert not [event for event in played.events if event.what == "backward"]


def test_one_adapter_takes_a_step_for_every_batch(bert: Base) -> None:
    played = run(bert)
    steps = [event for event in played.events if event.who == "server" and event.what == "step"]
    assert len(steps) == 3 * 4
    for *devices, server in played.contributions:
        assert [part.adapter for part in devices] == [{}, {}, {}]
        assert server.adapter.keys() == bert.shapes.keys()


def test_batches_are_mixed_over_devices(bert: Base) -> None:
    """With a window of one batch there is nothing to mix with, and another adapter comes out."""
    mixed, alone = run(bert), run(bert, window=4)
    assert any(not torch.equal(mixed.adapter[name], alone.adapter[name]) for name in mixed.adapter)
