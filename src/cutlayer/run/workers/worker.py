"""A worker: a process of the server with a base of its own, which serves its share of the devices.

    device  ->  head            hello; sent on to its worker
    device <->  worker          all else
    head   <->  worker          before a round its share, after it what came of it; who has come and gone

A worker keeps nothing that outlives a round. If it dies, the head's process begins another, which is given the same
share; its devices come again by the head and begin the round again with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc.aio
import torch

from cutlayer.errors import Refused, StragglersError
from cutlayer.fleet.clock import now
from cutlayer.fleet.machine import Machines, RealMachine
from cutlayer.fleet.profile import Fleet
from cutlayer.gate.door import Admission, Register, door_of
from cutlayer.gate.hub import Hub
from cutlayer.gate.refusals import Refusals
from cutlayer.gate.roll_call import roll_call
from cutlayer.policies.aggregate import Contribution
from cutlayer.report.fleet_view import DeviceNow
from cutlayer.rounds.patience import WARMING_SECONDS, Patience
from cutlayer.run.desk import RunHost
from cutlayer.run.inputs import ServerInputs, method_of, stragglers_of
from cutlayer.run.run import first_error, server_of
from cutlayer.server.forecast import Forecast
from cutlayer.server.server import Server
from cutlayer.server.share import Share, Yield, take_share, yield_of
from cutlayer.transport.address import joined
from cutlayer.types import Event
from cutlayer.wire.messages import Finish

REPORT_SECONDS = 1.0
"""A worker reports as often, and whenever a device has come or gone."""


@dataclass(frozen=True, slots=True)
class Setup:
    """The things that a worker is made of.

    Attributes:
      inputs: of the run.
      declared: the server's profile, and what is declared of devices.
      address: `HOST:PORT` where it listens; port 0 takes a free one.
      roster: the fleet folder; None lets everybody in.
      scratch: where it keeps what memory has no room for.
      threads: that it computes with; None leaves it to torch.
    """

    inputs: ServerInputs
    declared: Fleet
    address: str
    roster: Path | None
    scratch: Path
    threads: int | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """The state of a worker's devices.

    Attributes:
      life: of the worker: another one after it died.
      made: reports of this life before it.
      version: goes up when one has come or gone.
      members: as a checkpoint keeps them (`Hub.rows`).
      here: who is connected and ready.
      rows: as a person sees them.
      refusals: by device and reason, how often, in this life of the worker.
    """

    life: str
    made: int
    version: int
    members: Sequence[Mapping[str, Any]]
    here: frozenset[str]
    rows: Sequence[DeviceNow]
    refusals: Mapping[str, Mapping[str, int]]


@dataclass(frozen=True, slots=True)
class Held:
    """A share that was held.

    Attributes:
      done: what came of it.
      events: what machines and links did, in seconds since it began.
      seconds: how long it took.
      report: at its end.
    """

    done: Yield
    events: Sequence[Event]
    seconds: float
    report: Report


class WorkerProcess:
    """A worker. Whatever is asked of it first opens it; each question may be asked twice.

    Args:
      setup: What it is made of.
      host: By which devices reach it; empty for the host by which they reach the head.
      machines: Makes what it computes on.
    """

    def __init__(self, setup: Setup, host: str = "", machines: Machines = RealMachine) -> None:
        self._setup, self._host, self._machines = setup, host, machines
        self._life = secrets.token_hex(8)
        self._opening: asyncio.Task[None] | None = None
        self._round: tuple[int, asyncio.Task[Held]] | None = None
        self._expected: set[str] = set()
        self._events: list[Event] = []
        self._version, self._changed = 0, asyncio.Event()
        self._made = 0
        self._began = 0.0

    async def expect(self, device: str, index: int) -> str:
        """A device is about to come.

        Args:
          device: Its name.
          index: Its place in the fleet.

        Returns:
          Where to, as in `messages.Elsewhere`.
        """
        await self._open()
        self._expected.add(device)
        self._hub.put(device, index)
        return joined(self._host, self._port)

    async def hold(self, share: Share, members: Sequence[Mapping[str, Any]]) -> Held:
        """Holds a share of a round.

        Args:
          share: The share.
          members: What is known of its devices (`Hub.rows`).

        Raises:
          UserError: Training diverged.
        """
        await self._open()
        if self._round is None or self._round[0] != share.plan.round:
            self._round = share.plan.round, asyncio.ensure_future(self._hold(share, members))
        return await asyncio.shield(self._round[1])

    async def report(self, seen: int) -> Report:
        """Reports how the worker's devices are, as soon as there is news since version `seen`, or in a second."""
        await self._open()
        if self._version == seen:
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), REPORT_SECONDS)
        return self._report()

    async def dismiss(self, finish: Finish) -> None:
        """See `Hub.dismiss`."""
        await self._open()
        await self._hub.dismiss(finish)

    async def farewell(self, reason: str) -> None:
        """See `Hub.farewell`; it lets nobody in any more."""
        if self._opening is not None:
            await self._open()
            await self._hub.farewell(reason)
            await self._door.close()

    # ------------------------------------------------------------------ opening

    async def _open(self) -> None:
        if self._opening is None:
            self._opening = asyncio.ensure_future(self._opened())
        await asyncio.shield(self._opening)

    async def _opened(self) -> None:
        setup = self._setup
        if setup.threads is not None:
            torch.set_num_threads(setup.threads)
        inputs, self._method = setup.inputs, method_of(setup.inputs.config)
        self._patience = Patience(stragglers_of(inputs.config, self._method), warming_seconds=WARMING_SECONDS)
        self._machine = self._machines(setup.declared.server.name, self._events.append)
        self._server = await self._machine.aside(self._made_server)
        self._door = door_of(setup.address, setup.roster, self._set_port, self._admission)
        host = RunHost(
            inputs,
            self._method,
            setup.declared,
            self._life,
            self._machine,
            clock=now,
            record=self._events.append,
            standing=self._door.standing,
            scratch=setup.scratch,
        )
        self._hub = host.hub = Hub(self._life, host, {}, Refusals(now), self._notice)
        await self._door.open(self._hub)

    def _made_server(self) -> Server:
        """The server, with all of its weights, where models are built."""
        setup = self._setup
        setup.inputs.load()
        return server_of(setup.inputs, self._method, {}, self._machine, setup.declared, setup.scratch)

    def _admission(self, roster: Register | None) -> Admission:
        return _Expecting(roster, self._expected)

    def _set_port(self, port: int) -> None:
        self._port = port

    def _notice(self, _line: str) -> None:
        self._version += 1
        self._changed.set()

    # ------------------------------------------------------------------ a round

    async def _hold(self, share: Share, members: Sequence[Mapping[str, Any]]) -> Held:
        self._began = now()
        known = {member.name for member in self._hub.everybody}
        self._hub.take_in([row for row in members if row["name"] not in known])
        profiles = tuple(member.profile for member in self._hub.everybody if member.profile is not None)
        fleet = self._setup.declared.model_copy(update={"devices": profiles})
        inputs = self._setup.inputs
        self._server.forecast = Forecast(fleet, inputs.costs, inputs.compression)
        await self._machine.aside(lambda: self._take(share))
        contributions = await self._contributions(share)
        done = await self._machine.aside(lambda: yield_of(self._server, contributions))
        events = [
            replace(event, start_seconds=event.start_seconds - self._began, end_seconds=event.end_seconds - self._began)
            for event in self._events
        ]
        self._events.clear()
        return Held(done, events, now() - self._began, self._report())

    def _take(self, share: Share) -> None:
        """Takes in a share; what models are built for is counted here, where it holds up no link."""
        server, devices = self._server, share.plan.devices
        take_share(server, share)
        for device in devices:
            server.forecast.step(device, device.batch_size, server.longest_tokens)
        for device in devices:
            self._method.round.shape.prepare(server.base, device)

    async def _contributions(self, share: Share) -> list[Contribution]:
        links = {member.name: member.link for member in self._hub.everybody}
        try:
            return await self._patience.hold(self._method.round, self._server, links, share.plan)
        except StragglersError:
            return []  # elsewhere somebody may have finished
        except BaseExceptionGroup as group:
            raise first_error(group) from None

    def _report(self) -> Report:
        members = list(self._hub.members.values())
        rows = roll_call(
            members,
            [],
            self._server,
            round_seconds=now() - self._began,
            now=now(),
        )
        here = frozenset(member.name for member in members if member.here)
        self._made += 1
        return Report(self._life, self._made, self._version, self._hub.rows(), here, rows, self._hub.refusals.as_dict())


class _Expecting(Admission):
    """Lets in those whom the head has sent."""

    def __init__(self, roster: Register | None, expected: set[str]) -> None:
        super().__init__(roster)
        self._expected = expected

    def admit(self, context: grpc.aio.ServicerContext[bytes, bytes]) -> str:
        """See `Admission.admit`.

        Raises:
          Refused: unexpected: the head has not sent it, or has sent it to this process's earlier life.
        """
        name = super().admit(context)
        if name not in self._expected:
            raise Refused("unexpected", f"device {name}: expected one that the server has sent here, got another.")
        return name
