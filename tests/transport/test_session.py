"""Sessions: every message once and in order, whatever becomes of the carriers below."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
import torch

import cutlayer.transport.session as session_module
from carriers import MemoryCarrier, pipe
from cutlayer.errors import DeviceGone, WireError
from cutlayer.fleet.clock import run_virtual
from cutlayer.transport.budget import Budget
from cutlayer.transport.carrier import CarrierLost
from cutlayer.transport.packets import Kind, Packet, pack
from cutlayer.transport.sent import Shelf
from cutlayer.transport.session import Session, Standing
from cutlayer.types import DevicePlan
from cutlayer.wire.frames import encode
from cutlayer.wire.messages import Activations, Assignment, Close, Finish, Gradients, Message, Update

STEPS = 4


def session(name: str = "", limit: int = 10**6) -> Session:
    shelf = Shelf(Path(), 10**9) if name else None
    made = Session(name, limit_bytes=lambda: limit, incoming=Budget(10**6), outgoing=Budget(10**6), shelf=shelf)
    made.piece_bytes = 100  # so that frames have several pieces
    return made


def assignment(round: int) -> Assignment:
    return Assignment("run", round, "pi", DevicePlan("pi"), (1.0,), {"a": torch.full((30,), float(round))})


def activations(round: int, step: int) -> Activations:
    h_BTD = torch.full((2, 3, 8), 10.0 * round + step)
    return Activations("run", round, step, "pi", h_BTD, torch.ones(2, 3).bool(), torch.zeros(2).int(), 2)


def gradients(round: int, step: int) -> Gradients:
    return Gradients("run", round, step, "pi", torch.full((2, 3, 8), 100.0 * round + step), 0.5)


def update(round: int) -> Update:
    return Update("run", round, "pi", {"a": torch.full((30,), 0.5)}, 0, 8, 8, 0.0, 1.0)


async def device(link: Session, heard: list[Message], stuck_after: int | None = None) -> None:
    """A device as `rounds/split.py` has it; it may get stuck after so many messages."""
    while isinstance(message := await link.receive(), Assignment):
        heard.append(message)
        for step in range(STEPS):
            await link.send(activations(message.round, step))
            answer = await link.receive()
            heard.append(answer)
            if len(heard) == stuck_after:
                await asyncio.Event().wait()
            if isinstance(answer, Close):
                break
        else:
            await link.send(update(message.round))
    heard.append(message)


async def server(link: Session, heard: list[Message], rounds: int) -> None:
    for round in range(rounds):
        await link.send(assignment(round))
        for step in range(STEPS):
            heard.append(await link.receive())
            await link.send(gradients(round, step))
        heard.append(await link.receive())
    await link.send(Finish("run", rounds, "done"))


def frames(messages: list[Message]) -> list[bytes]:
    return [encode(message) for message in messages]


def expected_up(rounds: int) -> list[bytes]:
    return frames([m for r in range(rounds) for m in (*(activations(r, s) for s in range(STEPS)), update(r))])


def expected_down(rounds: int) -> list[bytes]:
    per_round = [[assignment(r), *(gradients(r, s) for s in range(STEPS))] for r in range(rounds)]
    return frames([*(message for one in per_round for message in one), Finish("run", rounds, "done")])


async def connected(
    up: Session, down: Session, make: Callable[[], tuple[MemoryCarrier, MemoryCarrier]], lost: list[str]
) -> None:
    """Connects two sessions again and again."""
    while True:
        at_device, at_server = make()
        mine, theirs = up.standing, down.standing

        async def attach(end: Session, carrier: MemoryCarrier, peer: Standing) -> None:
            try:
                await end.attach(carrier, peer)
            except WireError as error:
                lost.append(str(error))
            finally:
                carrier.close()

        await asyncio.gather(attach(up, at_device, theirs), attach(down, at_server, mine))
        await asyncio.sleep(0.1)


async def whole_run(make: Callable[[], tuple[MemoryCarrier, MemoryCarrier]], rounds: int = 3) -> list[str]:
    up, down, lost = session(), session("life-1"), list[str]()
    heard_up, heard_down = list[Message](), list[Message]()
    linking = asyncio.ensure_future(connected(up, down, make, lost))
    await asyncio.gather(device(up, heard_down), server(down, heard_up, rounds))
    linking.cancel()
    await asyncio.gather(linking, return_exceptions=True)
    budgets = (up._incoming, up._outgoing, down._incoming, down._outgoing)
    assert [budget.held_bytes for budget in budgets] == [0] * 4, "what was taken is given back"
    assert frames(heard_up) == expected_up(rounds)
    assert frames(heard_down) == expected_down(rounds)
    assert up.bytes_sent == down.bytes_received == sum(map(len, expected_up(rounds)))
    assert down.bytes_sent == up.bytes_received == sum(map(len, expected_down(rounds)))
    return lost


def test_nothing_happens() -> None:
    assert run_virtual(whole_run(pipe)) == []


def test_who_hears_and_says_nothing_tells_what_arrived_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "ACK_BYTES", 500)
    words: list[bytes] = []

    class Counting(MemoryCarrier):
        def pass_on(self, packet: bytes) -> list[bytes]:
            words.append(packet)
            assert len(words) < 30, "now and then, and not without end"
            return [packet]

    async def work() -> None:
        up, down, lost = session(), session("life-1"), list[str]()
        linking = asyncio.ensure_future(connected(up, down, lambda: pipe(MemoryCarrier(), Counting()), lost))
        opening = asyncio.ensure_future(down.send(assignment(0)))
        await up.receive()
        await opening
        before = len(words)
        for step in range(20):
            await up.send(activations(0, step))
            await down.receive()
        assert len(words) > before, "before the next heartbeat is due"
        await asyncio.sleep(2.0)
        linking.cancel()
        assert lost == []

    run_virtual(work())


class Faulty(MemoryCarrier):
    """Drops, doubles, swaps, cuts short, damages, ends: each with a small chance."""

    def __init__(self, random: Random, kinds: tuple[str, ...]) -> None:
        super().__init__()
        self._random, self._kinds = random, kinds
        self._held: list[bytes] = []

    def pass_on(self, packet: bytes) -> list[bytes]:
        kind = self._random.choice(self._kinds) if self._random.random() < 0.05 else "fine"
        held, self._held = self._held, []
        if kind == "drop":
            return held
        if kind == "double":
            return [packet, *held, packet]
        if kind == "swap":
            self._held = [packet]
            return held
        if kind == "truncate":
            return [packet[: self._random.randrange(len(packet))], *held]
        if kind == "flip":
            damaged = bytearray(packet)
            damaged[self._random.randrange(len(packet))] ^= 1 << self._random.randrange(8)
            return [bytes(damaged), *held]
        if kind == "end":
            self.close()
        return [packet, *held]


KINDS = ("drop", "double", "swap", "truncate", "flip", "end")


@pytest.mark.parametrize("kind", KINDS)
def test_every_message_once_whatever_happens(kind: str) -> None:
    lost = 0
    for seed in range(20):
        random = Random(f"{kind} {seed}")
        lost += len(run_virtual(whole_run(lambda: pipe(Faulty(random, (kind,)), Faulty(random, (kind,))))))  # noqa: B023
    assert lost > 0, "otherwise nothing was tried"


def test_everything_at_once() -> None:
    for seed in range(40):
        random = Random(seed)
        run_virtual(whole_run(lambda: pipe(Faulty(random, KINDS), Faulty(random, KINDS))))  # noqa: B023


def test_a_device_that_begins_again_is_given_the_round_again_and_repeats_itself() -> None:
    """A device is killed in the middle of round 1: its new life begins at the assignment; the server hears nothing
    twice."""

    async def work() -> None:
        down, heard_up = session("life-1"), list[Message]()
        serving = asyncio.ensure_future(server(down, heard_up, 3))
        first, heard = session(), list[Message]()
        linking = asyncio.ensure_future(connected(first, down, pipe, []))
        running = asyncio.ensure_future(device(first, heard, stuck_after=1 + STEPS + 3))  # two gradients of round 1
        await asyncio.sleep(10)
        for task in (running, linking):
            task.cancel()
        await asyncio.gather(running, linking, return_exceptions=True)
        again, heard_again = session(), list[Message]()
        linking = asyncio.ensure_future(connected(again, down, pipe, []))
        await asyncio.gather(device(again, heard_again), serving)
        linking.cancel()
        assert frames(heard_up) == expected_up(3)
        assert frames(heard_again) == expected_down(3)[1 + STEPS :], "from round 1 on, all of it"

    run_virtual(work())


def test_a_device_that_begins_again_after_its_update_waits_for_the_next_round() -> None:
    async def work() -> None:
        down = session("life-1")
        first, again, heard = session(), session(), list[Message]()
        linking = asyncio.ensure_future(connected(first, down, pipe, []))
        running = asyncio.ensure_future(device(first, []))
        await server_round(down, 0)
        for task in (running, linking):
            task.cancel()
        await asyncio.gather(running, linking, return_exceptions=True)
        linking = asyncio.ensure_future(connected(again, down, pipe, []))
        running = asyncio.ensure_future(device(again, heard))
        await asyncio.sleep(10)
        assert heard == []
        await server_round(down, 1)
        await down.send(Finish("run", 2, "done"))
        await running
        linking.cancel()
        assert frames(heard) == [*expected_down(2)[1 + STEPS : -1], encode(Finish("run", 2, "done"))]

    run_virtual(work())


async def server_round(link: Session, round: int) -> list[Message]:
    await link.send(assignment(round))
    heard = []
    for step in range(STEPS):
        heard.append(await link.receive())
        await link.send(gradients(round, step))
    return [*heard, await link.receive()]


def test_a_server_that_begins_again_begins_the_round_again() -> None:
    """Messages that the device still sends of the old life's round are dropped, though its number is the same."""

    async def work() -> None:
        up, heard = session(), list[Message]()
        old, new = session("life-1"), session("life-2")
        running = asyncio.ensure_future(device(up, heard))
        linking = asyncio.ensure_future(connected(up, old, pipe, []))
        await server_round(old, 0)
        await old.send(assignment(1))
        await old.receive()
        await old.send(gradients(1, 0))
        await old.receive()  # of step 1, which this life never answers
        await asyncio.sleep(1)
        linking.cancel()
        await asyncio.gather(linking, return_exceptions=True)
        linking = asyncio.ensure_future(connected(up, new, pipe, []))
        again = await server_round(new, 1)
        assert frames(again) == expected_up(2)[STEPS + 1 :]
        await new.send(Finish("run", 2, "done"))
        await running
        linking.cancel()
        closed = [message for message in heard if isinstance(message, Close)]
        assert [(close.round, close.wanted) for close in closed] == [(1, False)]

    run_virtual(work())


