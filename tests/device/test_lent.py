"""A server that asks for more than the owner allows hears so, and nothing of a sample has left the device by then.

Shapes: B batch, T tokens, D hidden size.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cutlayer.data.source import Columns
from cutlayer.device.lent import Lending, Lent, LentSpans
from cutlayer.device.limits import Limits
from cutlayer.device.sent_log import SentLog
from cutlayer.device.shape import shape_by_name
from cutlayer.errors import Declined
from cutlayer.fleet.clock import now, run_virtual
from cutlayer.policies.spans import Through
from cutlayer.types import DevicePlan
from cutlayer.wire.messages import (
    Activations,
    Assignment,
    Close,
    HeldOut,
    Judge,
    Judged,
    Message,
    SpanAnswer,
    SpanCall,
    Update,
)


class Ends:
    """The session below: what is said to the device, and what has left it."""

    bytes_sent = bytes_received = 0

    def __init__(self, says: list[Message]) -> None:
        self.says, self.left = list(says), list[Message]()

    async def send(self, message: Message) -> None:
        self.left.append(message)

    async def receive(self) -> Message:
        if not self.says:
            await asyncio.sleep(1e9)
        return self.says.pop(0)


def assignment(round: int = 0, **plan: Any) -> Assignment:
    return Assignment("run", round, "pi", replace(DevicePlan("pi", cut=2), **plan), (0.1,), {})


def judge(round: int = 0, classes: int = 1, **plan: Any) -> Judge:
    return Judge("run", round, "pi", replace(DevicePlan("pi", cut=2), **plan), {}, classes)


def activations(*, labels: bool = True) -> Activations:
    h_BTD, mask_BT = torch.zeros(2, 3, 4), torch.ones(2, 3, dtype=torch.bool)
    return Activations("run", 0, 0, "pi", h_BTD, mask_BT, torch.zeros(2, dtype=torch.int32) if labels else None, 2)


def held_out(*, labels: bool = True) -> HeldOut:
    one = activations(labels=labels)
    return HeldOut("run", 0, 0, "pi", one.h_BTD, one.mask_BT, one.labels, 2)


UPDATE = Update("run", 0, "pi", {}, 0, 2, 2, 0.0, 0.0)
JUDGED = Judged("run", 0, "pi", 2, 2, 0.0, torch.zeros(3, 1, dtype=torch.int64))


class Stage:
    """A device's end, of a run of this shape."""

    def __init__(self, folder: Path, shape: str, limits: Limits, says: list[Message]) -> None:
        self.told = list[str]()
        self.taken = set[tuple[str, int]]()
        self.below = Ends(says)
        log = SentLog(folder, lambda: 0.0)
        self.lending = Lending(limits, shape_by_name(shape), log, self.told.append, self.taken)
        self.link = Lent(self.below, self.lending)

    @property
    def log(self) -> str:
        return self.lending.log.path.read_text()


THROUGH_ONE = DevicePlan("pi", cut=4, top=4).having(Through(1, ("a",), (1,), (4,), ("",)))
"""Others run all blocks but the first."""


@pytest.fixture
def stage(tmp_path: Path) -> Callable[..., Stage]:
    return lambda shape, limits, *says: Stage(tmp_path, shape, limits, list(says))


@pytest.mark.parametrize(
    ("shape", "limits", "asked"),
    [
        ("split", Limits(least_blocks=2), assignment(cut=1)),
        ("split", Limits(least_blocks=1), assignment(cut=0)),
        ("split", Limits(least_blocks=2), judge(cut=1)),
        ("layers", Limits(least_blocks=3), assignment(cut=2)),
        ("u-shape", Limits(least_blocks=2), assignment(cut=1, top=3)),
        ("swarm", Limits(least_blocks=2), replace(assignment(), plan=THROUGH_ONE)),
        ("split", Limits.read(never="labels"), assignment(cut=2)),
        ("split", Limits.read(never="labels"), judge(cut=2)),
        ("split", Limits.read(never="activations"), assignment(cut=2)),
        ("local", Limits.read(never="counts"), judge(cut=4, top=4, classes=3)),
        ("split", Limits(until=10.0, clock=lambda: 10.0), assignment(cut=2)),
    ],
)
def test_a_question_beyond_never_reaches_the_device(
    shape: str, limits: Limits, asked: Assignment | Judge, stage: Callable[..., Stage]
) -> None:
    on = stage(shape, limits, asked)
    with pytest.raises(Declined, match="expected"):
        run_virtual(on.link.receive())
    assert on.below.left == []


@pytest.mark.parametrize(
    ("shape", "asked"),
    [
        ("u-shape", assignment(cut=2)),
        ("u-shape", judge(cut=2)),
        ("local", judge(cut=2)),
        ("local", judge(cut=0, top=3)),
        ("swarm", judge(cut=1)),
    ],
    ids=str,
)
def test_a_shape_is_held_to_its_promise_whatever_the_owner_says(
    shape: str, asked: Assignment | Judge, stage: Callable[..., Stage]
) -> None:
    """A plan of labels at home that gives the head away: else the device would send what was never to leave."""
    with pytest.raises(Declined, match="promises"):
        run_virtual(stage(shape, Limits(), asked).link.receive())


def test_a_plan_that_changes_in_the_middle_of_a_run(stage: Callable[..., Stage]) -> None:
    on = stage("split", Limits(least_blocks=2), assignment(0, cut=2), assignment(1, cut=1))

    async def play() -> None:
        await on.link.receive()
        await on.link.send(activations())
        await on.link.send(UPDATE)
        with pytest.raises(Declined, match="after 2 blocks or more"):
            await on.link.receive()

    run_virtual(play())
    assert [type(message) for message in on.below.left] == [Activations, Update]


