"""Faults of a network: a schedule says what becomes of its n-th packet.

    drop        it is lost
    duplicate   it arrives twice
    reorder     it arrives after the next one
    delay       it arrives later, and what follows it too
    truncate    a part of it arrives
    flip        one of its bits is another
    disconnect  the connection ends, and both ends notice; what was under way is lost
    silence     nothing passes any more, either way; both ends notice when a ping stays unanswered

The same program with the same schedule takes the same path on the virtual clock. An empty schedule is the network.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

from cutlayer.testing.carrier import ModelledCarrier
from cutlayer.transport.carrier import CarrierLost

KINDS = ("drop", "duplicate", "reorder", "delay", "truncate", "flip", "disconnect", "silence")
LONGEST_DELAY_SECONDS = 60.0
UNANSWERED_SECONDS = 5.0
"""After so long a carrier gives up a peer that does not answer its pings (`transport/grpc_carrier.py`)."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What becomes of a packet.

    Attributes:
      kind: one of `KINDS`.
      amount: from 0 to 1: how long it is delayed, where it is cut, which of its bits is another.
    """

    kind: str
    amount: float


@dataclass(slots=True)
class Schedule:
    """What happens on a network, by the number of the packet that is sent: all its connections count together.

    Attributes:
      faults: what becomes of which packet; the first is 0.
      calls: what else happens when which packet is sent.
      packets: sent so far.
      struck: faults that happened, by kind.
    """

    faults: Mapping[int, Fault] = field(default_factory=dict)
    calls: Mapping[int, Callable[[], None]] = field(default_factory=dict)
    packets: int = 0
    struck: Counter[str] = field(default_factory=Counter)

    def next(self) -> Fault | None:
        """What becomes of the packet that is sent now."""
        number = self.packets
        self.packets += 1
        if number in self.calls:
            self.calls[number]()
        fault = self.faults.get(number)
        if fault is not None:
            self.struck[fault.kind] += 1
        return fault


def drawn(random: Random, count: int, *, packets: int, kinds: Sequence[str] = KINDS) -> dict[int, Fault]:
    """Faults of kinds drawn at random, of packets drawn among the first so many; at most `count`."""
    return {random.randrange(packets): Fault(random.choice(kinds), random.random()) for _ in range(count)}


class FaultyCarrier:
    """An end of a connection whose sent packets fare as the schedule says.

    Args:
      carrier: The end.
      schedule: Of the network.
    """

    def __init__(self, carrier: ModelledCarrier, schedule: Schedule) -> None:
        self.intact = carrier.intact and not schedule.faults
        self._carrier, self._schedule = carrier, schedule
        self._held: list[bytes] = []  # until the next packet has been sent
        self._silent = False

    async def send(self, packet: bytes) -> None:
        """See `Carrier.send`."""
        fault, held, self._held = self._schedule.next(), self._held, []
        for one in (*await self._changed(packet, fault), *held):
            if not self._silent:
                await self._carrier.send(one)

    async def receive(self) -> bytes:
        """See `Carrier.receive`."""
        while True:
            packet = await self._carrier.receive()
            if not self._silent:
                return packet

    def close(self) -> None:
        """See `Carrier.close`."""
        self._carrier.close()

    def fall_silent(self) -> None:
        """Nothing passes any more, either way."""
        if not self._silent:
            self._silent = True
            asyncio.get_running_loop().call_later(UNANSWERED_SECONDS, self._carrier.reset)

    async def _changed(self, packet: bytes, fault: Fault | None) -> list[bytes]:
        """What is sent in the packet's place."""
        if fault is None:
            return [packet]
        if fault.kind == "drop":
            return []
        if fault.kind == "duplicate":
            return [packet, packet]
        if fault.kind == "reorder":
            self._held = [packet]
            return []
        if fault.kind == "delay":
            await asyncio.sleep(fault.amount * LONGEST_DELAY_SECONDS)
            return [packet]
        if fault.kind == "truncate":
            return [packet[: int(fault.amount * len(packet))]]
        if fault.kind == "flip":
            bit = int(fault.amount * 8 * len(packet))
            damaged = bytearray(packet)
            damaged[bit // 8] ^= 1 << bit % 8
            return [bytes(damaged)]
        if fault.kind == "disconnect":
            self._carrier.reset()
            raise CarrierLost("connection: reset")
        assert fault.kind == "silence", f"a kind of {KINDS}, got {fault.kind}"
        self.fall_silent()
        return []
