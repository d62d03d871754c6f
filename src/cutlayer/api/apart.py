"""Work in a thread of its own where this one has an event loop at work, as in a notebook's cell.

A run is an event loop, and a thread has at most one at work. Ctrl-C, or the notebook's stop button, reaches the thread
that waits; it tells the one that works.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


def apart(work: Callable[[], T], stop: Callable[[], None]) -> T:
    """Does the work, here if that is possible, and waits for it.

    Args:
      work: What to do.
      stop: Tells it, from another thread, to end soon.

    Raises:
      KeyboardInterrupt: It was told to stop, and has ended.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return work()
    with ThreadPoolExecutor(1, "cutlayer") as threads:
        future = threads.submit(work)
        try:
            return future.result()
        except KeyboardInterrupt:
            stop()
            raise


def run_apart(work: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine to its end, apart; to stop is to cancel it.

    Raises:
      KeyboardInterrupt: It was told to stop, and has ended.
    """
    at_work: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[T]]] = []

    async def noted() -> T:
        task = asyncio.ensure_future(work)
        at_work.append((asyncio.get_running_loop(), task))
        return await task

    def stop() -> None:
        for loop, task in at_work:
            loop.call_soon_threadsafe(task.cancel)

    return apart(lambda: asyncio.run(noted()), stop)