def test_a_device_that_missed_a_boundary_is_brought_to_the_current_round() -> None:
    async def work() -> None:
        up, down, heard = session(), session("life-1"), list[Message]()
        running = asyncio.ensure_future(device(up, heard))
        linking = asyncio.ensure_future(connected(up, down, pipe, []))
        await down.send(assignment(0))
        await down.receive()
        linking.cancel()  # the round goes on without it
        await asyncio.gather(linking, return_exceptions=True)
        opening = asyncio.ensure_future(server_round(down, 1))
        await asyncio.sleep(1)
        linking = asyncio.ensure_future(connected(up, down, pipe, []))
        assert frames(await opening) == expected_up(2)[STEPS + 1 :]
        await down.send(Finish("run", 2, "done"))
        await running
        linking.cancel()
        assert [type(message).__name__ for message in heard[:3]] == ["Assignment", "Close", "Assignment"]

    run_virtual(work())


@pytest.mark.parametrize("seconds", [0.1, 0.25, 0.4, 0.55, 0.7])
def test_a_new_carrier_takes_over_from_one_that_still_stands(seconds: float) -> None:
    """A device came back before its broken connection was noticed: both carriers are there for a while.

    What was on its way on the first may be missed on the second: then the device comes back once more.
    """

    async def work() -> None:
        up, down, heard_up, heard_down = session(), session("life-1"), list[Message](), list[Message]()
        talking = [asyncio.ensure_future(device(up, heard_down)), asyncio.ensure_future(server(down, heard_up, 3))]
        first = pipe(Slow(), Slow())
        attached = [
            asyncio.ensure_future(end.attach(carrier, peer))
            for end, carrier, peer in ((up, first[0], down.standing), (down, first[1], up.standing))
        ]
        await asyncio.sleep(seconds)  # in the middle of something
        attached.append(asyncio.ensure_future(connected(up, down, lambda: pipe(Slow(), Slow()), [])))
        await asyncio.sleep(0.2)
        first[1].close()
        await asyncio.gather(*talking)
        for task in attached:
            task.cancel()
        await asyncio.gather(*attached, return_exceptions=True)
        assert frames(heard_up) == expected_up(3)
        assert frames(heard_down) == expected_down(3)

    run_virtual(work())