@pytest.mark.parametrize(
    ("shape", "asked", "message"),
    [
        ("local", assignment(cut=4, top=4), activations()),
        ("local", judge(cut=4, top=4), held_out()),
        ("u-shape", assignment(cut=1, top=3), activations(labels=True)),
        ("u-shape", judge(cut=1, top=3), held_out(labels=True)),
    ],
)
def test_a_fault_of_our_own_sends_no_more_than_the_plan_lets(
    shape: str, asked: Message, message: Message, stage: Callable[..., Stage]
) -> None:
    on = stage(shape, Limits(), asked)

    async def play() -> None:
        await on.link.receive()
        with pytest.raises(Declined, match="round's plan"):
            await on.link.send(message)

    run_virtual(play())
    assert on.below.left == []


def test_the_time_is_over_in_the_middle_of_a_round(stage: Callable[..., Stage]) -> None:
    """Whether the device sends, or only waits."""
    on = stage("split", Limits(until=100.0, clock=now), assignment(cut=2))

    async def play() -> None:
        await on.link.receive()
        await on.link.send(activations())
        with pytest.raises(Declined, match="--until"):
            await on.link.receive()
        assert now() == 100.0
        with pytest.raises(Declined, match="--until"):
            await on.link.send(activations())

    run_virtual(play())
    assert len(on.below.left) == 1


def test_rounds_count_once_each_and_for_good(stage: Callable[..., Stage]) -> None:
    limits = Limits(rounds=2)
    on = stage("split", limits, *(assignment(round) for round in (0, 0, 1, 1, 2)))

    async def play() -> None:
        for _ in range(4):
            await on.link.receive()
        with pytest.raises(Declined, match="at most 2 rounds"):
            await on.link.receive()

    run_virtual(play())
    again = stage("split", limits, assignment(2))
    with pytest.raises(Declined, match="at most 2 rounds"):
        again.lending.read(Columns(text="text", label="label"), 6, counts=True)


def test_rounds_of_another_run_count_in_this_process(stage: Callable[..., Stage], tmp_path: Path) -> None:
    on = stage("split", Limits(rounds=1), assignment(0))
    other = Lending(
        Limits(rounds=1), shape_by_name("split"), SentLog(tmp_path / "other", lambda: 0.0), on.told.append, on.taken
    )
    run_virtual(on.link.receive())
    with pytest.raises(Declined, match="at most 1 rounds"):
        other.open(replace(assignment(0), run="renamed"))


def test_what_leaves_is_said_before_the_first_byte_and_written_down(stage: Callable[..., Stage]) -> None:
    on = stage("split", Limits(least_blocks=1), judge(0), assignment(0), assignment(1), Close("run", 1, True, "late"))

    async def play() -> None:
        on.lending.read(Columns(text="text", label="sentiment"), 6, counts=True)
        assert "how many samples there are (6), and of each class" in on.told[0]
        assert "the labels (column 'sentiment')" in on.told[0]
        await on.link.receive()
        await on.link.send(held_out())
        await on.link.send(JUDGED)
        for _ in range(2):
            await on.link.receive()
            await on.link.send(activations())
            await on.link.send(activations())
            await on.link.send(UPDATE)
        await on.link.receive()

    run_virtual(play())
    assert len(on.told) == 3, "once at the beginning, and where it changes"
    assert "hidden states of column 'text' after 2 blocks, with labels (column 'sentiment')" in on.told[2]
    first, *_ = [line for line in on.log.splitlines() if "round 1: sent" in line and "judging" not in line]
    assert "2 x hidden states with labels (4 samples, " in first
    assert "1 x its adapter" in first
    assert on.log.count("judging before round 1") == 2
    assert on.log.count("what may leave") == 3


def test_columns_that_were_found_by_their_names_are_held_too(stage: Callable[..., Stage]) -> None:
    """A server that names none leaves it to the device to find some."""
    on = stage("split", Limits.read(text="text"))
    with pytest.raises(Declined, match="'messages' as messages"):
        on.lending.read(Columns(messages="messages"), 6, counts=False)
    on.lending.read(Columns(text="text"), 6, counts=False)
    assert "the labels (the tokens to predict, of column 'text')" in on.told[0]


class Answering:
    """Machines that run blocks (`Spans`)."""

    bytes_sent = bytes_received = 0

    def __init__(self) -> None:
        self.asked = list[SpanCall]()

    async def ask(self, span: str, address: str, call: SpanCall) -> SpanAnswer:  # noqa: ARG002
        self.asked.append(call)
        return SpanAnswer("run", 0, 0, "pi", call.h_BTD, None, {})


def test_machines_that_run_blocks_are_sent_no_more_than_the_server(stage: Callable[..., Stage]) -> None:
    through = DevicePlan("pi", cut=4, top=4).having(Through(2, ("a",), (2,), (4,), ("",)))
    on = stage("swarm", Limits(least_blocks=2), replace(assignment(), plan=through))
    spans, one = Answering(), activations()
    way = LentSpans(spans, on.lending)

    def call(first: int) -> SpanCall:
        return SpanCall("run", 0, 0, "pi", first, 4, one.h_BTD, one.mask_BT, None, below=False, tensors={})

    async def play() -> None:
        with pytest.raises(Declined, match="round's plan"):
            await way.ask("a", "", call(2))
        await on.link.receive()
        await way.ask("a", "", call(2))
        with pytest.raises(Declined, match="after 2 blocks or more"):
            await way.ask("a", "", call(1))

    run_virtual(play())
    assert [one.first for one in spans.asked] == [2]
    on.lending.log.end()
    assert "1 x hidden states and the adapter of blocks 2 to 3 to a at " in on.log
