"""The up-and-down round: who says what when, and what happens when somebody says something else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from bases import open_base
from cutlayer.errors import WireError
from cutlayer.fleet.clock import now, run_virtual
from cutlayer.methods.table import build_method
from cutlayer.model.base import Base
from cutlayer.policies.aggregate import Contribution
from cutlayer.policies.order import random_order
from cutlayer.rounds.split import split
from cutlayer.server.server import Server
from cutlayer.server.steps.one_at_a_time import one_device_at_a_time
from cutlayer.state import State
from cutlayer.testing.playground import fleet_of, play, streams_for
from cutlayer.types import DevicePlan, RoundPlan
from cutlayer.wire.messages import Activations, Assignment, Finish, Gradients, Message, Update
from ends import server_for

ModelMaker = Callable[[str, str], Path]
FINISH = Finish("run", 1, "done")


@pytest.fixture(scope="module")
def bert(tiny_model: ModelMaker) -> Base:
    return open_base(tiny_model("bert", "classification"), "classification")


class Script:
    """A link end whose other end says what it was told to, then nothing for ever; it keeps what was said to it."""

    bytes_sent = bytes_received = 0

    def __init__(self, says: Sequence[Message | Callable[[Message], Message]]) -> None:
        self._says, self.heard = list(says), list[Message]()

    async def send(self, message: Message) -> None:
        self.heard.append(message)

    async def receive(self) -> Message:
        await asyncio.sleep(1.0)
        if not self._says:
            await asyncio.sleep(1e9)
        says = self._says.pop(0)
        return says if not callable(says) else says(self.heard[-1])


def round_of() -> Any:
    return split(server_step=one_device_at_a_time(random_order(0)))


# ------------------------------------------------------------------ the server's end


def plan_of(num_devices: int, *, steps: int = 2) -> RoundPlan:
    return RoundPlan(0, tuple(DevicePlan(f"device-{i}", 1, 4, steps) for i in range(num_devices)))


def said(base: Base, name: str, *, steps: int = 2) -> list[Any]:
    """The messages of an honest device in one round."""
    h_BTD, ones_BT = torch.ones(4, 6, 16), torch.ones(4, 6).bool()
    labels = torch.zeros(4, dtype=torch.int32)
    activations = [Activations("run", 0, step, name, h_BTD, ones_BT, labels, 4) for step in range(steps)]
    adapter = {key: base.initial_adapter(0)[key] for key in base.device_names(1)}
    return [*activations, Update("run", 0, name, adapter, 0, 4 * steps, 4 * steps, 0.0, 1.0)]


def run_server(
    base: Base, scripts: dict[str, list[Any]], *, steps: int = 2
) -> tuple[list[Contribution], dict[str, Script], Server]:
    links, server = {name: Script(says) for name, says in scripts.items()}, server_for(base, fleet_of(len(scripts)))
    plan = plan_of(len(scripts), steps=steps)
    contributions = run_virtual(round_of().server_end(server, links, plan))
    return contributions, links, server


def test_a_server_answers_every_step_and_collects_every_update(bert: Base) -> None:
    names = ["device-0", "device-1"]
    contributions, links, server = run_server(bert, {name: said(bert, name) for name in names})
    for name, link in links.items():
        assert [type(message) for message in link.heard] == [Assignment, Gradients, Gradients]
        answers = [message for message in link.heard if isinstance(message, Gradients)]
        assert [(answer.device, answer.step) for answer in answers] == [(name, 0), (name, 1)]
    assert len(contributions) == 2
    tallies = server.ledger.take_tallies()
    assert {name: (tally.steps, tally.samples) for name, tally in tallies.items()} == dict.fromkeys(names, (2, 8))


def wrong(kind: str, base: Base) -> list[Any]:
    honest = said(base, "device-1")
    if kind == "a step twice":
        return [honest[0], honest[0]]
    if kind == "an update too early":
        return [honest[0], honest[2]]
    if kind == "a part twice":
        part = replace(honest[0], micro_batches=2)
        return [part, part]
    if kind == "a step that is not done":
        return [replace(honest[0], micro_batches=2), honest[1]]
    if kind == "activations too many":
        return [honest[0], honest[1], replace(honest[1], step=2)]
    return [Finish("run", 0, "I want to go")]


@pytest.mark.parametrize(
    ("kind", "expected", "got"),
    [
        ("a step twice", "Activations of step 1", "Activations"),
        ("an update too early", "Activations of step 1", "Update"),
        ("a part twice", "Activations of step 0", "Activations"),
        ("a step that is not done", "Activations of step 0", "Activations"),
        ("activations too many", "an Update", "Activations"),
        ("a word of the server's", "Activations of step 0", "Finish"),
    ],
)
def test_a_server_believes_nothing_out_of_turn(kind: str, expected: str, got: str, bert: Base) -> None:
    """And stops at once: the other device is listened to no longer, nothing hangs."""
    with pytest.raises(ExceptionGroup) as group:
        run_server(bert, {"device-0": said(bert, "device-0")[:1], "device-1": wrong(kind, bert)})
    (error,) = group.value.exceptions
    assert isinstance(error, WireError)
    assert f"device device-1: expected {expected}, got {got}. " in str(error)


# ------------------------------------------------------------------ both


def test_the_server_works_while_its_answers_leave(bert: Base) -> None:
    """The next step begins while the bytes of the last answer are still on their way."""
    fleet = fleet_of(4)
    streams = streams_for(fleet, "classification", steps=2)
    played = play(bert, build_method("memsfl", {"order": "fifo", "cut": 1}, seed=0), fleet, streams, rounds=1)
    steps = [event for event in played.events if event.what == "step"]
    downloads = [event for event in played.events if event.what == "download" and event.step is not None]
    overlaps = [
        (step.peer, download.who)
        for step in steps
        for download in downloads
        if step.peer != download.who and step.start_seconds < download.end_seconds < step.end_seconds
    ]
    assert overlaps
    assert all(one.end_seconds <= other.start_seconds for one, other in pairwise(steps))


def test_devices_work_at_the_same_time(bert: Base) -> None:
    fleet = fleet_of(2)
    streams = streams_for(fleet, "classification", steps=1)
    played = play(bert, build_method("memsfl", {"cut": 1}, seed=0), fleet, streams, rounds=1, local_steps=1)
    one, other = (event for event in played.events if event.what == "forward")
    assert one.who != other.who
    assert one.start_seconds < other.end_seconds
    assert other.start_seconds < one.end_seconds


def test_a_rounds_state_is_its_orders(bert: Base) -> None:
    one, other = round_of(), round_of()
    server, names = server_for(bert, fleet_of(2)), ("device-0", "device-1")

    async def program() -> None:
        links = {name: Script(said(bert, name)) for name in names}
        await one.server_end(server, links, plan_of(2))
        assert now() > 0

    run_virtual(program())
    assert one.state() == State({"seed": 0, "num_picks": 4})
    other.load(one.state())
    assert other.state() == one.state()
