"""Nothing is shared: every device ends where plain training of its own batches ends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bases import open_base
from cutlayer.methods.table import build_method
from cutlayer.testing.playground import fleet_of, learning_rate, plain_training, play, streams_for
from cutlayer.wire.messages import Update

ModelMaker = Callable[[str, str], Path]
ROUNDS, STEPS = 3, 2


@pytest.mark.parametrize(("family", "task"), [("bert", "classification"), ("llama", "causal-lm")])
def test_every_device_is_plain_training_of_its_own(family: str, task: str, tiny_model: ModelMaker) -> None:
    base = open_base(tiny_model(family, task), task)
    fleet = fleet_of(3)
    streams = streams_for(fleet, task, steps=ROUNDS * STEPS)
    played = play(base, build_method("local_only", {}, seed=0), fleet, streams, rounds=ROUNDS, local_steps=STEPS)
    last = {update.device: update for update in played.sent_up if isinstance(update, Update)}
    rates = [learning_rate(round, step) for round in range(ROUNDS) for step in range(STEPS)]
    for name, stream in streams.items():
        plain, _ = plain_training(base, base.initial_adapter(0), stream.given, rates)
        assert plain.keys() == last[name].adapter.keys()
        assert [key for key, value in plain.items() if not torch.equal(value, last[name].adapter[key])] == []
