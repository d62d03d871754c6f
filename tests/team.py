"""Workers that play in the test's own process: what Ray does in processes of their own, without Ray."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from cutlayer.fleet.profile import Fleet
from cutlayer.run.inputs import ServerInputs
from cutlayer.run.workers.worker import Held, Report, Setup, WorkerProcess
from cutlayer.server.share import Share
from cutlayer.wire.messages import Finish
from real import inline


class Team:
    """`serve.Workers`, in this process.

    Args:
      number: How many.
      twice: Whether each is asked twice to hold a share, as by Ray when its first question seems lost.

    Attributes:
      places: the workers, which can be killed.
    """

    def __init__(self, number: int, *, twice: bool = False) -> None:
        self.number, self._twice = number, twice
        self.places: list[Place] = []

    @asynccontextmanager
    async def start(self, inputs: ServerInputs, declared: Fleet) -> AsyncIterator[Sequence[Place]]:
        for number in range(self.number):
            scratch = Path(inputs.config.out) / "scratch" / f"worker-{number}"
            setup = Setup(replace(inputs), declared, "127.0.0.1:0", None, scratch)
            self.places.append(Place(setup, twice=self._twice))
        yield self.places


class Place:
    """A worker that is begun again when it dies, as by Ray: what was asked of the dead one is asked of the new one."""

    def __init__(self, setup: Setup, *, twice: bool) -> None:
        self._setup, self._twice = setup, twice
        self.asked: list[str] = []
        self._process = WorkerProcess(setup, machines=inline)
        self._died = asyncio.Event()

    async def kill(self) -> None:
        """The process is gone, with all that it knew; another is begun."""
        dead, self._process = self._process, WorkerProcess(self._setup, machines=inline)
        died, self._died = self._died, asyncio.Event()
        died.set()
        if dead._round is not None:
            dead._round[1].cancel()
        await dead._door.close()

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._process._port

    async def _ask(self, name: str, *args: Any) -> Any:
        self.asked.append(name)
        while True:
            died = asyncio.ensure_future(self._died.wait())
            answer = asyncio.ensure_future(getattr(self._process, name)(*args))
            try:
                await asyncio.wait({died, answer}, return_when=asyncio.FIRST_COMPLETED)
                if not died.done():
                    return answer.result()
            finally:
                died.cancel()
                answer.cancel()

    async def expect(self, device: str, index: int) -> str:
        return await self._ask("expect", device, index)

    async def hold(self, share: Share, members: Sequence[Mapping[str, Any]]) -> Held:
        if self._twice:
            await asyncio.gather(self._ask("hold", share, members), self._ask("hold", share, members))
        return await self._ask("hold", share, members)

    async def report(self, seen: int) -> Report:
        return await self._ask("report", seen)

    async def dismiss(self, finish: Finish) -> None:
        await self._ask("dismiss", finish)

    async def farewell(self, reason: str) -> None:
        await self._ask("farewell", reason)
