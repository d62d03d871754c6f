"""A machine does work, one piece at a time. The modelled one takes the time that its profile says."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol, TypeVar

from cutlayer.fleet.modes import always_fast
from cutlayer.fleet.presence import Hours, passing
from cutlayer.types import Event, Recorder

T = TypeVar("T")


class Work(NamedTuple):
    """A piece of work: what is done, what it would return of nothing, the word for it in `types.Event`, its FLOPs."""

    fn: Callable[[], Any]
    like: Callable[[], Any]
    what: str
    flops: float


class Machine(Protocol):
    """Runs pieces of work in the order in which they are handed to it.

    Attributes:
      name: the device's name, or the server's.
      busy_seconds: time spent on work so far, by the clock of the loop.
    """

    name: str
    busy_seconds: float

    async def run(
        self,
        fn: Callable[[], T],
        *,
        like: Callable[[], T],
        what: str,
        flops: float,
        round: int,
        step: int | None,
        peer: str | None = None,
    ) -> T:
        """Does `fn()` and returns its result when the machine has finished it.

        Args:
          fn: the work. What it raises is raised here, at once and without an event; the machine stays usable.
          like: what the work would return of nothing: a value of the same kind and shape. A machine that only plays the
            time (`run/rehearsed.py`) returns it, and does no work.
          what: the word for it in `types.Event`.
          flops: what it costs, floating-point operations.
          round: the round that it belongs to.
          step: the local step that it belongs to, if it belongs to one.
          peer: the device whom it serves, where that is another one.
        """
        ...

    async def aside(self, fn: Callable[[], T]) -> T:
        """Does `fn()` where the machine computes, without an event: work that is no part of training, such as
        evaluation. On a modelled machine it takes no time.
        """
        ...

    def set_pace(self, frequency: float) -> None:
        """Sets the part of its speed at which the machine works from now on.

        Args:
          frequency: Above 0 and up to 1.
        """

    def close(self) -> None:
        """Ends after the work that it has."""

    async def run_in_turn(self, works: Sequence[Work], *, round: int, step: int | None) -> list[Any]:
        """Does these one after the other, each as by `run`, with nobody else's work between them; their results.

        What one leaves for the next (a graph, and the weights in it) is then there for one machine of a process at a
        time, however many it plays.
        """
        ...


Machines = Callable[[str, Recorder], Machine]
"""Name, recorder -> a machine."""


class ModelledMachine:
    """Does the work inline, then lets the virtual time pass that the machine would have taken.

    Args:
      name: the device's name, or the server's.
      effective_flops: floating-point operations per second that it reaches.
      record: gets one event for each piece of work.
      mode: round -> the part of its speed that it has then (`fleet/modes.py`).
      hours: When it is there (`fleet/presence.py`); None for always.
    """

    def __init__(
        self,
        name: str,
        effective_flops: float,
        record: Recorder,
        mode: Callable[[int], float] = always_fast,
        hours: Hours | None = None,
    ) -> None:
        self.name = name
        self.effective_flops = effective_flops
        self.busy_seconds = 0.0
        self._record = record
        self._mode, self._hours = mode, hours
        self._pace = 1.0
        self._lock = asyncio.Lock()

    async def run(
        self,
        fn: Callable[[], T],
        *,
        like: Callable[[], T],  # noqa: ARG002  for a machine that does no work
        what: str,
        flops: float,
        round: int,
        step: int | None,
        peer: str | None = None,
    ) -> T:
        """See `Machine.run`; it takes `flops / effective_flops` virtual seconds, and longer in a slower mode."""
        async with self._lock:
            result = fn()
            await self._take_time(what, flops, round, step, peer)
        return result

    async def aside(self, fn: Callable[[], T]) -> T:
        """See `Machine.aside`."""
        return fn()

    async def run_in_turn(self, works: Sequence[Work], *, round: int, step: int | None) -> list[Any]:
        """See `Machine.run_in_turn`: all of it is done at once, then the time of each passes."""
        async with self._lock:
            results = [work.fn() for work in works]
            for work in works:
                await self._take_time(work.what, work.flops, round, step)
        return results

    def set_pace(self, frequency: float) -> None:
        """See `Machine.set_pace`."""
        self._pace = frequency

    def close(self) -> None:
        """See `Machine.close`: there is nothing to end."""

    async def _take_time(self, what: str, flops: float, round: int, step: int | None, peer: str | None = None) -> None:
        """Lets the time of a piece of work pass: an event for each stretch in which the machine is there."""
        speed = self.effective_flops * self._mode(round) * self._pace
        async for start, end in passing(flops / speed, self._hours):
            self.busy_seconds += end - start
            done = flops if self._hours is None else (end - start) * speed
            self._record(Event(self.name, what, start, end, round, step, peer, flops=done))


class RealMachine:
    """Does the work in a thread of its own and measures it, so that links and timers go on meanwhile.

    Args:
      name: the device's name, or the server's.
      record: gets one event for each piece of work, in the loop's thread.
    """

    def __init__(self, name: str, record: Recorder) -> None:
        self.name = name
        self.busy_seconds = 0.0
        self._record = record
        self._pace = 1.0
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)

    async def run(
        self,
        fn: Callable[[], T],
        *,
        like: Callable[[], T],  # noqa: ARG002  for a machine that does no work
        what: str,
        flops: float,
        round: int,
        step: int | None,
        peer: str | None = None,
    ) -> T:
        """See `Machine.run`. Modes that torch keeps per thread, such as `no_grad`, belong inside `fn`."""
        loop = asyncio.get_running_loop()

        def timed() -> tuple[T, float, float]:
            start = loop.time()
            result = fn()
            if self._pace < 1:
                time.sleep((loop.time() - start) * (1 / self._pace - 1))
            return result, start, loop.time()

        result, start, end = await loop.run_in_executor(self._thread, timed)
        self.busy_seconds += end - start
        self._record(Event(self.name, what, start, end, round, step, peer, flops=flops))
        return result

    async def aside(self, fn: Callable[[], T]) -> T:
        """See `Machine.aside`; links and timers go on meanwhile."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, fn)

    async def run_in_turn(self, works: Sequence[Work], *, round: int, step: int | None) -> list[Any]:
        """See `Machine.run_in_turn`. A process has one of these."""
        return [
            await self.run(work.fn, like=work.like, what=work.what, flops=work.flops, round=round, step=step)
            for work in works
        ]

    def set_pace(self, frequency: float) -> None:
        """See `Machine.set_pace`: it rests after each piece of work, as a process has no say about a clock."""
        self._pace = frequency

    def close(self) -> None:
        """See `Machine.close`."""
        self._thread.shutdown()
