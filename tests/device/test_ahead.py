"""Sending ahead: one message on its way, the next in the making, in order, and nothing lost or hidden."""

from __future__ import annotations

import asyncio

import pytest

from cutlayer.device.ahead import Ahead
from cutlayer.errors import WireError
from cutlayer.fleet.clock import now, run_virtual
from cutlayer.wire.messages import Finish, Message


def message(number: int) -> Finish:
    return Finish("run", number, "")


class SlowLink:
    """A link that takes a second for each message; what has left, and when."""

    bytes_sent = bytes_received = 0

    def __init__(self, refuses: int | None = None) -> None:
        self.left: list[tuple[int, float]] = []
        self._refuses = refuses

    async def send(self, message: Message) -> None:
        await asyncio.sleep(1.0)
        if message.round == self._refuses:
            raise WireError(f"message {message.round}: refused")
        self.left.append((message.round, now()))

    async def receive(self) -> Message:
        return message(9)


def test_one_is_on_its_way_and_the_next_in_the_making() -> None:
    link, said = SlowLink(), list[float]()

    async def program() -> None:
        async with Ahead(link) as ahead:
            for number in range(3):
                await ahead.send(message(number))
                said.append(now())
                await asyncio.sleep(0.5)  # the next one is made
        said.append(now())

    run_virtual(program())
    assert link.left == [(0, 1.0), (1, 2.0), (2, 3.0)]
    assert said == [0.0, 1.0, 2.0, 3.0]


def test_who_receives_waits_for_nothing_that_leaves() -> None:
    async def program() -> float:
        async with Ahead(SlowLink()) as ahead:
            await ahead.send(message(0))
            assert await ahead.receive() == message(9)
            return now()

    assert run_virtual(program()) == 0.0


@pytest.mark.parametrize("refused", [0, 1])
def test_an_error_shows_at_the_next_message_or_at_the_end(refused: int) -> None:
    link = SlowLink(refuses=refused)

    async def program() -> None:
        async with Ahead(link) as ahead:
            for number in range(2):
                await ahead.send(message(number))

    with pytest.raises(WireError, match=f"message {refused}: refused"):
        run_virtual(program())
    assert link.left == [(number, number + 1.0) for number in range(refused)]


def test_whoever_gives_up_sends_no_more() -> None:
    link = SlowLink()

    async def give_up() -> None:
        async with Ahead(link) as ahead:
            await ahead.send(message(0))
            raise ZeroDivisionError

    async def program() -> None:
        with pytest.raises(ZeroDivisionError):
            await give_up()
        await asyncio.sleep(10.0)

    run_virtual(program())
    assert link.left == []
