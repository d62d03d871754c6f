"""A command that waits for others, until it is done or told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from threading import Thread
from typing import Any, TypeVar

from cutlayer.cli.log import say

T = TypeVar("T")

SIGNALLED = 128
"""Number that is added to a signal's for the exit code of a process that it ended: 130 for Ctrl-C, 143 for SIGTERM."""


def _when_let_go(loop: asyncio.AbstractEventLoop, stop: Callable[[int], None]) -> None:
    """Waits until whoever holds standard input lets go of it, then stops as SIGTERM does."""
    while os.read(sys.stdin.fileno(), 4096):
        pass
    with contextlib.suppress(RuntimeError):  # the loop is over
        loop.call_soon_threadsafe(stop, signal.SIGTERM)


def run_until_signalled(work: Coroutine[Any, Any, T], go_on_with: str, *, leash: bool = False) -> T:
    """Runs `work`. SIGTERM or Ctrl-C lets it finish the step that it is in and close; the second ends at once.

    Args:
      work: What to do; it is cancelled when it is to stop.
      go_on_with: The command that goes on, for a person to read.
      leash: Whether the end of standard input is a signal too: a pipe that whoever started this process holds.

    Raises:
      SystemExit: It was told to stop, with the exit code of the signal; of the leash, of SIGTERM.
    """
    told: int | None = None

    async def stoppable() -> T:
        nonlocal told
        loop, task = asyncio.get_running_loop(), asyncio.ensure_future(work)

        def stop(number: int) -> None:
            nonlocal told
            if told is not None:
                os._exit(SIGNALLED + number)
            told = number
            say(f"stopping; once more ends at once. Go on with: {go_on_with}")
            task.cancel()

        def let_go() -> None:
            if not os.read(sys.stdin.fileno(), 4096):
                loop.remove_reader(sys.stdin.fileno())
                if told is None:
                    stop(signal.SIGTERM)

        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                loop.add_signal_handler(number, stop, number)
            except NotImplementedError:  # Windows, whose event loop knows no signals
                signal.signal(number, lambda got, _frame: loop.call_soon_threadsafe(stop, got))
        if leash:
            try:
                loop.add_reader(sys.stdin.fileno(), let_go)
            except NotImplementedError:  # Windows, whose event loop reads no pipes: a thread that waits does
                Thread(target=_when_let_go, args=(loop, stop), name="leash", daemon=True).start()
        return await task

    try:
        return asyncio.run(stoppable())
    except asyncio.CancelledError:
        if told is not None:
            raise SystemExit(SIGNALLED + told) from None
        raise
