"""Devices of a simulated fleet that drop out and come back.

    availability in the fleet file                    when the device is there
    ------------------------------------------------  ---------------------------------------------------------------
    always                                            always
    0.8                                               for the whole of a round with this probability, or for none of it
    {here_seconds: [[0, 600]], every_seconds: 900}    from 0 to 600 s of every 900, by the clock of the run

A device that is away neither computes nor sends, nor is it sent anything: work and messages under way wait until it is
back. Draws are by the run's seed, the device's name and the round, so every method meets the same fleet, and a resumed
run meets the one that the stopped run would have met. Nobody who decides knows of it, but for who is there when a round
is planned.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import AsyncIterator, Iterator

import numpy as np

from cutlayer.fleet.clock import now, until
from cutlayer.fleet.profile import DeviceProfile, Fleet, Trace


class Hours:
    """The hours at which a device is there, by the clock.

    Args:
      trace: The stretches in which it is.
      shift_seconds: How far into the trace it is at 0 s.

    Example:
      >>> hours = Hours(Trace(here_seconds=((0, 600),), every_seconds=900))
      >>> hours.gone(120.0), hours.back(700.0), hours.back(950.0)
      (600.0, 900.0, 950.0)
    """

    def __init__(self, trace: Trace, shift_seconds: float = 0.0) -> None:
        self._trace, self._shift = trace, shift_seconds

    def is_here(self, seconds: float) -> bool:
        """Whether the device is there at this time."""
        return self.back(seconds) == seconds

    def back(self, seconds: float) -> float:
        """The first time from this one on at which it is there."""
        return max(seconds, next(start for start, end in self._stretches(seconds) if seconds < end))

    def gone(self, seconds: float) -> float:
        """The time at which it goes next, of a time at which it is there."""
        return next(end for _, end in self._stretches(seconds) if seconds < end)

    def _stretches(self, seconds: float) -> Iterator[tuple[float, float]]:
        """The stretches in order, from one that is over at this time on: by the same sums whoever asks, and when."""
        every = self._trace.every_seconds
        cycle = math.floor((seconds + self._shift) / every) - 1
        while True:
            for start, end in self._trace.here_seconds:
                yield cycle * every + start - self._shift, cycle * every + end - self._shift
            cycle += 1


def hours_of(device: DeviceProfile, seed: int) -> Hours | None:
    """The hours at which a device is there; None where it never leaves in the middle of a round.

    Args:
      device: Its profile.
      seed: The run's, for where in its trace a device begins whose file leaves that to chance.
    """
    trace = device.availability
    if not isinstance(trace, Trace):
        return None
    start = trace.every_seconds * _draw(device.name, seed, "start") if trace.random_start else 0.0
    return Hours(trace, start)


async def passing(seconds: float, hours: Hours | None) -> AsyncIterator[tuple[float, float]]:
    """Lets so many seconds pass in which a device is there.

    Args:
      seconds: How many.
      hours: When it is there; None for always.

    Yields:
      From when to when, of each stretch that is over.
    """
    left = seconds
    while True:
        if hours is not None:
            await until(hours.back(now()))
        start = now()
        if hours is None:
            await asyncio.sleep(left)
        else:
            await until(min(start + left, hours.gone(start)))
        yield start, now()
        if hours is None or start + left <= now():
            return
        left -= now() - start


async def mustered(fleet: Fleet, round: int, seed: int, *, all_of_them: bool) -> Fleet:
    """The devices for which a round is planned; waits until there is one.

    Args:
      fleet: All devices.
      round: The round.
      seed: The run's.
      all_of_them: Whether those too that are away and will come back: where the round waits for everybody.
    """
    devices = [device for device in fleet.devices if _joins(device, round, seed)]
    if not devices:  # a round has a device
        devices = [min(fleet.devices, key=lambda device: _draw(device.name, seed, round) / _probability(device))]
    if not all_of_them:
        backs = {device.name: hours.back(now()) for device in devices if (hours := hours_of(device, seed))}
        time = min(backs.get(device.name, now()) for device in devices)
        await until(time)
        devices = [device for device in devices if backs.get(device.name, time) <= time]
    return fleet if len(devices) == len(fleet.devices) else fleet.model_copy(update={"devices": tuple(devices)})


def share_here(device: DeviceProfile) -> float:
    """The part of all rounds, or of the time, in which a device is there."""
    trace = device.availability
    if not isinstance(trace, Trace):
        return trace
    return math.fsum(end - start for start, end in trace.here_seconds) / trace.every_seconds


def _joins(device: DeviceProfile, round: int, seed: int) -> bool:
    probability = _probability(device)
    return probability >= 1 or _draw(device.name, seed, round) < probability


def _probability(device: DeviceProfile) -> float:
    """The probability that a device joins a round."""
    return 1.0 if isinstance(device.availability, Trace) else device.availability


def _draw(name: str, seed: int, what: int | str) -> float:
    """A number from 0 to 1 by the run's seed, a device's name and what it is for."""
    words = hashlib.sha256(f"{name}/{what}".encode()).digest()
    return float(np.random.default_rng([seed, *words[:8]]).random())