class Slow(MemoryCarrier):
    """A carrier whose packets take their time."""

    async def send(self, packet: bytes) -> None:
        await asyncio.sleep(0.01)
        await super().send(packet)


def test_who_is_given_up_is_waited_for_by_nobody() -> None:
    async def work() -> None:
        down = session("life-1")
        gone = DeviceGone("pi is gone", device="pi", reason="revoked")
        opening = asyncio.ensure_future(down.send(assignment(0)))
        waiting = asyncio.ensure_future(down.receive())
        await asyncio.sleep(1)
        down.give_up(gone)
        assert await asyncio.gather(opening, waiting, return_exceptions=True) == [gone, gone]
        up, lost = session(), list[str]()
        linking = asyncio.ensure_future(connected(up, down, pipe, lost))
        await down.send(assignment(1))  # it came back, and the next round is another matter
        assert (await up.receive()).round == 1
        linking.cancel()

    run_virtual(work())


def test_a_frame_that_is_too_long_is_refused_before_it_has_memory() -> None:
    async def work() -> None:
        up, down, lost = session(limit=100), session("life-1"), list[str]()
        linking = asyncio.ensure_future(connected(up, down, pipe, lost))
        sending = asyncio.ensure_future(down.send(assignment(0)))
        await asyncio.sleep(1)
        assert any("at most 100 bytes" in line for line in lost)
        assert up.standing.received == 0
        for task in (linking, sending):
            task.cancel()
        await asyncio.gather(linking, sending, return_exceptions=True)

    run_virtual(work())


