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

And a member of the fleet that lies: one field of one kind of its messages says something else, whenever it sends one
(`LIES`, `LyingCarrier`). The program behind it is an honest device's, and so is everything else that it says.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

import torch
from torch import Tensor

from cutlayer.gate.forms import LOUDEST
from cutlayer.testing.carrier import ModelledCarrier
from cutlayer.transport.carrier import Carrier, CarrierLost
from cutlayer.transport.packets import Kind, pack, unpack
from cutlayer.wire.frames import decode, encode
from cutlayer.wire.messages import (
    Activations,
    Ask,
    Facts,
    HeldOut,
    Hello,
    HiddenGradients,
    Judged,
    Measured,
    Ready,
    Update,
)

KINDS = ("drop", "duplicate", "reorder", "delay", "truncate", "flip", "disconnect", "silence")
LONGEST_DELAY_SECONDS = 60.0
UNANSWERED_SECONDS = 5.0
"""Seconds after which a carrier gives up a peer that does not answer its pings (`transport/grpc_carrier.py`)."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault that strikes one packet.

    Attributes:
      kind: one of `KINDS`.
      amount: from 0 to 1: how long it is delayed, where it is cut, which of its bits is another.
    """

    kind: str
    amount: float


@dataclass(slots=True)
class Schedule:
    """The faults and calls on a network, by the number of the packet that is sent: all its connections count together.

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
        """Counts the packet that is sent now, makes its call, and returns its fault; None where it has none."""
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
        """The packets that are sent in this one's place."""
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


# ------------------------------------------------------------------ a member that lies


@dataclass(frozen=True, slots=True)
class Lie:
    """A change of one kind of message, from the truth to something else.

    Attributes:
      kind: of message.
      change: an honest message -> the lie.
      refused: whether the server must see that it is one; of others it need only come to no harm by them.
    """

    kind: type[Any]
    change: Callable[[Any], Any]
    refused: bool = True


def _says(kind: type[Any], name: str, value: Any, *, refused: bool = True) -> Lie:
    return Lie(kind, lambda message: replace(message, **{name: value}), refused)


def _tensor(kind: type[Any], name: str, number: float) -> Lie:
    """All numbers of a field's first tensor are this one."""

    def change(message: Any) -> Any:
        value = getattr(message, name)
        if isinstance(value, Tensor):
            return replace(message, **{name: _full(value, number)})
        first = next((key for key, tensor in value.items() if tensor.is_floating_point()), None)
        return message if first is None else replace(message, **{name: value | {first: _full(value[first], number)}})

    return Lie(kind, change)


def _poison(where: slice) -> Callable[[Update], Update]:
    """An adapter of numbers that each could be, and with which the attention of many models is infinite."""

    def poisoned(update: Update) -> Update:
        adapter = {name: tensor.clone() for name, tensor in update.adapter.items()}
        for tensor in adapter.values():
            if tensor.is_floating_point():  # and not the codes of one that is packed
                tensor[..., where] = LOUDEST["update"]
        return replace(update, adapter=adapter)

    return poisoned


def _full(tensor: Tensor, number: float) -> Tensor:
    return torch.full_like(tensor, number, dtype=torch.float64).to(tensor.dtype)  # 16 bits may have it infinite only


def _events(column: int, number: float, *, refused: bool = True) -> Lie:
    """Every event of a record says this."""

    def change(message: Measured) -> Measured:
        events_E6 = message.events_E6.clone()
        events_E6[:, column] = number
        return replace(message, events_E6=events_E6)

    return Lie(Measured, change, refused)


