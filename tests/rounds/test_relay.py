"""The relay: one device after another, each from where the last one ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from bases import open_base
from cutlayer.methods.table import build_method
from cutlayer.model.base import Base
from cutlayer.rounds.relay import relay
from cutlayer.state import State, Stateless
from cutlayer.testing.playground import fleet_of, play, streams_for
from cutlayer.types import Adapter
from cutlayer.wire.messages import Assignment, Update
from ends import Suspecting

ModelMaker = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def bert(tiny_model: ModelMaker) -> Base:
    return open_base(tiny_model("bert", "classification"), "classification")


def test_each_starts_where_the_last_one_ended(bert: Base) -> None:
    fleet = fleet_of(3)
    streams = streams_for(fleet, "classification", steps=4)
    played = play(bert, build_method("vanilla", {"cut": 2}, seed=0), fleet, streams, rounds=2, local_steps=2)
    started = [message for message in played.sent_down if isinstance(message, Assignment)]
    ended = [message for message in played.sent_up if isinstance(message, Update)]
    names = [device.name for device in fleet.devices]
    assert [message.device for message in started] == [message.device for message in ended] == names * 2
    before: Adapter = bert.initial_adapter(0)
    for start, end in zip(started, ended, strict=True):
        assert all(torch.equal(value, before[name]) for name, value in start.adapter.items())
        assert any(not torch.equal(value, before[name]) for name, value in end.adapter.items())
        before = dict(end.adapter)
    assert all(torch.equal(played.adapter[name], value) for name, value in before.items())


def test_one_device_works_at_a_time(bert: Base) -> None:
    fleet = fleet_of(3)
    streams = streams_for(fleet, "classification", steps=2)
    played = play(bert, build_method("vanilla", {"cut": 1}, seed=0), fleet, streams, rounds=1, local_steps=2)
    work = [event for event in played.events if event.what in ("forward", "backward", "step")]
    assert len(work) == 3 * 2 * 3
    assert all(one.end_seconds <= other.start_seconds for one, other in pairwise(work))
    whose = [event.peer or event.who for event in work]
    assert whose == sorted(whose)


def test_a_round_hands_over_where_the_last_one_left_off(bert: Base) -> None:
    """One contribution that counts for all; the broadcast is the aggregate's to replace."""
    fleet = fleet_of(2)
    streams = streams_for(fleet, "classification", steps=1)
    played = play(bert, build_method("vanilla", {"cut": 1}, seed=0), fleet, streams, rounds=1, local_steps=1)
    ((contribution,),) = played.contributions
    assert contribution.adapter.keys() == bert.shapes.keys()
    assert set(contribution.weights.values()) == {1.0}
    assert all(torch.equal(contribution.adapter[name], value) for name, value in played.adapter.items())


def test_the_broadcast_stays_until_the_aggregate_replaces_it(bert: Base) -> None:
    """An aggregate with momentum needs the adapter that the round began with."""
    from cutlayer.methods.method import Method

    broadcasts: list[Adapter] = []

    class Noting(Stateless):
        name, mixed_ranks = "noting", True

        def __call__(self, broadcast: Adapter, contributions: object, plan: object) -> Adapter:  # noqa: ARG002
            broadcasts.append(broadcast)
            return broadcast

    built = build_method("vanilla", {"cut": 1}, seed=0)
    fleet = fleet_of(2)
    streams = streams_for(fleet, "classification", steps=1)
    play(bert, Method(built.plan, built.round, Noting()), fleet, streams, rounds=1, local_steps=1)
    start = bert.initial_adapter(0)
    assert all(torch.equal(broadcasts[0][name], value) for name, value in start.items())


@pytest.mark.parametrize("trial", [0, 1])
def test_poison_is_not_passed_on(trial: int, bert: Base) -> None:
    """The first turn is tried, as far as it goes and with room; the next begins where the round did, and with nobody
    before it is tried as well. The adapter is that of the fleet without who was refused."""
    fleet, method = fleet_of(3), build_method("vanilla", {"cut": 2}, seed=0)
    streams = streams_for(fleet, "classification", steps=1)
    suspecting = Suspecting(method.round, trial)
    played = play(bert, replace(method, round=suspecting), fleet, streams, rounds=1, local_steps=1)
    assert [*suspecting.refused] == ["device-0"]
    assert "with room to spare" in str(suspecting.refused["device-0"])
    [row] = played.rows
    assert [row["devices"][device.name]["samples"] > 0 for device in fleet.devices] == [False, True, True]
    rest = fleet.model_copy(update={"devices": fleet.devices[1:]})
    streams = streams_for(fleet, "classification", steps=1)
    expected = play(bert, build_method("vanilla", {"cut": 2}, seed=0), rest, streams, rounds=1, local_steps=1)
    assert all(torch.equal(value, expected.adapter[name]) for name, value in played.adapter.items())


@pytest.mark.parametrize(("far", "trials"), [(3.0, 2), (0.5, 6)])
def test_a_turn_is_tried_that_goes_further_than_those_before(
    far: float, trials: int, bert: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By so many medians: AdamW's first steps are all as long as each other."""
    monkeypatch.setattr("cutlayer.rounds.relay.FAR", far)
    fleet, method = fleet_of(3), build_method("vanilla", {"cut": 2}, seed=0)
    suspecting, streams = Suspecting(method.round), streams_for(fleet, "classification", steps=1)
    play(bert, replace(method, round=suspecting), fleet, streams, rounds=1, local_steps=1)
    assert next(suspecting.trials) == trials


def test_it_carries_nothing_from_round_to_round() -> None:
    round = relay()
    assert round.state() == State()
    round.load(State())
