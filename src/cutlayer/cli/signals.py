"""A command that waits for others, until it is done or told to stop."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

SIGNALLED = 128
"""What an exit code begins from that says a signal ended the process: 130 for Ctrl-C, 143 for SIGTERM."""


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
            print(f"stopping; once more ends at once. Go on with: {go_on_with}", file=sys.stderr)
            task.cancel()

        def let_go() -> None:
            if not os.read(sys.stdin.fileno(), 4096):
                loop.remove_reader(sys.stdin.fileno())
                if told is None:
                    stop(signal.SIGTERM)

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop, number)
        if leash:
            loop.add_reader(sys.stdin.fileno(), let_go)
        return await task

    try:
        return asyncio.run(stoppable())
    except asyncio.CancelledError:
        if told is not None:
            raise SystemExit(SIGNALLED + told) from None
        raise
