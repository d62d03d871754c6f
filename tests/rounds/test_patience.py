"""Rounds that go on when devices leave or are late: every method, on the virtual clock."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bases import open_base
from cutlayer.errors import StragglersError
from cutlayer.methods.table import TABLE, build_method
from cutlayer.model.adapter import LoraSettings
from cutlayer.model.base import Base
from cutlayer.types import Adapter
from cutlayer.wire.link import Link
from playground import LeavingLink, ListedBatches, Played, fleet_of, learning_rate, plain_training, play, streams_for

METHODS = sorted(TABLE)
MEANS = ["fedlora", "memsfl"]
"""Those whose round is the mean of plain trainings (`test_every_method.py`)."""
SPLIT = [name for name in METHODS if {"cut", "window"} & TABLE[name].options.keys()]
"""Those whose devices say something in every step."""
SHARED = ["mergesfl", "sfl_v2", "splitlora", "splitfrozen", "centralized"]
"""Those with a server adapter that all devices train."""
ROUNDS, STEPS = 2, 3
ModelMaker = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def bert(tiny_model: ModelMaker) -> Base:
    return open_base(tiny_model("bert", "classification"), "classification", lora=LoraSettings(targets=("all-linear",)))


def streams() -> dict[str, ListedBatches]:
    return streams_for(fleet_of(3), "classification", steps=ROUNDS * STEPS + 2)


def leaving(*devices: str, round: int = 0, after: int = 0) -> Callable[[str, Link], Link]:
    """These devices leave that round after so many of their messages."""

    def link_of(device: str, link: Link) -> Link:
        return LeavingLink(link, device, round=round, after=after) if device in devices else link

    return link_of


def run(base: Base, method: str, link_of: Callable[[str, Link], Link], *, rounds: int = ROUNDS) -> Played:
    fleet = fleet_of(3)
    made = build_method(method, {}, seed=0)
    return play(base, made, fleet, streams(), rounds=rounds, local_steps=STEPS, link_of=link_of)


def weighed(trained: list[Adapter], weights: list[int]) -> Adapter:
    total = sum(weights)
    return {
        name: sum(part[name].double() * (weight / total) for part, weight in zip(trained, weights, strict=True)).float()
        for name in trained[0]
    }


@pytest.mark.parametrize("after", range(STEPS + 1))
@pytest.mark.parametrize("method", METHODS)
def test_a_round_goes_on_without_a_device(method: str, after: int, bert: Base) -> None:
    """Wherever in its round the device leaves: before it begins, between two steps, before its update."""
    played = run(bert, method, leaving("device-1", after=after))
    first, second = (
        {record.device: record for record in played.logbook.history.records if record.round == round}
        for round in range(ROUNDS)
    )
    says = STEPS + 1 if method in SPLIT else 1  # messages in a round
    assert first["device-1"].late == (after < says)
    if after < says:
        assert (first["device-1"].samples, first["device-1"].steps, first["device-1"].weight) == (0, 0, 0)
        assert played.rows[0]["late"] == 1
        assert played.rows[0]["loss"] > 0
    assert played.rows[1]["late"] == 0
    for record in (first["device-0"], first["device-2"], *second.values()):
        assert record.samples > 0
        assert record.steps == STEPS
    assert played.rows[0]["samples"] == sum(record.samples for record in first.values())


@pytest.mark.parametrize("method", MEANS)
def test_who_left_is_not_in_the_mean(method: str, bert: Base) -> None:
    """Bit for bit the mean of the others, in the round it left; in the next it begins from that mean."""
    played = run(bert, method, leaving("device-1", after=1 if method == "memsfl" else 0), rounds=1)
    given, rates = streams(), [learning_rate(0, step) for step in range(STEPS)]
    trained, weights = [], []
    for name in ("device-0", "device-2"):
        batches = [given[name].next() for _ in range(STEPS)]
        trained.append(plain_training(bert, bert.initial_adapter(0), batches, rates)[0])
        weights.append(sum(batch.weight for batch in batches))
    expected = weighed(trained, weights)
    assert not [name for name in expected if not torch.equal(expected[name], played.adapter[name])]


@pytest.mark.parametrize("method", METHODS)
def test_a_round_that_everybody_leaves_says_what_to_do(method: str, bert: Base) -> None:
    fleet = fleet_of(3)
    names = [device.name for device in fleet.devices]
    with pytest.raises(ExceptionGroup) as caught:
        run(bert, method, leaving(*names, round=1))
    (error,) = caught.value.exceptions
    assert isinstance(error, StragglersError)
    assert str(error).startswith("round 1: expected an update from one of device-0, device-1, device-2, got none: ")


@pytest.mark.parametrize("method", SHARED)
def test_what_a_shared_adapter_learnt_stays(method: str, bert: Base) -> None:
    """It cannot be taken apart. What it learnt from a device that left is not weighed, and the others' is."""
    left, never = run(bert, method, leaving("device-1", after=2)), run(bert, method, leaving("device-1"))
    assert left.rows[0]["samples"] == never.rows[0]["samples"]
    assert any(not torch.equal(left.adapter[name], never.adapter[name]) for name in left.adapter)


@pytest.mark.parametrize("method", ["memsfl", "sl"])
def test_a_server_adapter_of_one_device_is_forgotten_with_its_moments(method: str, bert: Base) -> None:
    """Whether a device left before its round or within it is the same for everybody, in all rounds that follow."""

    def adapter(after: int) -> Adapter:
        fleet = fleet_of(3)
        given = streams()
        batches = given["device-1"].all
        # the steps that were answered in the round that it leaves are gone: give it the same samples in the next
        given["device-1"] = ListedBatches([*batches[: max(0, after - 1)], *batches])
        made = build_method(method, {"cut": 0}, seed=0)  # devices train nothing of their own: moments are the server's
        link_of = leaving("device-1", after=after)
        return play(bert, made, fleet, given, rounds=ROUNDS, local_steps=STEPS, link_of=link_of).adapter

    expected = adapter(0)
    for after in (1, 2):
        left = adapter(after)
        assert not [name for name in expected if not torch.equal(expected[name], left[name])]
