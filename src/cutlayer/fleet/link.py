"""A connection on the virtual clock: messages by reference, in the time that their bytes would take.

Devices have a link each. Where the fleet says so, what they send goes through one connection of the server too, which
they share (`Gateway`).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from cutlayer.fleet.allotment import Allotment
from cutlayer.fleet.clock import now, until
from cutlayer.fleet.presence import Hours, passing
from cutlayer.fleet.profile import DeviceProfile, ServerProfile
from cutlayer.types import Event, Recorder
from cutlayer.wire.frames import frame_bytes
from cutlayer.wire.link import Link
from cutlayer.wire.messages import Assignment, Message


class Gateway:
    """The server's connection, which the links of all devices pass through: a capacity each way, shared.

    Args:
      server: Says the capacities; a direction without one is never too narrow.
    """

    def __init__(self, server: ServerProfile) -> None:
        up, down = server.up_bits_per_second, server.down_bits_per_second
        self.up = None if up is None else _Line(up)
        self.down = None if down is None else _Line(down)

    def share_by(self, shares: Mapping[str, float]) -> None:
        """Divides both capacities in proportion to these from now on; without any, equally.

        Args:
          shares: By device, above 0, in any unit. A device that is not among them gets the mean share.
        """
        for line in (self.up, self.down):
            if line is not None:
                line.share_by(shares)

    def give(self, device: str, share: float) -> None:
        """Gives one device this share from now on; the others keep theirs. See `share_by`."""
        for line in (self.up, self.down):
            if line is not None:
                line.give(device, share)


def modelled_link(
    profile: DeviceProfile, record: Recorder, gateway: Gateway | None = None, hours: Hours | None = None
) -> tuple[Link, Link]:
    """The two ends of a device's connection, the device's first.

    A direction sends one message after the other: `8 * frame_bytes(message) / rate` seconds, and the message
    arrives the latency later. The other direction is not slowed by it. Each transmission is one event of the
    device, from its first to its last byte: `upload` or `download`; one that waits for a device which is away is
    several.

    A round's plan may allot the device a share of what links pass through (`fleet/allotment.py`): it has it from the
    moment when its assignment leaves.

    Args:
      profile: Says the rates and the latency.
      record: Gets the events.
      gateway: The server's end of all links, which may be narrower than the links together; None for no such.
      hours: When the device is there (`fleet/presence.py`); None for always.
    """
    up_line, down_line = (None, None) if gateway is None else (gateway.up, gateway.down)
    up = _Pipe(profile, profile.up_bits_per_second, "upload", record, up_line, hours)
    down = _Pipe(profile, profile.down_bits_per_second, "download", record, down_line, hours)
    return _End(up, down), _End(down, up, gateway)


def fair_rates(most: Sequence[float], shares: Sequence[float], capacity: float) -> list[float]:
    """The rates of transfers that share a capacity: each in proportion to its share, but none above its own most.

    What those leave that cannot use all of theirs goes to the others, again in proportion. So the rates add up to the
    capacity, or every transfer has its most.

    Args:
      most: Of each transfer, in bits per second.
      shares: Of each, above 0, in any unit.
      capacity: In bits per second.

    Example:
      >>> fair_rates([1.0, 10.0, 10.0], [1, 1, 3], capacity=9.0)
      [1.0, 2.0, 6.0]
    """
    if sum(most) <= capacity:
        return list(most)
    level, left, left_shares = 0.0, capacity, math.fsum(shares)  # level: bits per second of a share of 1
    for own, share in sorted(zip(most, shares, strict=True), key=lambda pair: pair[0] / pair[1]):
        level = left / left_shares
        if own >= level * share:
            break
        left, left_shares = left - own, left_shares - share
    return [min(own, level * share) for own, share in zip(most, shares, strict=True)]


class _End:
    """One end: it sends into one pipe and receives from the other."""

    def __init__(self, outgoing: _Pipe, incoming: _Pipe, gateway: Gateway | None = None) -> None:
        self.bytes_sent = 0
        self.bytes_received = 0
        self._outgoing = outgoing
        self._incoming = incoming
        self._gateway = gateway

    async def send(self, message: Message) -> None:
        if self._gateway is not None and isinstance(message, Assignment):
            allotted = message.plan.clause(Allotment)
            if allotted is not None:
                self._gateway.give(message.device, allotted.bandwidth)
        num_bytes = await self._outgoing.transmit(message)
        self.bytes_sent += num_bytes  # read after the wait: others may have been sent meanwhile

    async def receive(self) -> Message:
        message, num_bytes = await self._incoming.arrived.get()
        self.bytes_received += num_bytes
        return message


class _Pipe:
    """One direction, first in, first out."""

    def __init__(
        self,
        profile: DeviceProfile,
        bits_per_second: float,
        what: Literal["upload", "download"],
        record: Recorder,
        line: _Line | None,
        hours: Hours | None,
    ) -> None:
        self.arrived: asyncio.Queue[tuple[Message, int]] = asyncio.Queue()
        self._free = asyncio.Lock()
        self._profile = profile
        self._bits_per_second = bits_per_second
        self._what = what
        self._record = record
        self._line, self._hours = line, hours

    async def transmit(self, message: Message) -> int:
        """Returns the message's length in bytes when the last of them has left."""
        num_bytes, step = frame_bytes(message), getattr(message, "step", None)
        async with self._free:
            before: list[tuple[float, float]] = []  # stretches after which the device was away
            async for stretch in self._stretches(num_bytes * 8):
                before.append(stretch)
            arrive = self.arrived.put_nowait
            asyncio.get_running_loop().call_later(self._profile.latency_seconds, arrive, (message, num_bytes))
            *others, last = before
            for (start, end), passed in (*((one, 0) for one in others), (last, num_bytes)):
                self._record(Event(self._profile.name, self._what, start, end, message.round, step, None, passed))
        return num_bytes

    def _stretches(self, num_bits: int) -> AsyncIterator[tuple[float, float]]:
        """Lets so many bits pass; from when to when, of each stretch of it."""
        if self._line is None:
            return passing(num_bits / self._bits_per_second, self._hours)
        return self._line.carry(self._profile.name, num_bits, self._bits_per_second, self._hours)