LIES: dict[str, Lie] = {
    "called server": Lie(Hello, replace),  # what it says is its name: that is the lie
    "a byte of memory": _says(Ready, "memory_bytes", 1),
    "no memory": _says(Ready, "memory_bytes", 0),
    "all the memory that there is": _says(Ready, "memory_bytes", 2**63 - 1),
    "no block lent": _says(Ready, "max_blocks", (0,), refused=False),  # a cut of 0 may be a plan
    "blocks lent twice": _says(Ready, "max_blocks", (2, 2)),
    "speed 5e-324": _says(Ready, "flops_per_second", 5e-324),
    "speed 1e308": _says(Ready, "flops_per_second", 1e308),
    "speed none": _says(Ready, "flops_per_second", math.nan),
    "slow": _says(Ready, "flops_per_second", 1.0, refused=False),
    "latency 1.7e308": _says(Ready, "latency_seconds", 1.7e308),
    "latency below 0": _says(Ready, "latency_seconds", -1.0),
    "rate up 5e-324": _says(Ready, "up_bits_per_second", 5e-324),
    "rate down 0": _says(Ready, "down_bits_per_second", 0.0),
    "rate down infinite": _says(Ready, "down_bits_per_second", math.inf),
    "no samples": _says(Ready, "num_samples", 0),
    "samples 2**62": _says(Ready, "num_samples", 2**62),
    "other classes": _says(Ready, "label_counts", (1,) * 7),
    "counts below 0": _says(Ready, "label_counts", (-1, 7)),
    "another name": _says(Ready, "device", "quick"),
    "a cut of 2**40": Lie(Ready, lambda _: Ask("files", "", 2**40)),
    "an echo of -1": Lie(Ready, lambda _: Ask("echo", length=-1)),
    "activations 1e30": _tensor(Activations, "h_BTD", 1e30),
    "activations 3e38": _tensor(Activations, "h_BTD", 3e38),
    "activations none": _tensor(Activations, "h_BTD", math.nan),
    "a batch weighs 2**40": _says(Activations, "weight", 2**40),
    "a batch weighs nothing": _says(Activations, "weight", 0),
    "gradients 1e30": _tensor(HiddenGradients, "grad_BTD", 1e30),
    "a step's loss none": _says(HiddenGradients, "loss", math.nan),
    "a step's loss 1e308": _says(HiddenGradients, "loss", 1e308),
    "facts 3e38": _tensor(Facts, "facts", 3e38),
    "held out 1e30": _tensor(HeldOut, "h_BTD", 1e30),
    "judged none": _says(Judged, "loss", math.nan),
    "judged 2**40 rows": _says(Judged, "samples", 2**40),
    "no times": Lie(Measured, lambda message: replace(message, events_E6=message.events_E6[:0]), refused=False),
    "times 0": _events(1, 0.0),
    "times 1e308": _events(1, 1e308),
    "bytes 2**50": _events(3, 2.0**50, refused=False),
    "bytes 1e300": _events(3, 1e300),
    "flops 1e300": _events(4, 1e300),
    "an adapter of 3e38": _tensor(Update, "adapter", 3e38),
    "an adapter of 1e6": _tensor(Update, "adapter", 1e6),
    "poison within bounds": Lie(Update, _poison(slice(None, None, 2)), refused=False),  # of most models it is none
    "poison on some rows": Lie(Update, _poison(slice(None)), refused=False),  # a layer norm's output adds up to nothing
    "an adapter of none": _tensor(Update, "adapter", math.nan),
    "facts of an update 3e38": _tensor(Update, "facts", 3e38),
    "a loss of none": _says(Update, "loss", math.nan),
    "a loss of 1e308": _says(Update, "loss", 1e308),
    "a loss below 0": _says(Update, "loss", -1.0),
    "samples 2**40": _says(Update, "samples", 2**40),
    "steps 2**40": _says(Update, "steps", 2**40),
    "weighs 2**40": _says(Update, "weight", 2**40),
    "weighs -1": _says(Update, "weight", -1),
    "busy for ever": _says(Update, "busy_seconds", math.inf),
    "busy for 1e300 s": _says(Update, "busy_seconds", 1e300),
}
"""The lies, by what is said."""
MOST_BYTES = 2**24
"""Most bytes of a frame that is looked at before it is sent: it must be one packet."""


class LyingCarrier:
    """The end of a connection of a member that lies.

    Args:
      carrier: The end.
      lie: What it says.
      told: Called when it has.
    """

    def __init__(self, carrier: Carrier, lie: Lie, told: Callable[[], None]) -> None:
        self._carrier, self._lie, self._told = carrier, lie, told

    @property
    def intact(self) -> bool:
        return self._carrier.intact

    async def send(self, packet: bytes) -> None:
        """See `Carrier.send`."""
        await self._carrier.send(self._changed(packet))

    async def receive(self) -> bytes:
        """See `Carrier.receive`."""
        return await self._carrier.receive()

    def close(self) -> None:
        """See `Carrier.close`."""
        self._carrier.close()

    def _changed(self, sent: bytes) -> bytes:
        packet = unpack(sent, check=not self.intact)
        if packet.kind not in (Kind.DATA, Kind.HANDSHAKE) or len(packet.body) != packet.total:
            return sent
        message = decode(packet.body, max_bytes=MOST_BYTES)
        if not isinstance(message, self._lie.kind):
            return sent
        lie = self._lie.change(message)
        if lie is message:
            return sent
        self._told()
        frame = encode(lie)
        return pack(replace(packet, total=len(frame), body=frame), check=not self.intact)
