"""Before a hello only short packets pass; after it, what the allowance has left."""

from __future__ import annotations

import asyncio

import pytest

from cutlayer.errors import Refused
from cutlayer.gate.allowance import HELLO_BYTES, Allowance
from cutlayer.gate.metered import Metered


class Delivering:
    """A carrier that delivers these."""

    intact = True
    closed = False

    def __init__(self, *packets: bytes) -> None:
        self._packets = list(packets)
        self.sent: list[bytes] = []

    async def send(self, packet: bytes) -> None:
        self.sent.append(packet)

    async def receive(self) -> bytes:
        return self._packets.pop(0)

    def close(self) -> None:
        self.closed = True


def test_a_hello_is_short() -> None:
    async def heard() -> None:
        metered = Metered(Delivering(bytes(HELLO_BYTES), bytes(HELLO_BYTES + 1)), lambda: 0.0)
        assert len(await metered.receive()) == HELLO_BYTES
        with pytest.raises(Refused, match="hello") as error:
            await metered.receive()
        assert error.value.reason == "too-long"

    asyncio.run(heard())


def test_the_allowance_is_spent_by_the_clock() -> None:
    async def heard() -> None:
        clock = iter((0.0, 0.0, 0.1, 2.0))
        metered = Metered(Delivering(*[bytes(10)] * 4), lambda: next(clock))
        metered.allowance = Allowance(0, 0.0, messages_per_second=1, messages_at_once=2, bytes_per_second=1000)
        await metered.receive()
        await metered.receive()
        with pytest.raises(Refused) as error:
            await metered.receive()
        assert error.value.reason == "flood"
        assert await metered.receive() == bytes(10)

    asyncio.run(heard())


def test_the_rest_is_the_carriers() -> None:
    carrier = Delivering()
    metered = Metered(carrier, lambda: 0.0)
    asyncio.run(metered.send(b"x"))
    metered.close()
    assert (metered.intact, carrier.sent, carrier.closed) == (True, [b"x"], True)
