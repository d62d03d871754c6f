"""The queries round: the local one by forward passes, of whose adapters only B and the head travel up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bases import open_base
from cutlayer.methods.table import build_method
from cutlayer.model.base import Base
from cutlayer.packing import UNCOMPRESSED, Compression, compression
from cutlayer.policies.queries import FORMS
from cutlayer.rounds.queries import queries
from cutlayer.testing.playground import Played, fleet_of, play, streams_for
from cutlayer.types import Adapter
from cutlayer.wire.messages import Assignment, Update

ROUNDS, STEPS = 2, 2


@pytest.fixture(scope="module", params=["bert", "llama"])
def base(request: pytest.FixtureRequest, tiny_model: Callable[[str, str], Path]) -> Base:
    task = {"bert": "classification", "llama": "causal-lm"}[request.param]
    return open_base(tiny_model(request.param, task), task)


def played(base: Base, *, codecs: Compression = UNCOMPRESSED, devices: int = 2, **options: Any) -> Played:
    fleet = fleet_of(devices)
    streams = streams_for(fleet, base.settings.task, steps=ROUNDS * STEPS)
    method = build_method("prge", {"queries": 2, **options}, seed=0)
    return play(base, method, fleet, streams, rounds=ROUNDS, local_steps=STEPS, compression=codecs, apart=True)


def assert_close(one: Adapter, other: Adapter) -> None:
    for name, value in other.items():
        torch.testing.assert_close(one[name], value, rtol=5e-3, atol=1e-3)


@pytest.mark.parametrize("form", [form for form in FORMS if form != "sequential"])
def test_every_form_is_the_sequential_one(form: str, base: Base) -> None:
    """Up to rounding: losses of one large pass are summed in another order."""
    assert_close(played(base, form=form).adapter, played(base, form="sequential").adapter)


def test_only_what_moves_travels_up(base: Base) -> None:
    run, start = played(base), base.initial_adapter(0)
    a = {name for name in start if ".lora_A." in name}
    for message in run.sent_up:
        assert isinstance(message, Update)
        assert message.adapter.keys() == start.keys() - a
    down = [message for message in run.sent_down if isinstance(message, Assignment)]
    assert all(message.adapter.keys() == start.keys() for message in down)
    assert all(torch.equal(run.adapter[name], start[name]) for name in a)
    assert not any(torch.equal(run.adapter[name], start[name]) for name in start.keys() - a)


def test_what_was_sent_is_averaged(base: Base) -> None:
    """By what each device trained."""
    run = played(base)
    last = [message for message in run.sent_up if isinstance(message, Update) and message.round == ROUNDS - 1]
    whole = sum(update.weight for update in last)
    for name in last[0].adapter:
        mean = sum(update.adapter[name].double() * (update.weight / whole) for update in last)
        assert torch.equal(run.adapter[name], mean.float())  # type: ignore[union-attr]


def test_packed_updates_are_differences_to_what_moves(base: Base) -> None:
    exact, packed = played(base), played(base, codecs=compression(adapters="int8"))
    sizes = [sum(record.bytes_up for record in run.logbook.history.records) for run in (packed, exact)]
    assert sizes[0] < 0.6 * sizes[1]
    for name, value in exact.adapter.items():
        if ".lora_A." not in name:
            change = float((value - base.initial_adapter(0)[name]).norm())
            assert float((packed.adapter[name] - value).norm()) < max(0.5 * change, 1e-2)


def test_every_query_shares_the_batch(base: Base) -> None:
    asked = [message.plan.batch_size for message in played(base).sent_down if isinstance(message, Assignment)]
    assert set(asked) == {2}, "of 4, at two queries"


def test_it_is_a_round_of_devices_alone() -> None:
    one_round = queries()
    assert one_round.divisible
    assert not any((one_round.equal_cuts, one_round.together, one_round.keeps_activations, one_round.cuts_batches))
    assert one_round.shape.name == "queries"
