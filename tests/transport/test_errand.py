"""Frames that are asked and answered over one connection: whole or refused, and counted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import torch

from carriers import MemoryCarrier, pipe
from cutlayer.errors import MalformedMessage, WireError
from cutlayer.transport import errand
from cutlayer.transport.budget import Budget
from cutlayer.transport.carrier import CarrierLost
from cutlayer.transport.errand import ErrandLink
from cutlayer.transport.handshake import say, say_goodbye
from cutlayer.transport.packets import Kind, Packet, pack
from cutlayer.wire.frames import encode, frame_bytes
from cutlayer.wire.messages import Hello, SpanCall

CALL = SpanCall("run", 0, 1, "pi", 0, 2, torch.arange(96.0).view(1, 3, 32), torch.ones(1, 3) > 0, None, False, {})
LIMIT = 10_000


def link(carrier: MemoryCarrier, limit: int = LIMIT, budget: Budget | None = None) -> ErrandLink:
    return ErrandLink(carrier, limit, budget or Budget(2 * limit))


@pytest.mark.parametrize("piece_bytes", [16, 100, 2**20])
def test_a_frame_arrives_in_however_many_pieces(piece_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errand, "PIECE_BYTES", piece_bytes)
    one, other = pipe()

    async def there_and_back() -> None:
        mine, theirs, budget = link(one), link(other), Budget(LIMIT)
        theirs = link(other, budget=budget)
        for _ in range(2):
            await mine.send(CALL)
            received = await theirs.receive()
            assert isinstance(received, SpanCall)
            assert torch.equal(received.h_BTD, CALL.h_BTD)
            assert received.tensors == {}
        assert mine.bytes_sent == theirs.bytes_received == 2 * frame_bytes(CALL)
        assert budget.held_bytes == 0

    asyncio.run(there_and_back())


def raw(kind: Kind, body: bytes, *, offset: int = 0, total: int | None = None) -> bytes:
    return pack(Packet(kind, offset=offset, total=len(body) if total is None else total, body=body), check=True)


FRAME = encode(CALL)
WRONG: dict[str, list[bytes]] = {
    "too long": [raw(Kind.DATA, FRAME[:100], total=LIMIT + 1)],
    "nothing": [raw(Kind.DATA, b"")],
    "from its middle": [raw(Kind.DATA, FRAME[:64], offset=64, total=len(FRAME))],
    "a gap": [
        raw(Kind.DATA, FRAME[:64], total=len(FRAME)),
        raw(Kind.DATA, FRAME[128:], offset=128, total=len(FRAME)),
    ],
    "an empty piece": [
        raw(Kind.DATA, FRAME[:64], total=len(FRAME)),
        raw(Kind.DATA, b"", offset=64, total=len(FRAME)),
    ],
    "another length": [
        raw(Kind.DATA, FRAME[:64], total=len(FRAME)),
        raw(Kind.DATA, FRAME[64:], offset=64, total=len(FRAME) + 1),
    ],
    "a sign of life": [raw(Kind.HEARTBEAT, b"")],
    "no frame": [raw(Kind.DATA, b"x" * 64)],
    "a hello": [raw(Kind.DATA, encode(Hello("pi", "1")))],
}


@pytest.mark.parametrize("what", WRONG)
def test_anything_else_is_refused_and_holds_no_room(what: str) -> None:
    one, other = pipe()

    async def heard() -> int:
        budget = Budget(LIMIT)
        for packet in WRONG[what]:
            await one.send(packet)
        with pytest.raises(MalformedMessage):
            await link(other, budget=budget).receive()
        return budget.held_bytes

    assert asyncio.run(heard()) == 0


@pytest.mark.parametrize(
    "end",
    [lambda one: say_goodbye(one, "revoked"), lambda one: asyncio.sleep(0, one.close())],
    ids=["goodbye", "closed"],
)
def test_an_end_is_told(end: Callable[[MemoryCarrier], object]) -> None:
    one, other = pipe()

    async def heard() -> None:
        await end(one)  # type: ignore[misc]
        with pytest.raises(CarrierLost):
            await link(other).receive()

    asyncio.run(heard())


def test_a_handshake_is_none_of_its_messages() -> None:
    one, other = pipe()

    async def heard() -> None:
        await say(one, Hello("pi", "1"))
        with pytest.raises(WireError):
            await link(other).receive()

    asyncio.run(heard())
