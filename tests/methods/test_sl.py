"""SL: the relay, in another order every round."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from bases import open_base
from cutlayer.methods.table import build_method
from cutlayer.model.trainable import OptimizerSettings, TrainSettings
from cutlayer.testing.playground import fleet_of, learning_rate, plain_training, play, streams_for
from cutlayer.wire.messages import Assignment

ModelMaker = Callable[[str, str], Path]
ROUNDS = 3


def test_it_is_plain_training_of_one_device_after_another_in_a_fresh_order(tiny_model: ModelMaker) -> None:
    """With fresh moments and one step, each device's turn is one step of plain PEFT on what the last one left."""
    base = open_base(tiny_model("bert", "classification"), "classification")
    fleet = fleet_of(4)
    streams = streams_for(fleet, "classification", steps=ROUNDS)
    settings = TrainSettings(OptimizerSettings(), keep_moments=False)
    method = build_method("sl", {"cut": 2}, seed=0)
    played = play(base, method, fleet, streams, rounds=ROUNDS, local_steps=1, settings=settings)

    turns = [(message.round, message.device) for message in played.sent_down if isinstance(message, Assignment)]
    orders = [[device for round, device in turns if round == number] for number in range(ROUNDS)]
    assert all(sorted(order) == sorted(streams) for order in orders)
    assert len({tuple(order) for order in orders}) == ROUNDS

    adapter = base.initial_adapter(0)
    for round, device in turns:
        adapter, _ = plain_training(base, adapter, [streams[device].given[round]], [learning_rate(round, 0)])
    assert all(torch.equal(played.adapter[name], value) for name, value in adapter.items())
