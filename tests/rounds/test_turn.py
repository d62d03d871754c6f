"""One device's part of a round: what may come in which order, what is told, who counts, and who has left."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from bases import open_base
from cutlayer.errors import DeviceGone, WireError
from cutlayer.fleet.clock import run_virtual
from cutlayer.model.base import Base
from cutlayer.rounds.turn import Turn
from cutlayer.server.ledger import Part
from cutlayer.server.owners import one_per_device
from cutlayer.server.server import Server
from cutlayer.testing.playground import fleet_of
from cutlayer.testing.tiny import random_batch
from cutlayer.types import DevicePlan, RoundPlan
from cutlayer.wire.messages import Activations, Assignment, Close, Gradients, Message, Update
from ends import activations_for, server_for

ModelMaker = Callable[[str, str], Path]
GONE = DeviceGone("unplugged", device="device-0", reason="unplugged")
CLOSE = Close("run", 0, wanted=True, reason="its deadline has passed")


@pytest.fixture(scope="module")
def bert(tiny_model: ModelMaker) -> Base:
    return open_base(tiny_model("bert", "classification"), "classification")


class Script:
    """A link end that brings what it was told to, notes what is sent, and fails where an error stands."""

    bytes_sent = bytes_received = 0

    def __init__(self, says: Sequence[Message | Exception], *, sends: Exception | None = None) -> None:
        self._says, self._sends = list(says), sends
        self.heard: list[Message] = []

    async def send(self, message: Message) -> None:
        if self._sends is not None:
            raise self._sends
        self.heard.append(message)

    async def receive(self) -> Message:
        await asyncio.sleep(1.0)
        says = self._says.pop(0)
        if isinstance(says, Exception):
            raise says
        return says


@dataclass
class Held:
    """The outcome of a turn."""

    stayed: bool
    turn: Turn
    server: Server
    told: list[Message]
    taken: list[tuple[int, int]] = field(default_factory=list)
    also: list[str] = field(default_factory=list)


def hold(base: Base, link: Script, *, steps: int = 2, micro_batches: int = 1, alone: bool = False) -> Held:
    """Holds a device's turn in a round of it and another; what is taken in, and what is called on the way."""
    device = DevicePlan("device-0", 1, 4, steps, micro_batches=micro_batches)
    server = server_for(base, fleet_of(2))
    server.begin(RoundPlan(0, (device, DevicePlan("device-1", 1, 4, steps))), one_per_device)
    turn = Turn(server, link, device, *() if alone else (Activations,))
    held = Held(False, turn, server, link.heard)

    async def take(message: Activations) -> None:
        held.taken.append((message.step, message.micro_batch))

    async def closing() -> None:
        held.also.append(f"closing after {len(held.taken)}")

    async def program() -> None:
        held.stayed = await turn.hold(take, closing=closing, gone=lambda: held.also.append("gone"))

    run_virtual(program())
    return held


def sent(base: Base, step: int, micro_batch: int = 0, of: int = 1) -> Activations:
    whole = activations_for(base, random_batch("classification", seed=step), 1, step=step)
    return replace(whole, micro_batch=micro_batch, micro_batches=of)


def update(*, samples: int = 8, steps: int = 0) -> Update:
    return Update("run", 0, "device-0", {}, steps, samples=samples, weight=samples, loss=0.0, busy_seconds=0.0)


def part(held: Held) -> Part:
    found = held.server.ledger.part("device-0")
    assert found is not None
    return found


def test_steps_in_their_order_and_then_the_update(bert: Base) -> None:
    held = hold(bert, Script([sent(bert, 0), sent(bert, 1), update()]))
    assert held.stayed
    assert held.taken == [(0, 0), (1, 0)]
    assert [type(message) for message in held.told] == [Assignment]
    assert (held.turn.step, held.turn.all_steps_came, held.turn.late) == (2, True, False)
    assert part(held).done
    assert held.server.ledger.counted == {"device-0": 0}
    assert held.also == []


def test_parts_of_a_step_come_in_their_order_too(bert: Base) -> None:
    says = [sent(bert, step, number, of=3) for step in range(2) for number in range(3)]
    held = hold(bert, Script([*says, update()]), micro_batches=3)
    assert held.taken == [(step, number) for step in range(2) for number in range(3)]
    assert held.turn.all_steps_came


def test_a_device_that_trains_alone_sends_its_update_and_no_more(bert: Base) -> None:
    held = hold(bert, Script([update(steps=2)]), alone=True)
    assert held.stayed
    assert (held.turn.all_steps_came, part(held).done, part(held).steps) == (True, True, 2)


