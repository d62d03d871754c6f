"""A budget of bytes that several connections share: whoever would exceed it waits, first come, first served."""

from __future__ import annotations

import asyncio
from collections import deque


class Budget:
    """A limit on the bytes that are taken at a time.

    Args:
      most_bytes: How many. Something larger than all of it may go when nothing else does.
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.held_bytes = 0
        self._queue: deque[tuple[asyncio.Future[None], int]] = deque()

    async def take(self, num_bytes: int) -> None:
        """Waits until there is room for `num_bytes` and takes it."""
        if not self._queue and self._fits(num_bytes):
            self.held_bytes += num_bytes
            return
        turn = asyncio.get_running_loop().create_future()
        self._queue.append((turn, num_bytes))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give_back(num_bytes)
            else:
                self._queue.remove((turn, num_bytes))
                self._admit()
            raise

    def give_back(self, num_bytes: int) -> None:
        """Returns what `take` took."""
        self.held_bytes -= num_bytes
        self._admit()

    def _fits(self, num_bytes: int) -> bool:
        return self.held_bytes == 0 or self.held_bytes + num_bytes <= self.most_bytes

    def _admit(self) -> None:
        while self._queue and self._fits(self._queue[0][1]):
            turn, num_bytes = self._queue.popleft()
            if not turn.done():
                self.held_bytes += num_bytes
                turn.set_result(None)