@dataclass(slots=True, eq=False)
class _Transfer:
    """One message under way on a shared line."""

    device: str
    most: float  # bits per second that the device's own link allows
    left_bits: float  # at `since`, from when on the rate is what it is
    since: float
    over: asyncio.Future[None]
    rate: float = 0.0
    ends: float = math.inf


class _Line:
    """One direction of the server's connection. Whenever a transfer begins or ends, all rates are set anew.

    Between two such moments rates are constant, so times are exact. A transfer whose rate never changes ends when it
    would on a link of that rate, bit for bit.
    """

    def __init__(self, bits_per_second: float) -> None:
        self._capacity = bits_per_second
        self._shares: Mapping[str, float] = {}
        self._mean_share = 1.0
        self._under_way: list[_Transfer] = []
        self._timer: asyncio.TimerHandle | None = None

    def share_by(self, shares: Mapping[str, float]) -> None:
        """See `Gateway.share_by`."""
        self._shares = dict(shares)
        self._mean_share = fmean(shares.values()) if shares else 1.0
        if self._under_way:
            self._set_rates()

    def give(self, device: str, share: float) -> None:
        """See `Gateway.give`."""
        self.share_by({**self._shares, device: share})

    async def carry(
        self, device: str, num_bits: float, most: float, hours: Hours | None
    ) -> AsyncIterator[tuple[float, float]]:
        """Lets so many bits of the device pass, at `most` bits per second or slower, while it is there.

        Yields:
          From when to when, of each stretch that is over.
        """
        while num_bits >= 1:  # less is rounding
            if hours is not None:
                await until(hours.back(now()))
            start = now()
            transfer = _Transfer(device, most, num_bits, start, asyncio.get_running_loop().create_future())
            self._under_way.append(transfer)
            self._set_rates()
            num_bits = 0
            try:
                async with asyncio.timeout_at(None if hours is None else hours.gone(start)) as here:
                    await transfer.over
            except TimeoutError:
                if not here.expired():
                    raise
                num_bits = transfer.left_bits - transfer.rate * (now() - transfer.since)
            finally:
                if transfer in self._under_way:  # given up
                    self._under_way.remove(transfer)
                    self._set_rates()
            yield start, now()

    def _set_rates(self) -> None:
        time = now()
        shares = [self._shares.get(transfer.device, self._mean_share) for transfer in self._under_way]
        rates = fair_rates([transfer.most for transfer in self._under_way], shares, self._capacity)
        for transfer, rate in zip(self._under_way, rates, strict=True):
            if rate != transfer.rate:
                passed = transfer.rate * (time - transfer.since)
                transfer.left_bits = max(0.0, transfer.left_bits - passed)
                transfer.since, transfer.rate = time, rate
                transfer.ends = time + transfer.left_bits / rate
        first = min((transfer.ends for transfer in self._under_way), default=math.inf)
        if self._timer is not None and self._timer.when() != first:
            self._timer.cancel()
            self._timer = None
        if self._timer is None and self._under_way:
            self._timer = asyncio.get_running_loop().call_at(first, self._end, first)

    def _end(self, time: float) -> None:
        """Ends the transfers that end at this time, all at once: none of them slows another."""
        self._timer = None
        ended = [transfer for transfer in self._under_way if transfer.ends <= time]
        self._under_way = [transfer for transfer in self._under_way if transfer.ends > time]
        for transfer in ended:
            if not transfer.over.done():  # else it was given up at this very moment
                transfer.over.set_result(None)
        self._set_rates()
