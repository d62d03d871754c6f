"""A run with a real fleet: the server's process. Devices come by network (`join.py`); the rounds are the simulator's.

device  <- gRPC ->  hub, with a session each  <-  guard  <-  unpacking  <-  the round
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch
from pydantic import ValidationError

from cutlayer.coordinator import Logbook
from cutlayer.errors import Refused
from cutlayer.fleet.clock import now
from cutlayer.fleet.machine import Machines, RealMachine
from cutlayer.fleet.profile import DeviceProfile, Fleet
from cutlayer.methods.method import Method
from cutlayer.model.fingerprint import fingerprint
from cutlayer.model.pieces import PieceServer, manifest_bytes
from cutlayer.model.source import ModelFiles
from cutlayer.policies.plan import Known
from cutlayer.policies.stragglers import stragglers_by_name
from cutlayer.prepare import ServerIngredients
from cutlayer.report.fleet_progress import FleetDisplay
from cutlayer.report.fleet_view import DeviceNow
from cutlayer.report.run_folder import RunFolder
from cutlayer.run import DeviceStates, Outcome, Run, first_error, first_plan, method_of, open_folder, what_is_known
from cutlayer.server.checkpoint import Snapshot
from cutlayer.server.forecast import Forecast
from cutlayer.server.guard import Guard
from cutlayer.server.guarded import guarded
from cutlayer.server.hub import Hub, Member
from cutlayer.server.reception import Attended, Timelined
from cutlayer.server.refusals import Refusals
from cutlayer.server.roll_call import roll_call
from cutlayer.types import Event
from cutlayer.wire.budget import Budget
from cutlayer.wire.link import Link
from cutlayer.wire.messages import Answer, Ask, Finish, Ready, Welcome
from cutlayer.wire.packets import PIECE_BYTES
from cutlayer.wire.sent import Shelf
from cutlayer.wire.session import Session

IN_FLIGHT_BYTES = 256 * 2**20
"""Handed to gRPC, or half arrived, at a time: it holds about four times as much."""
ANSWER_BYTES = PIECE_BYTES // 2


class Door(Protocol):
    """How devices come in: gRPC (`doors.py`), or a modelled network in tests."""

    async def open(self, hub: Hub) -> None:
        """Lets devices in from now on."""

    async def close(self) -> None:
        """Lets nobody in any more, and ends what is left."""

    def standing(self, device: str) -> None:
        """Whether a device may still be here.

        Raises:
          Refused: Not any more.
        """


async def serve(
    ingredients: ServerIngredients,
    fleet: Fleet,
    display: FleetDisplay,
    door: Door,
    *,
    min_devices: int = 1,
    expected: Sequence[str] = (),
    resume: bool = False,
    life: str | None = None,
    machines: Machines = RealMachine,
) -> Outcome:
    """Serves a run to its end and exports.

    Args:
      ingredients: What the run is made of.
      fleet: The server's profile, and what is declared of devices, by name; of others what they measured counts.
      display: Told of every event and round, and of devices that come and go.
      door: How devices come in.
      min_devices: A round waits for so many; where the policy for stragglers waits for all, for all who ever came.
      expected: Names of devices that should come, for the display.
      resume: Go on from the checkpoint in the run folder, with the devices that it names.
      life: Names this life of the server, differently each time; None for a name by chance.
      machines: Makes what the server computes on.

    Raises:
      UserError: The plan does not fit, the folder is taken, the checkpoint is not this run's, or training diverged.
    """
    serving = _Serving(ingredients, fleet, display, door, min_devices, expected, life or secrets.token_hex(8), machines)
    try:
        return await serving.play(resume=resume)
    except BaseExceptionGroup as group:
        raise first_error(group) from group


class _Serving:
    """The wiring of one run: what the hub, the rounds and the run ask of each other."""

    def __init__(
        self,
        ingredients: ServerIngredients,
        fleet: Fleet,
        display: FleetDisplay,
        door: Door,
        min_devices: int,
        expected: Sequence[str],
        life: str,
        machines: Machines,
    ) -> None:
        self._ingredients, self._declared, self._display, self._door = ingredients, fleet, display, door
        self._min_devices, self._expected, self._life = min_devices, expected, life
        self._method: Method = method_of(ingredients.config)
        self._logbook, self._events = Logbook(), list[Event]()
        self._machine = machines(fleet.server.name, self._record)
        self._pieces = PieceServer(ingredients.model_settings)
        self._incoming, self._outgoing = Budget(IN_FLIGHT_BYTES), Budget(IN_FLIGHT_BYTES)
        self._shelf = Shelf(Path(ingredients.config.out) / "scratch")
        self._fingerprint = fingerprint(ModelFiles(ingredients.config.model.name))
        self._zero = self._round_opened = 0.0
        self._run: Run | None = None
        places = {device.name: index for index, device in enumerate(fleet.devices)}
        self.hub = Hub(life, self, places, Refusals(now), display.device_news)
        train = ingredients.config.train
        self._waits_for_all = stragglers_by_name(train.stragglers, train.late).waits_for_all

    async def play(self, *, resume: bool) -> Outcome:
        config, run_id = self._ingredients.config, self._ingredients.run_id
        # Weights that cannot be read and a port that is taken show before a new run has a folder.
        await self._machine.aside(self._ingredients.base.whole)
        if not resume:
            await self._door.open(self.hub)
        try:
            folder, snapshot = open_folder(config, run_id, resume=resume)
        except BaseException:
            if not resume:
                await self._door.close()
            raise
        try:
            if resume:  # whoever comes finds the fleet that there was
                self.hub.load_state(snapshot.members if snapshot else [])
                await self._door.open(self.hub)
            return await self._play(folder, snapshot)
        finally:
            folder.close()

    async def _play(self, folder: RunFolder, snapshot: Snapshot | None) -> Outcome:
        train = self._ingredients.config.train
        self._zero = now() - (snapshot.clock_seconds if snapshot else 0.0)
        self._display.fleet_opened(self._roll_call(), self._min_devices)
        reason = ""
        try:
            over = snapshot is not None and snapshot.rounds_done >= train.rounds
            if not over:  # else the devices know that it is, and do not come again
                await self.hub.wait_for(lambda: len(self.hub.here) >= self._min_devices)
            known = self._known(self.hub.everybody if over else self._planned)
            plan = await self._machine.aside(lambda: first_plan(self._ingredients, self._method, known))
            self._run = Run(
                self._ingredients,
                self._method,
                known.fleet,
                plan.ranks,
                folder=folder,
                display=self._display,
                logbook=self._logbook,
                machine=self._machine,
                clock=self._clock,
                events=self._events,
                states=lambda: DeviceStates(members=self.hub.state()),
                may_leave=True,
            )
            if snapshot:
                self._run.restore(snapshot)
            names = [device.name for device in known.fleet.devices]
            self._display.run_started(train.rounds, names, train.local_steps, first_round=self._logbook.rounds_done)
            adapter = await self._run.play(self)
            return self._run.finish(adapter, self._fleet(self.hub.everybody), self.hub.refusals.as_dict())
        except asyncio.CancelledError:
            reason = "the server was stopped; it may come back"
            raise
        except BaseException as error:
            reason = f"the server has ended: {error}"
            raise
        finally:
            await self.hub.farewell(reason)
            await self._door.close()
            self._machine.close()

    # ------------------------------------------------------------------ members, for the coordinator

    @property
    def links(self) -> Mapping[str, Link]:
        return {member.name: member.link for member in self.hub.fleet}

    async def muster(self, round: int) -> Known:  # noqa: ARG002
        await self.hub.wait_for(lambda: bool(self._planned))  # all may have been refused, and come again
        assert self._run is not None
        self._round_opened = now()
        known = self._known(self._planned)
        self._run.server.forecast = Forecast(known.fleet, self._ingredients.costs, self._ingredients.compression)
        return known

    async def dismiss(self, finish: Finish) -> None:
        await self.hub.dismiss(finish)

    @property
    def _planned(self) -> list[Member]:
        """Whom a round is planned for: where everybody is waited for, everybody; else those who are here."""
        return self.hub.fleet if self._waits_for_all else self.hub.here

    def _known(self, members: Sequence[Member]) -> Known:
        fleet = self._fleet(members)
        counts = {member.name: member.label_counts for member in members if member.label_counts}
        return what_is_known(self._ingredients, fleet, self._logbook, counts)

    def _fleet(self, members: Sequence[Member]) -> Fleet:
        profiles = tuple(member.profile for member in members if member.profile is not None)
        return Fleet(name="real", source="measured", server=self._declared.server, devices=profiles)

    # ------------------------------------------------------------------ the host, for the hub

    def welcome(self, device: str, index: int) -> Welcome:
        config = self._ingredients.config
        return Welcome(
            run=self._ingredients.run_id,
            session=self._life,
            device=device,
            index=index,
            config=config.model_dump_json(),
            labels=self._ingredients.labels,
            fingerprint=self._fingerprint.text,
            conversation=self._method.round.conversation,
        )

    def profile(self, ready: Ready) -> DeviceProfile:
        declared = next((device for device in self._declared.devices if device.name == ready.device), None)
        if declared is not None:
            return declared
        try:
            return DeviceProfile(
                name=ready.device,
                flops_per_second=ready.flops_per_second,
                efficiency=1.0,
                memory_bytes=ready.memory_bytes,
                up_bits_per_second=ready.up_bits_per_second,
                down_bits_per_second=ready.down_bits_per_second,
                latency_seconds=ready.latency_seconds,
                max_blocks=ready.max_blocks[0] if ready.max_blocks else None,
            )
        except ValidationError as error:
            field = error.errors()[0]
            raise Refused(
                "wrong-profile", f"device {ready.device}: expected {field['msg']}, got {field['loc']}. Measure again."
            ) from None

    async def answer(self, device: str, ask: Ask) -> Answer:
        if ask.what == "echo":
            return Answer(torch.zeros(min(ask.length, ANSWER_BYTES), dtype=torch.uint8))
        if ask.what == "files":
            head = ask.name == "head"
            # where the machine computes: torch builds a model on the meta device for one thread of a process at a time
            manifest = await self._machine.aside(lambda: self._pieces.manifest(ask.number, head=head))
            return _answer(manifest_bytes(manifest))
        if ask.what == "piece":
            return _answer(
                await asyncio.to_thread(self._pieces.read, ask.name, ask.number, min(ask.length, ANSWER_BYTES))
            )
        raise Refused("wrong-kind", f"device {device}: expected to be asked for echo, files or piece, got {ask.what}.")

    def session(self, device: str) -> tuple[Session, Link]:
        ingredients = self._ingredients
        guard = Guard(
            device,
            ingredients.run_id,
            ingredients.base,
            hidden_size=ingredients.costs.hidden_size,
            longest_tokens=ingredients.config.data.max_length,
            compression=ingredients.compression,
            holds=self._method.round.holds,
        )
        session = Session(
            self._life,
            limit_bytes=guard.frame_limit,
            incoming=self._incoming,
            outgoing=self._outgoing,
            shelf=self._shelf,
        )
        link = guarded(session, guard, lambda link: ingredients.compressed(Timelined(link, self._clock, self._record)))
        return session, Attended(
            link, lambda error: self.hub.eject(device, error), lambda: self.hub.members[device].refused
        )

    def standing(self, device: str) -> None:
        self._door.standing(device)

    # ------------------------------------------------------------------ time

    def _roll_call(self) -> Callable[[], list[DeviceNow]]:
        """How the devices are; for any thread."""
        loop, counts_steps = asyncio.get_running_loop(), self._method.round.conversation != "alone"

        def call() -> list[DeviceNow]:
            server, time = self._run.server if self._run else None, loop.time()
            members, since = list(self.hub.members.values()), time - self._round_opened
            return roll_call(members, self._expected, server, counts_steps=counts_steps, round_seconds=since, now=time)

        return call

    def _clock(self) -> float:
        return now() - self._zero

    def _record(self, event: Event) -> None:
        """Of the server's machine, on the loop's clock; of devices, on the run's."""
        if event.who == self._declared.server.name:
            event = replace(
                event, start_seconds=event.start_seconds - self._zero, end_seconds=event.end_seconds - self._zero
            )
        self._events.append(event)
        self._display.event(event)


def _answer(data: bytes) -> Answer:
    return Answer(torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.zeros(0, dtype=torch.uint8))
