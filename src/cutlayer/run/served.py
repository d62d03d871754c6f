"""A run with a real fleet: the server's process. Devices come by network (`joining.py`); rounds are the simulator's.

device  <- gRPC ->  hub, with a session each  <-  guard  <-  unpacking  <-  the round

With several workers (`run/workers/`) the hub only sends devices on, and each worker has a part of the round. Where
rounds end at sites, devices may come to sites that are processes of their own (`site_served.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from cutlayer.errors import Refused
from cutlayer.files import for_owner_alone
from cutlayer.fleet.clock import now
from cutlayer.fleet.machine import Machines, RealMachine
from cutlayer.fleet.profile import MEASURED, Fleet
from cutlayer.gate.cloud_hub import CloudHub
from cutlayer.gate.hub import Hub, Member
from cutlayer.gate.refusals import Refusals
from cutlayer.gate.roll_call import roll_call
from cutlayer.methods.contradictions import check_held_out_at_one, check_patience, check_workers
from cutlayer.methods.method import Method
from cutlayer.policies.plan import Situation
from cutlayer.policies.spans import check_listening
from cutlayer.report.fleet_progress import FleetDisplay
from cutlayer.report.fleet_view import DeviceNow
from cutlayer.report.here import Saying
from cutlayer.report.run_folder import RunFolder
from cutlayer.rounds.patience import WARMING_SECONDS
from cutlayer.rounds.sited import Sited
from cutlayer.run.desk import RunHost
from cutlayer.run.ending import Outcome, Real
from cutlayer.run.far_sites import FarSites, cloud_hub
from cutlayer.run.inputs import ServerInputs, method_of, stragglers_of
from cutlayer.run.loop import Logbook
from cutlayer.run.placed import placed
from cutlayer.run.run import Run, first_error, first_plan, situation_with
from cutlayer.run.start import check_wishes
from cutlayer.run.state import is_over, open_folder
from cutlayer.run.understood import Noticed, understood, unnoticed
from cutlayer.run.workers.divided import divisible_methods, holding
from cutlayer.run.workers.switchboard import Switchboard, Worker
from cutlayer.server.forecast import Forecast
from cutlayer.state import State
from cutlayer.types import Event
from cutlayer.wire.link import Link
from cutlayer.wire.messages import Finish


class Workers(Protocol):
    """The way in which workers are begun: by Ray (`run/workers/ray_workers.py`), or in this process in tests.

    Attributes:
      number: how many.
    """

    number: int

    def start(self, inputs: ServerInputs, declared: Fleet) -> AbstractAsyncContextManager[Sequence[Worker]]:
        """Workers, which end with the context. WorkerLost: There is no place for them."""


class Door(Protocol):
    """The door through which devices come in: gRPC (`gate/door.py`), or a modelled network in tests."""

    async def open(self, hub: Hub) -> None:
        """Lets devices in from now on."""

    async def close(self) -> None:
        """Lets nobody in any more, and ends what is left."""

    def standing(self, device: str) -> None:
        """Whether a device may still be here.

        Raises:
          Refused: Not any more.
        """


SERVED = MappingProxyType({"command": "serve"})


async def serve(
    inputs: ServerInputs,
    fleet: Fleet,
    display: FleetDisplay,
    door: Door,
    *,
    min_devices: int = 1,
    expected: Sequence[str] = (),
    resume: bool = False,
    life: str | None = None,
    machines: Machines = RealMachine,
    workers: Workers | None = None,
    started: Mapping[str, Any] = SERVED,
    patience: float | None = None,
    noticed: Noticed = unnoticed,
) -> Outcome:
    """Serves a run to its end and exports.

    Args:
      inputs: What the run is made of.
      fleet: The server's profile, and what is declared of devices, by name; of others what they measured counts.
      display: Told of every event and round, and of devices that come and go.
      door: How devices come in.
      min_devices: A round waits for so many; where the policy for stragglers waits for all, for all who ever came.
      expected: Names of devices that should come, for the display.
      resume: Go on from the checkpoint in the run folder, with the devices that it names.
      life: Names this life of the server, differently each time; None for a name by chance.
      machines: Makes what the server computes on.
      workers: Other processes that serve the devices; None where this one does.
      started: See `run.state.open_folder`.
      patience: Seconds after which a device that is away counts as gone; None waits for ever.
      noticed: Told what the run has understood, before its first round, and what a person should not overlook.

    Raises:
      UserError: The plan does not fit, the folder is taken, the checkpoint is not this run's, or training diverged.
    """
    life = life or secrets.token_hex(8)
    serving = _Serving(
        inputs, fleet, display, door, min_devices, expected, life, machines, workers, started, patience, noticed
    )
    try:
        with for_owner_alone():
            return await serving.play(resume=resume)
    except BaseExceptionGroup as group:
        raise first_error(group) from group


class _Serving:
    """The wiring of one run: what the hub, the rounds and the run ask of each other."""

    def __init__(
        self,
        inputs: ServerInputs,
        fleet: Fleet,
        display: FleetDisplay,
        door: Door,
        min_devices: int,
        expected: Sequence[str],
        life: str,
        machines: Machines,
        workers: Workers | None,
        started: Mapping[str, Any],
        patience: float | None,
        noticed: Noticed,
    ) -> None:
        self._started, self._patience, self._noticed = started, patience, noticed
        self._inputs, self._declared, self._display, self._door = inputs, fleet, display, door
        self._min_devices, self._expected = min_devices, expected
        self._method: Method = method_of(inputs.config)
        self._logbook, self._events = Logbook(), list[Event]()
        self._machine = machines(fleet.server.name, self._record_own)
        self._zero = self._round_opened = 0.0
        self._run: Run | None = None
        self._lost: Mapping[str, str] = {}
        self._host = host = RunHost(
            inputs,
            self._method,
            fleet,
            life,
            self._machine,
            clock=self._clock,
            record=self._record,
            standing=self._standing,
            scratch=Path(inputs.config.out) / "scratch",
        )
        places = {device.name: index for index, device in enumerate(fleet.devices)}
        stragglers = stragglers_of(inputs.config, self._method)
        self._waits_for_all = stragglers.waits_for_all
        refusals, news = Refusals(now), display.device_news
        self._workers = workers
        self._switchboard: Switchboard | None = None
        self._cloud: CloudHub | None = None
        if workers is None:
            host.hub = Hub(life, host, places, refusals, self._news)
            if isinstance(self._method.round, Sited):
                self._cloud = cloud_hub(inputs, host.hub, host, fleet, stragglers, refusals, news)
        else:
            check_held_out_at_one(inputs.config.data.hold_out)
            check_patience(patience)
            check_workers(inputs.config.method.name, self._method.round, stragglers, divisible_methods)
            host.hub = self._switchboard = Switchboard(life, host, places, refusals, news, workers.number)
        self._near, self.hub = host.hub, self._cloud or host.hub

    async def play(self, *, resume: bool) -> Outcome:
        async with contextlib.AsyncExitStack() as stack:
            if self._workers is not None and self._switchboard is not None:
                workers = self._workers.start(self._inputs, self._declared)
                await stack.enter_async_context(self._switchboard.staffed(workers))
            return await self._open(resume=resume)

    async def _open(self, *, resume: bool) -> Outcome:
        # Weights that cannot be read and a port that is taken show before a new run has a folder.
        await self._machine.aside(self._inputs.load)
        await self._machine.aside(lambda: check_wishes(self._inputs, self._method))
        if self._switchboard is not None:
            await self._switchboard.ready()
        if not resume:
            await self._door.open(self._near)
        try:
            folder, checkpoint = open_folder(self._inputs, self._started, resume=resume)
        except BaseException:
            if not resume:
                await self._door.close()
            raise
        try:
            if resume:  # whoever comes finds the fleet that there was
                self.hub.load(checkpoint.branch("devices") if checkpoint else State({"members": []}))
                await self._door.open(self._near)
            return await self._play(folder, checkpoint)
        finally:
            folder.close()

    async def _play(self, folder: RunFolder, checkpoint: State | None) -> Outcome:
        reason = ""
        async with contextlib.AsyncExitStack() as end:  # each of these, even if the one before it is given up
            end.callback(self._machine.close)
            end.push_async_callback(self._door.close)
            end.push_async_callback(lambda: self.hub.farewell(reason))
            try:
                return await self._played(folder, checkpoint)
            except asyncio.CancelledError:
                reason = "the server was stopped; it may come back"
                raise
            except BaseException as error:
                reason = f"the server has ended: {error}"
                raise

    async def _played(self, folder: RunFolder, checkpoint: State | None) -> Outcome:
        train = self._inputs.config.train
        so_far = checkpoint.branch("run").facts if checkpoint else {"clock_seconds": 0.0}
        self._zero = now() - so_far["clock_seconds"]
        self._display.fleet_opened(self._roll_call(), self._min_devices)
        saying = Saying(
            [folder.path, *([Path(roster)] if (roster := self._started.get("roster")) else [])],
            folder.path,
            self._roll_call(),
            lambda: (self._logbook.rounds_done, train.rounds),
        )
        saying.open()
        try:
            return await self._with_devices(folder, checkpoint)
        finally:
            saying.close()

    async def _with_devices(self, folder: RunFolder, checkpoint: State | None) -> Outcome:
        """The run, from where devices may come."""
        train = self._inputs.config.train
        over = checkpoint is not None and is_over(checkpoint, train.rounds)
        if not over:  # else the devices know that it is, and do not come again
            await self.hub.wait_for(lambda: len(self.hub.here) >= self._min_devices)
        situation, plan = await placed(
            self._situation(self.hub.everybody if over else self._planned),
            lambda here: first_plan(self._inputs, self._method, here),
            self._gathered,
            self.leave_out,
            self._machine,
        )
        check_listening(plan)
        self._run = Run(
            self._inputs,
            self._method,
            situation.fleet,
            plan.ranks,
            folder=folder,
            display=self._display,
            logbook=self._logbook,
            machine=self._machine,
            clock=self._clock,
            events=self._events,
            devices=self.hub,
            may_leave=True,
            sites=None if self._cloud is None else FarSites(self._cloud, self._clock, self._record),
            noticed=self._noticed,
        )
        if checkpoint:
            self._run.load(checkpoint)
        else:
            rows = {member.name: member.num_samples for member in self.hub.members.values()}
            args = (self._inputs, self._method, situation, plan, rows, self._run.server.adapter)
            for told in await self._machine.aside(lambda: list(understood(*args))):
                self._noticed(told)
        names = [device.name for device in situation.fleet.devices]
        self._display.run_started(train.rounds, names, train.local_steps, first_round=self._logbook.rounds_done)
        hold = None if self._switchboard is None else holding(self._switchboard, self._clock, self._record)
        watching = asyncio.create_task(self.hub.watch_absent(self._awaits, self._patience))
        try:
            adapter = await self._run.play(self, hold, warming_seconds=WARMING_SECONDS)
        finally:
            watching.cancel()
        outcome = self._run.finish(
            adapter,
            self._fleet(self.hub.everybody),
            self.hub.refused(),
            self._lost,
            Real(self._speeds(), self._on_the_wire()),
        )
        await self.hub.linger()
        return outcome

    def _news(self, line: str) -> None:
        """A device has come or gone."""
        if self._cloud is not None:
            self._cloud.stir()
        self._display.device_news(line)

    def _standing(self, device: str) -> None:
        """Whether a device, or a site, may still be here. Raises Refused."""
        self._door.standing(device)
        if self._cloud is not None:
            self._cloud.check_near(device)

    # ------------------------------------------------------------------ members, for the coordinator

    @property
    def links(self) -> Mapping[str, Link]:
        return {member.name: member.link for member in self.hub.fleet}

    async def muster(self, round: int) -> Situation:  # noqa: ARG002
        situation = await self._gathered()
        assert self._run is not None
        self._round_opened = now()
        self._run.server.forecast = Forecast(situation.fleet, self._inputs.costs, self._inputs.compression)
        return situation

    async def _gathered(self) -> Situation:
        """Waits until there are devices to plan a round for: all may have been refused. Returns their situation. The
        first round waits for as many as are asked for, of those that can be given a part."""
        first = self._run is None
        await self.hub.wait_for(lambda: bool(self._planned) and not (first and len(self.hub.here) < self._min_devices))
        return self._situation(self._planned)

    def _awaits(self, device: str) -> bool:
        """Whether the round under way waits for a device."""
        part = None if self._run is None else self._run.server.ledger.part(device)
        return part is not None and not (part.done or part.gone)

    def leave_out(self, unplaced: Mapping[str, Exception]) -> bool:
        for device, error in unplaced.items():
            self.hub.turn_away(device, Refused("unplaced", str(error)))
        return True

    async def dismiss(self, finish: Finish) -> None:
        self._lost = self.hub.lost()
        await self.hub.dismiss(finish)

    @property
    def _planned(self) -> list[Member]:
        """The devices that a round is planned for: where all are waited for, all of them; else those that are here."""
        return self.hub.fleet if self._waits_for_all else self.hub.here

    def _situation(self, members: Sequence[Member]) -> Situation:
        fleet = self._fleet(members)
        counts = {member.name: member.label_counts for member in members if member.label_counts}
        return situation_with(self._inputs, fleet, self._logbook, counts)

    def _fleet(self, members: Sequence[Member]) -> Fleet:
        profiles = tuple(member.profile for member in members if member.profile is not None)
        declared = self._declared
        real = Fleet(name="real", source="measured", server=declared.server, devices=profiles, spans=declared.spans)
        if self._cloud is None:
            return real
        return real.model_copy(update={"sites": self._cloud.places([one.name for one in profiles])})

    # ------------------------------------------------------------------ what is real, for the summary

    def _speeds(self) -> dict[str, float]:
        """FLOP/s that machines have measured, as far as this process knows."""
        own = {} if self._declared.name != MEASURED else {self._declared.server.name: self._declared.server}
        named = {device.name for device in self._declared.devices}
        profiles = {member.name: member.profile for member in self.hub.everybody if member.name not in named}
        measured = {name: one.flops_per_second for name, one in {**own, **profiles}.items() if one is not None}
        return measured | self._host.measured

    def _on_the_wire(self) -> tuple[int, int]:
        """Bytes up and down since this process began, as the display shows them."""
        rows = self._roll_call()()
        return sum(row.bytes_up for row in rows), sum(row.bytes_down for row in rows)

    # ------------------------------------------------------------------ time

    def _roll_call(self) -> Callable[[], list[DeviceNow]]:
        """Returns a function that says how the devices are, for any thread to call."""
        if (switchboard := self._switchboard) is not None:
            return lambda: switchboard.roll_call(self._expected)
        loop = asyncio.get_running_loop()

        def call() -> list[DeviceNow]:
            server, time = self._run.server if self._run else None, loop.time()
            members, since = list(self.hub.members.values()), time - self._round_opened
            blocks, done, refusals = self._inputs.base.num_blocks, self.hub.told, self.hub.refusals.by_device()
            return roll_call(
                members,
                self._expected,
                server,
                round_seconds=since,
                now=time,
                done=done,
                blocks=blocks,
                refusals=refusals,
            )

        return call

    def _clock(self) -> float:
        return now() - self._zero

    def _record_own(self, event: Event) -> None:
        """Records an event of this process's machine, which is on the loop's clock."""
        start, end = event.start_seconds - self._zero, event.end_seconds - self._zero
        self._record(replace(event, start_seconds=start, end_seconds=end))

    def _record(self, event: Event) -> None:
        """Records an event of a device or a worker, on the run's clock."""
        self._events.append(event)
        self._display.event(event)
