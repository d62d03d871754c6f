"""An event loop whose clock jumps: nothing waits, time moves on to the next timer.

Code that waits with asyncio (`sleep`, `wait_for`, `call_later`) runs on it unchanged. Computing takes no
virtual time and sleeping no real time, so a day of a fleet of 80 devices lasts as long as its arithmetic. The
same program takes the same path each time, provided that it draws no order from a set of tasks.

    >>> run_virtual(asyncio.sleep(86_400, result="a day later"))
    'a day later'
"""

from __future__ import annotations

import asyncio
import heapq
import inspect
import itertools
import math
import selectors
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from contextvars import Context
from typing import Any, TypeVar, TypeVarTuple

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Deadlock(RuntimeError):
    """Nothing can ever happen again: no timer, nothing ready, no thread at work. A mistake in the program."""


def run_virtual(coroutine: Coroutine[Any, Any, T], *, start_seconds: float = 0.0) -> T:
    """Runs `coroutine` as `asyncio.run` does, on a clock that starts at `start_seconds` and jumps.

    Tasks left over are cancelled. Threads started by `asyncio.to_thread` or `run_in_executor` are waited for,
    and take no virtual time.

    Raises:
      Deadlock: when nothing can ever happen again; it names the tasks that wait.
    """
    with asyncio.Runner(loop_factory=lambda: _VirtualLoop(start_seconds)) as runner:
        return runner.run(coroutine)


async def until(seconds: float) -> None:
    """Returns at this time of the running loop's clock, or at once if it is past: to the bit, on the virtual clock."""
    loop = asyncio.get_running_loop()
    if seconds <= loop.time():
        return
    reached = loop.create_future()
    timer = loop.call_at(seconds, _reach, reached)
    try:
        await reached
    finally:
        timer.cancel()


def _reach(reached: asyncio.Future[None]) -> None:
    if not reached.done():
        reached.set_result(None)


def now() -> float:
    """Seconds on the clock of the running loop: virtual in simulation, monotonic on a real fleet."""
    return asyncio.get_running_loop().time()


class _Timer(asyncio.TimerHandle):
    """A timer with its number: asyncio's heap alone gives those of one instant in an order that nobody knows."""

    number = 0

    def __lt__(self, other: asyncio.TimerHandle) -> bool:
        assert isinstance(other, _Timer), "all timers of this loop are its own"
        mine, others = self._when, other._when  # type: ignore[attr-defined]
        return mine < others or (mine == others and self.number < other.number)


class _VirtualLoop(asyncio.SelectorEventLoop):
    """The loop: it knows the virtual time, and how many threads will still wake it."""

    def __init__(self, start_seconds: float) -> None:
        self._seconds = start_seconds
        self.num_threads = 0
        self._numbers = itertools.count()
        super().__init__(_JumpingSelector(self))
        self._set(start_seconds)

    def time(self) -> float:
        return self._seconds

    def jump(self) -> None:
        """Moves the clock on to the next timer: to the bit, so that a time does not depend on what else happens."""
        self._set(self._scheduled[0].when())  # type: ignore[attr-defined]

    def _set(self, seconds: float) -> None:
        self._seconds = seconds
        # asyncio fires the timers that are due within this time: here those that are due now, and no other
        self._clock_resolution = math.ulp(self._seconds)

    def call_at(
        self, when: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Sets a timer as asyncio does, but of timers of one instant the one that was set first fires first."""
        timer = _Timer(when, callback, args, self, context)
        timer.number = next(self._numbers)
        heapq.heappush(self._scheduled, timer)  # type: ignore[attr-defined]
        timer._scheduled = True  # type: ignore[attr-defined]
        return timer

    def run_in_executor(self, executor: Executor | None, func: Callable[[*Ts], T], *args: *Ts) -> asyncio.Future[T]:
        future = super().run_in_executor(executor, func, *args)
        self.num_threads += 1
        future.add_done_callback(lambda _: self._thread_ended())
        return future

    async def shutdown_default_executor(self, *args: Any) -> None:
        self.num_threads += 1  # the thread that joins the others
        await super().shutdown_default_executor(*args)
        self._thread_ended()

    def _thread_ended(self) -> None:
        self.num_threads -= 1


class _JumpingSelector(selectors.DefaultSelector):
    """Asked to wait for a while, it moves the clock on to the end of that while and returns."""

    def __init__(self, loop: _VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None and timeout <= 0:
            return super().select(0)
        if self._loop.num_threads:  # a thread ends at the virtual time at which it began
            return super().select(None)
        ready = super().select(0)
        if ready:
            return ready
        if timeout is None:
            raise Deadlock(_describe(self._loop))
        self._loop.jump()
        return ready


def _describe(loop: asyncio.AbstractEventLoop) -> str:
    tasks = sorted(asyncio.all_tasks(loop), key=asyncio.Task.get_name)
    waiting = ", ".join(f"{task.get_name()} in {_calls(task)}" for task in tasks)
    return f"virtual clock: expected a timer, a ready task or a thread at work, got none. Wake one of these: {waiting}."


def _calls(task: asyncio.Task[Any]) -> str:
    """The coroutines from the task's own to the innermost that it awaits."""
    names = []
    inner: Any = task.get_coro()
    while inspect.iscoroutine(inner):
        names.append(inner.__qualname__)
        inner = inner.cr_await
    return " > ".join(names)
