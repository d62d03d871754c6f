"""A command that waits for others, until it is done or told to stop."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

INTERRUPTED = 130


def run_until_signalled(work: Coroutine[Any, Any, T], go_on_with: str, *, leash: bool = False) -> T:
    """Runs `work`. SIGTERM or Ctrl-C lets it finish the step that it is in and close; the second ends at once.

    Args:
      work: What to do; it is cancelled when it is to stop.
      go_on_with: The command that goes on, for a person to read.
      leash: Whether the end of standard input is a signal too: a pipe that whoever started this process holds.

    Raises:
      KeyboardInterrupt: It was told to stop.
    """
    told = False

    async def stoppable() -> T:
        nonlocal told
        loop, task = asyncio.get_running_loop(), asyncio.ensure_future(work)

        def stop() -> None:
            nonlocal told
            if told:
                os._exit(INTERRUPTED)
            told = True
            print(f"stopping; once more ends at once. Go on with: {go_on_with}", file=sys.stderr)
            task.cancel()

        def let_go() -> None:
            if not os.read(sys.stdin.fileno(), 4096):
                loop.remove_reader(sys.stdin.fileno())
                if not told:
                    stop()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop)
        if leash:
            loop.add_reader(sys.stdin.fileno(), let_go)
        return await task

    try:
        return asyncio.run(stoppable())
    except asyncio.CancelledError:
        if told:
            raise KeyboardInterrupt from None
        raise