WORDS: dict[str, Callable[[Base], Message]] = {
    "step 0": lambda base: sent(base, 0),
    "step 1": lambda base: sent(base, 1),
    "step 2": lambda base: sent(base, 2),
    "part 0": lambda base: sent(base, 0, 0, of=2),
    "part 1": lambda base: sent(base, 0, 1, of=2),
    "update": lambda _base: update(),
    "gradients": lambda _base: Gradients("run", 0, 0, "device-0", None, 0.5),
}


@pytest.mark.parametrize(
    ("says", "expected", "got"),
    [
        (["update"], "Activations of step 0", "Update"),
        (["step 0", "update"], "Activations of step 1", "Update"),
        (["step 1"], "Activations of step 0", "Activations"),
        (["step 0", "step 0"], "Activations of step 1", "Activations"),
        (["step 0", "step 1", "step 2"], "an Update", "Activations"),
        (["part 1"], "Activations of step 0", "Activations"),
        (["part 0", "part 0"], "Activations of step 0", "Activations"),
        (["part 0", "step 1"], "Activations of step 0", "Activations"),
        (["part 0", "update"], "Activations of step 0", "Update"),
        (["gradients"], "Activations of step 0", "Gradients"),
    ],
    ids=str,
)
def test_what_has_no_place_here_is_an_error(says: list[str], expected: str, got: str, bert: Base) -> None:
    with pytest.raises(WireError, match=f"device device-0: expected {expected}, got {got}\\."):
        hold(bert, Script([WORDS[word](bert) for word in says]))


@pytest.mark.parametrize("word", ["step 0", "gradients"])
def test_nothing_but_an_update_comes_from_who_trains_alone(word: str, bert: Base) -> None:
    with pytest.raises(WireError, match="device device-0: expected an Update, got"):
        hold(bert, Script([WORDS[word](bert), update()]), alone=True)


# ------------------------------------------------------------------ told to end early


@pytest.mark.parametrize("before", [0, 1, 2])
def test_a_round_that_closes_tells_the_device_and_takes_what_is_done(before: int, bert: Base) -> None:
    """The shape settles what is under way first; then the device hears it, and its update counts as it is."""
    held = hold(bert, Script([*(sent(bert, step) for step in range(before)), CLOSE, update()]))
    assert held.stayed
    assert held.turn.late
    assert [type(message) for message in held.told] == [Assignment, Close]
    assert held.also == [f"closing after {before}"]
    assert held.server.ledger.take_tallies()["device-0"].late
    assert part(held).done


def test_what_was_on_its_way_when_the_round_closed_still_comes_first(bert: Base) -> None:
    held = hold(bert, Script([sent(bert, 0), CLOSE, sent(bert, 1), update()]))
    assert held.taken == [(0, 0), (1, 0)]
    assert held.turn.late
    with pytest.raises(WireError, match="expected Activations of step 1, got Activations"):
        hold(bert, Script([sent(bert, 0), CLOSE, sent(bert, 0), update()]))


def test_who_trains_alone_hears_it_too(bert: Base) -> None:
    held = hold(bert, Script([CLOSE, update(steps=1, samples=4)]), alone=True)
    assert [type(message) for message in held.told] == [Assignment, Close]
    assert held.turn.late
    assert part(held).steps == 1


def test_an_update_of_no_sample_counts_for_nothing(bert: Base) -> None:
    """A device that had done nothing yet has stayed, but it has left the round."""
    held = hold(bert, Script([CLOSE, update(samples=0)]))
    assert held.stayed
    assert (part(held).done, part(held).gone) == (False, True)
    assert held.server.ledger.counted == {}


# ------------------------------------------------------------------ gone


@pytest.mark.parametrize("says", [[GONE], ["step 0", GONE], ["step 0", "step 1", GONE], [CLOSE, GONE]], ids=str)
def test_a_device_that_goes_leaves_the_round(says: list[Any], bert: Base) -> None:
    held = hold(bert, Script([WORDS[word](bert) if isinstance(word, str) else word for word in says]))
    assert not held.stayed
    assert held.also[-1] == "gone"
    assert (part(held).done, part(held).gone) == (False, True)
    assert held.server.ledger.counted == {}


def test_one_that_goes_before_it_hears_of_the_round_has_left_it(bert: Base) -> None:
    held = hold(bert, Script([], sends=GONE))
    assert not held.stayed
    assert part(held).gone


def test_an_error_of_ours_is_not_taken_for_a_device_that_left(bert: Base) -> None:
    with pytest.raises(RuntimeError, match="a mistake"):
        hold(bert, Script([RuntimeError("a mistake")]))
