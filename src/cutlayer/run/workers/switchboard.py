"""The switchboard: the head's hub. It sends every device on to its worker, and knows from the workers how all are.

A device's worker follows from its place in the fleet, which it has for good and which is in every checkpoint: places in
turn. So a device that comes again goes to the same worker, whoever was started again in between, and a run that goes on
with another number of workers deals its devices out anew.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from cutlayer.errors import WorkerLost
from cutlayer.gate.allowance import FAREWELL_SECONDS
from cutlayer.gate.hub import Host, Hub
from cutlayer.gate.metered import Metered
from cutlayer.gate.refusals import Refusals
from cutlayer.report.fleet_view import DeviceNow
from cutlayer.run.workers.worker import Held, Report
from cutlayer.server.share import Share
from cutlayer.transport.carrier import CarrierLost
from cutlayer.transport.handshake import say
from cutlayer.wire.messages import FINISHED, Elsewhere, Finish, Refusal


class Worker(Protocol):
    """A worker, wherever it is; `worker.WorkerProcess` says what each question means.

    A worker that died is begun again by whoever keeps it, and asked again; WorkerLost is raised where that is in vain.
    """

    async def expect(self, device: str, index: int) -> str: ...

    async def hold(self, share: Share, members: Sequence[Mapping[str, Any]]) -> Held: ...

    async def report(self, seen: int) -> Report: ...

    async def dismiss(self, finish: Finish) -> None: ...

    async def farewell(self, reason: str) -> None: ...


class Switchboard(Hub):
    """A hub that serves no device itself.

    Args:
      name, host, places, refusals, notice: See `Hub`.
      num_workers: How many workers there will be.

    Attributes:
      workers: in the order of their numbers; none before `staffed`.
    """

    workers: Sequence[Worker] = ()

    def __init__(
        self,
        name: str,
        host: Host,
        places: Mapping[str, int],
        refusals: Refusals,
        notice: Callable[[str], None],
        num_workers: int,
    ) -> None:
        super().__init__(name, host, places, refusals, notice)
        self._num_workers = num_workers
        self._reports: dict[int, Report] = {}

    def worker_of(self, device: str) -> int:
        """The number of the worker that serves a device."""
        return self.place(device) % self._num_workers

    @contextlib.asynccontextmanager
    async def staffed(self, workers: AbstractAsyncContextManager[Sequence[Worker]]) -> AsyncIterator[None]:
        """Has these workers, and keeps up with how their devices are, until the context ends.

        Raises:
          WorkerLost: One died and cannot be begun again.
        """
        async with workers as self.workers, asyncio.TaskGroup() as tasks:
            following = [tasks.create_task(self._follow(number)) for number in range(self._num_workers)]
            try:
                yield
            finally:
                for task in following:
                    task.cancel()

    async def ready(self) -> None:
        """Waits until every worker can take in devices."""
        await self.wait_for(lambda: len(self._reports) == self._num_workers)

    async def _follow(self, number: int) -> None:
        seen = -1
        while True:
            report = await self.workers[number].report(seen)
            self.mirror(number, report)
            seen = report.version

    def mirror(self, number: int, report: Report) -> None:
        """Takes in how a worker's devices are; of one that it does not know, it has lost the connection."""
        last = self._reports.get(number)
        if last is not None and last.life != report.life:
            self._notice(f"worker {number} died and was begun again")
            last = None
        if last is not None and last.made > report.made:
            return  # two were under way
        self._reports[number] = report
        for known in report.members:
            self._learn(known)
        before = {row.name: row for row in last.rows} if last is not None else {}
        for row in report.rows:
            if row.name in self.members:
                session, counted = self.members[row.name].session, before.get(row.name, DeviceNow(row.name, "away"))
                session.bytes_received += row.bytes_up - counted.bytes_up
                session.bytes_sent += row.bytes_down - counted.bytes_down
        for member in self.members.values():
            here = member.name in report.here
            if self.worker_of(member.name) == number and here != member.here:
                member.here = here
                self._news(f"{member.name} has {'come' if here else 'gone'}")
        self._news()

    def roll_call(self, expected: Sequence[str]) -> list[DeviceNow]:
        """The state of all devices, in the fleet's order, then of those that have never come; for any thread."""
        rows = {row.name: row for report in list(self._reports.values()) for row in report.rows}
        come = sorted({*rows, *list(self.members)}, key=self.place)
        names = [*come, *(name for name in expected if name not in come)]
        return [rows.get(name, DeviceNow(name, "away")) for name in names]

    def refused(self) -> dict[str, dict[str, int]]:
        """See `Hub.refused`; workers' counts of their present life are in it."""
        total: dict[str, Counter[str]] = {}
        for refusals in (self.refusals.as_dict(), *(report.refusals for report in self._reports.values())):
            for device, reasons in refusals.items():
                total.setdefault(device, Counter()).update(reasons)
        return {device: dict(sorted(reasons.items())) for device, reasons in sorted(total.items())}

    # ------------------------------------------------------------------ as a hub

    async def _take_in(self, carrier: Metered, device: str) -> None:
        try:
            address = await self.workers[self.worker_of(device)].expect(device, self.place(device))
        except WorkerLost as error:  # whereupon the run ends
            raise CarrierLost(str(error)) from None
        await say(carrier, Elsewhere(address))

    async def dismiss(self, finish: Finish) -> None:
        """See `Hub.dismiss`."""
        self._over = Refusal(FINISHED, finish.reason, final=True)
        self._told |= {member.name for member in self.here}
        await self._ask_all(lambda worker: worker.dismiss(finish))

    async def farewell(self, reason: str) -> None:
        """See `Hub.farewell`."""
        await self._ask_all(lambda worker: worker.farewell(reason))

    async def _ask_all(self, ask: Callable[[Worker], Awaitable[None]]) -> None:
        """Asks every worker; one that is gone or takes too long is left."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2 * FAREWELL_SECONDS):
                await asyncio.gather(*(ask(worker) for worker in self.workers), return_exceptions=True)
