"""The nodes that are called: every one that Flower sees, and each that comes later; one call per node and run.

A call stays open for as long as the device takes part. One whose process died is made again; one that was declined,
because a person must change something there, is not.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

from cutlayer.errors import JoinError
from cutlayer.flower.call import Call
from cutlayer.flower.guests import Guests
from cutlayer.shown import shown

MOST_CALLS = 3
"""Calls of one node at most: a device's process that dies as often has something that a new start does not cure."""
LOOK_SECONDS = 3.0
"""Seconds between two looks at who is there and who has answered. Nothing of a round waits for it."""
FAREWELL_SECONDS = 20.0
"""Seconds to wait for the last answers: a Flower message takes up to 6 s (measured)."""


@dataclass(frozen=True, slots=True)
class Reply:
    """The end of a call.

    Attributes:
      declined: why the device takes no part, in a sentence; empty where the run was over for it.
      died: whether it was its process that ended.
    """

    declined: str = ""
    died: bool = False


class Switchboard(Protocol):
    """Flower, as far as calls need it. Its functions block."""

    def nodes(self) -> Collection[int]:
        """Those that are there."""

    def send(self, calls: Mapping[int, Call]) -> Mapping[int, str]:
        """Sends each node its call; returns the name by which each call is known, by node."""

    def replies(self, calls: Collection[str]) -> Mapping[str, Reply]:
        """The replies to those of these calls that have ended since, by call; each once."""


@dataclass(frozen=True, slots=True, repr=False)
class _Open:
    node: int
    token: str


class Calls:
    """The calls of one run.

    Args:
      switchboard: Flower.
      guests: Gives each call its token, and lets in who has one.
      call: Of a token, the call.
      notice: Told what happens, for a person to read.
    """

    def __init__(
        self, switchboard: Switchboard, guests: Guests, call: Callable[[str], Call], notice: Callable[[str], None]
    ) -> None:
        self._switchboard, self._guests, self._call = switchboard, guests, call
        self._notice: Callable[[str], None] = lambda line: notice(shown(line))
        self._open: dict[str, _Open] = {}
        self._made = Counter[int]()
        self._why, self._over = "", False

    async def keep(self) -> None:
        """Calls for as long as the run lasts.

        Raises:
          JoinError: Every device has declined.
        """
        while True:
            nodes = await asyncio.to_thread(self._switchboard.nodes)
            self._guests.seen(call.token for call in self._open.values() if call.node in nodes)
            await self._dial(nodes)
            if self._made and not self._open and not self._over:
                raise JoinError(f"Flower: expected a node that takes part, got none of {len(self._made)}. {self._why}")
            await asyncio.sleep(LOOK_SECONDS)
            await self._listen()

    async def finish(self) -> None:
        """The run is over: waits until the devices' programs have ended by themselves."""
        try:
            async with asyncio.timeout(FAREWELL_SECONDS):
                while self._open:
                    await asyncio.sleep(LOOK_SECONDS / 6)
                    await self._listen()
        except TimeoutError:
            pass  # Flower ends them

    async def _dial(self, nodes: Collection[int]) -> None:
        busy = {call.node for call in self._open.values()}
        tokens = {node: self._guests.invite() for node in nodes if node not in busy and self._made[node] < MOST_CALLS}
        if not tokens:
            return
        sent = await asyncio.to_thread(
            self._switchboard.send, {node: self._call(token) for node, token in tokens.items()}
        )
        for node, call in sent.items():
            self._open[call] = _Open(node, tokens[node])
            self._made[node] += 1
            self._notice(f"node {node}: called")

    async def _listen(self) -> None:
        if not self._open:
            return
        for call, reply in (await asyncio.to_thread(self._switchboard.replies, list(self._open))).items():
            ended = self._open.pop(call)
            self._guests.forget(ended.token)
            if reply.declined or reply.died:
                self._why = reply.declined or f"node {ended.node}: its program ended."
                self._notice(f"node {ended.node}: {self._why}")
            if not reply.died:
                self._made[ended.node] = MOST_CALLS
                self._over |= not reply.declined
