"""Faults strike the packets that their schedule names, as it says, and no other; the same each time."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from cutlayer.fleet.clock import now, run_virtual
from cutlayer.testing.carrier import modelled_carriers
from cutlayer.testing.faults import (
    KINDS,
    LONGEST_DELAY_SECONDS,
    UNANSWERED_SECONDS,
    Fault,
    FaultyCarrier,
    Schedule,
    drawn,
)
from cutlayer.transport.carrier import CarrierLost

PACKETS = [bytes([number]) * 8 for number in range(5)]


def arrived(schedule: Schedule, seconds: float = 100.0) -> list[tuple[bytes, float]]:
    """The packets of five that arrive, and when."""

    async def work() -> list[tuple[bytes, float]]:
        one, two = (FaultyCarrier(end, schedule) for end in modelled_carriers(0.5))
        heard: list[tuple[bytes, float]] = []

        async def listen() -> None:
            while True:
                heard.append((await two.receive(), now()))

        async def send() -> None:
            for packet in PACKETS:
                await one.send(packet)

        tasks = [asyncio.create_task(listen()), asyncio.create_task(send())]
        await asyncio.wait(tasks, timeout=seconds)
        for task in tasks:
            task.cancel()
        for end in await asyncio.gather(*tasks, return_exceptions=True):
            assert end is None or isinstance(end, CarrierLost | asyncio.CancelledError), end
        return heard

    return run_virtual(work())


def packets(schedule: Schedule) -> list[bytes]:
    return [packet for packet, _ in arrived(schedule)]


def struck(kind: str, amount: float = 0.5) -> Schedule:
    """The third packet."""
    return Schedule({2: Fault(kind, amount)})


def test_an_empty_schedule_is_the_connection() -> None:
    assert arrived(Schedule()) == [(packet, 0.5) for packet in PACKETS]
    ends = modelled_carriers(0.5)
    assert FaultyCarrier(ends[0], Schedule()).intact == ends[0].intact
    assert not FaultyCarrier(ends[0], struck("flip")).intact, "nobody may rely on bytes that may be damaged"


def test_drop() -> None:
    assert packets(struck("drop")) == [PACKETS[n] for n in (0, 1, 3, 4)]


def test_duplicate() -> None:
    assert packets(struck("duplicate")) == [PACKETS[n] for n in (0, 1, 2, 2, 3, 4)]


def test_reorder() -> None:
    assert packets(struck("reorder")) == [PACKETS[n] for n in (0, 1, 3, 2, 4)]


def test_delay() -> None:
    late = 0.5 + 0.5 * LONGEST_DELAY_SECONDS
    assert arrived(struck("delay")) == [(packet, 0.5 if n < 2 else late) for n, packet in enumerate(PACKETS)]


def test_truncate() -> None:
    assert packets(struck("truncate")) == [*PACKETS[:2], PACKETS[2][:4], *PACKETS[3:]]


def test_flip() -> None:
    damaged = packets(struck("flip"))[2]
    assert [a ^ b for a, b in zip(damaged, PACKETS[2], strict=True)] == [0, 0, 0, 0, 1, 0, 0, 0]


def test_disconnect() -> None:
    assert packets(struck("disconnect")) == [], "what was under way is lost"


def test_silence() -> None:
    """Nothing passes either way, nobody notices until the pings do; then both ends do."""

    async def work() -> None:
        one, two = (FaultyCarrier(end, schedule) for end in modelled_carriers(0.5))
        await one.send(b"a")
        assert await two.receive() == b"a"
        await one.send(b"b")
        await two.send(b"back")
        for end in (one, two):
            with pytest.raises(CarrierLost):
                await end.receive()
        assert now() == 0.5 + UNANSWERED_SECONDS

    schedule = Schedule({1: Fault("silence", 0.5)})
    run_virtual(work())
    assert schedule.struck == {"silence": 1}


def test_all_connections_count_together_and_calls_are_made() -> None:
    called = list[int]()

    async def work() -> None:
        schedule = Schedule({}, {3: lambda: called.append(schedule.packets)})
        first, second = (FaultyCarrier(modelled_carriers(0.5)[0], schedule) for _ in range(2))
        for carrier in (first, second, first, second, first):
            await carrier.send(b"x")
        assert schedule.packets == 5

    run_virtual(work())
    assert called == [4]


def test_faults_are_drawn_by_a_seed() -> None:
    faults = drawn(Random(1), 50, packets=1000)
    assert faults == drawn(Random(1), 50, packets=1000) != drawn(Random(2), 50, packets=1000)
    assert {fault.kind for fault in faults.values()} == set(KINDS)
    assert max(faults) < 1000
    assert {fault.kind for fault in drawn(Random(1), 9, packets=1000, kinds=("drop",)).values()} == {"drop"}