def piece(round: int, number: int, offset: int, total: int, body: bytes) -> bytes:
    return pack(Packet(Kind.DATA, 2 * round + 1, number, 0, offset, total, body), check=True)


STEP = encode(activations(0, 0))
LIMIT = len(STEP)


@pytest.mark.parametrize(
    ("packets", "why"),
    [
        ([piece(0, 1, 0, LIMIT + 1, bytes(10))], f"at most {LIMIT} bytes, got {LIMIT + 1}"),
        ([piece(0, 1, 0, LIMIT, STEP[:9]), piece(0, 1, 9, LIMIT - 1, STEP[9:-1])], f"a frame of {LIMIT} bytes"),
        ([piece(0, 1, 0, LIMIT, encode(activations(1, 0)))], "one of round 0, got Activations"),
        ([piece(1, 1, 0, LIMIT, STEP)], "expected turn 1, got turn 3"),
    ],
)
def test_what_does_not_fit_ends_a_connection_of_the_server(packets: list[bytes], why: str) -> None:
    async def work() -> None:
        at_device, at_server = pipe()
        down = session("life-1", limit=LIMIT)
        opening = asyncio.ensure_future(down.send(assignment(0)))
        await asyncio.sleep(0)
        for packet in packets:
            await at_device.send(packet)
        with pytest.raises(WireError, match=why):
            await down.attach(at_server, Standing())
        opening.cancel()

    run_virtual(work())


def test_a_round_opens_with_its_first_frame() -> None:
    async def work() -> None:
        at_device, at_server = pipe()
        opened = encode(assignment(3))
        await at_server.send(piece(3, 2, 0, len(opened), opened))
        with pytest.raises(CarrierLost, match="got turn 7 without its first frame"):
            await session().attach(at_device, Standing("life-1"))

    run_virtual(work())


def test_silence_ends_a_connection() -> None:
    async def work() -> None:
        at_device, _at_server = pipe()
        with pytest.raises(CarrierLost, match="nothing for 30 s"):
            await session().attach(at_device, Standing("life-1"))

    run_virtual(work())


def test_one_that_sends_without_end_waits_until_what_it_sent_has_arrived() -> None:
    """A device that expects no answer (`rounds/stream.py`) is slowed down by a server that does not keep up."""

    async def work() -> None:
        up, down, lost = session(), session("life-1"), list[str]()
        up.piece_bytes = 2**20
        linking = asyncio.ensure_future(connected(up, down, pipe, lost))
        await down.send(assignment(0))
        assert isinstance(await up.receive(), Assignment)
        sent = 0

        async def send_on() -> None:
            nonlocal sent
            for step in range(10**6):
                message = activations(0, step)
                big = Activations("run", 0, step, "pi", torch.zeros(1, 1, 2**16), message.mask_BT, message.labels, 2)
                await up.send(big)
                sent += 1

        sending = asyncio.ensure_future(send_on())
        await asyncio.sleep(100)
        before = sent
        await asyncio.sleep(100)
        assert sent == before, "the server takes nothing"
        assert lost == [], "who has no room to listen hears no silence"
        assert before * 2**18 <= 40 * 2**20
        await down.receive()
        await asyncio.sleep(5)
        for task in (linking, sending):
            task.cancel()
        await asyncio.gather(linking, sending, return_exceptions=True)

    run_virtual(work())


def test_what_belongs_to_a_round_that_another_life_of_the_server_began_again_is_dropped() -> None:
    """The device has not read yet that its round begins again: what it sends now belongs to the one that is over."""

    async def work() -> None:
        up, first, second = session(), session("life-1"), session("life-2")
        linking = asyncio.ensure_future(connected(up, first, pipe, []))
        await first.send(assignment(0))
        assert isinstance(await up.receive(), Assignment)
        await up.send(activations(0, 0))
        assert isinstance(await first.receive(), Activations)
        linking.cancel()
        await asyncio.gather(linking, return_exceptions=True)
        linking = asyncio.ensure_future(connected(up, second, pipe, []))
        await second.send(assignment(0))
        await asyncio.sleep(1.0)
        await up.send(activations(0, 1))
        assert up.counts["stale"] == 1
        assert isinstance(await up.receive(), Close)
        assert isinstance(await up.receive(), Assignment)
        await up.send(activations(0, 0))
        answer = await second.receive()
        assert isinstance(answer, Activations)
        assert answer.step == 0
        linking.cancel()

    run_virtual(work())
