"""Calls: every node once, again after its program died, never after it declined."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping

import pytest

from cutlayer.errors import JoinError, Refused
from cutlayer.fleet.clock import run_virtual
from cutlayer.flower.call import Call
from cutlayer.flower.calls import LOOK_SECONDS, MOST_CALLS, Calls, Reply
from cutlayer.flower.guests import Guests

OVER = Reply()
DIED = Reply("killed", died=True)


class Fake:
    """Flower with some nodes."""

    def __init__(self, *nodes: int) -> None:
        self.there = list(nodes)
        self.sent: list[tuple[int, str]] = []
        self.ended: dict[str, Reply] = {}

    def nodes(self) -> Collection[int]:
        return list(self.there)

    def send(self, calls: Mapping[int, Call]) -> Mapping[int, str]:
        names = {node: f"{node}/{len(self.sent) + i}" for i, node in enumerate(calls)}
        self.sent += [(node, call.token) for node, call in calls.items()]
        return names

    def replies(self, calls: Collection[str]) -> Mapping[str, Reply]:
        return {call: self.ended.pop(call) for call in calls if call in self.ended}

    def last(self, node: int) -> str:
        """The name by which the node's last call is known."""
        index = max(i for i, (called, _) in enumerate(self.sent) if called == node)
        return f"{node}/{index}"

    def called(self) -> list[int]:
        return [node for node, _ in self.sent]


class World:
    """Calls that are kept for some looks."""

    def __init__(self, *nodes: int) -> None:
        self.flower, self.guests, self.said = Fake(*nodes), Guests(), list[str]()
        self.calls = Calls(self.flower, self.guests, lambda token: Call("a:1", "ca", token), self.said.append)

    async def looks(self, number: int) -> None:
        """As many looks, of a keeper that goes on."""
        if not hasattr(self, "keeping"):
            self.keeping = asyncio.create_task(self.calls.keep())
        await asyncio.wait([self.keeping], timeout=number * LOOK_SECONDS + 0.1)
        if self.keeping.done():
            self.keeping.result()


def test_each_node_is_called_once_and_late_ones_when_they_come() -> None:
    world = World(1, 2)

    async def play() -> None:
        await world.looks(3)
        assert world.flower.called() == [1, 2]
        world.flower.there.append(3)
        await world.looks(2)
        assert world.flower.called() == [1, 2, 3]
        assert len({token for _, token in world.flower.sent}) == 3

    run_virtual(play())


def test_a_device_whose_program_died_is_called_again_with_another_token() -> None:
    world = World(1, 2)

    async def play() -> None:
        await world.looks(1)
        world.flower.ended[world.flower.last(1)] = DIED
        await world.looks(2)
        assert world.flower.called() == [1, 2, 1]
        (_, first), _, (_, second) = world.flower.sent
        with pytest.raises(Refused):
            world.guests.admit("pi", first)
        world.guests.admit("pi", second)

    run_virtual(play())


def test_one_that_dies_as_often_is_left_alone() -> None:
    world = World(1, 2)

    async def play() -> None:
        await world.looks(1)
        for _ in range(MOST_CALLS + 2):
            world.flower.ended[world.flower.last(1)] = DIED
            await world.looks(2)
        assert world.flower.called().count(1) == MOST_CALLS

    run_virtual(play())


def test_one_that_declined_is_not_called_again_and_says_why() -> None:
    world = World(1, 2)

    async def play() -> None:
        await world.looks(1)
        world.flower.ended[world.flower.last(1)] = Reply("data: expected a file, got none.")
        await world.looks(3)
        assert world.flower.called() == [1, 2]
        assert any("expected a file" in line for line in world.said)

    run_virtual(play())


def test_where_everybody_declined_the_run_ends_with_the_reason() -> None:
    world = World(1)

    async def play() -> None:
        await world.looks(1)
        world.flower.ended[world.flower.last(1)] = Reply("data: expected a file, got none.")
        with pytest.raises(JoinError, match=r"got none of 1.*expected a file"):
            await world.looks(3)

    run_virtual(play())


def test_devices_that_leave_because_the_run_is_over_are_no_failure() -> None:
    world = World(1)

    async def play() -> None:
        await world.looks(1)
        world.flower.ended[world.flower.last(1)] = OVER
        await world.looks(5)
        assert world.flower.called() == [1]

    run_virtual(play())


def test_the_end_waits_for_the_last_answers_but_not_for_ever() -> None:
    world = World(1, 2)

    async def play() -> None:
        await world.looks(1)
        world.keeping.cancel()
        world.flower.ended |= {world.flower.last(node): OVER for node in (1, 2)}
        start = asyncio.get_running_loop().time()
        await world.calls.finish()
        assert asyncio.get_running_loop().time() - start < LOOK_SECONDS

    run_virtual(play())
    silent = World(1)

    async def wait() -> None:
        await silent.looks(1)
        silent.keeping.cancel()
        await silent.calls.finish()

    run_virtual(wait())


def test_the_name_of_a_node_out_of_sight_can_be_taken() -> None:
    world = World(1)

    async def play() -> None:
        await world.looks(1)
        world.guests.admit("pi", world.flower.sent[0][1])
        world.flower.there = [2]
        await world.looks(2)
        world.guests.admit("pi", world.flower.sent[1][1])

    run_virtual(play())
