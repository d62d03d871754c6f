"""A run with its whole fleet simulated in this process: the same device and server code, on a clock that jumps.

Where a round may end without a device, devices keep commit points (`device/commit.py`), and one that was dropped begins
the next round anew from its own: the simulated device gives up the moment its round is closed, so that a run that is
resumed there is the same. (A real one finishes what it is at, which delays its next round by a step at most.)
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import takewhile

from cutlayer.device.commit import CommittingLink, device_state
from cutlayer.device.device import Device
from cutlayer.device.store import MemoryStore
from cutlayer.errors import DeviceGone
from cutlayer.fleet.clock import now, run_virtual
from cutlayer.fleet.machine import ModelledMachine
from cutlayer.fleet.modes import speed_mode
from cutlayer.methods.method import Method
from cutlayer.packing import CompressedLink
from cutlayer.policies.plan import Situation
from cutlayer.report.progress import ProgressDisplay
from cutlayer.report.run_folder import RunFolder
from cutlayer.run.ending import Outcome
from cutlayer.run.inputs import RunInputs, method_of, stragglers_of
from cutlayer.run.loop import Logbook
from cutlayer.run.run import Run, first_error, first_plan, situation_of
from cutlayer.run.sites import SimulatedSites
from cutlayer.run.spans import SimulatedSpans
from cutlayer.run.state import open_folder
from cutlayer.state import State, joined
from cutlayer.types import Event
from cutlayer.wire.messages import Finish


def simulate(inputs: RunInputs, display: ProgressDisplay, *, resume: bool = False) -> Outcome:
    """Runs to the end and exports.

    Args:
      inputs: What the run is made of.
      display: Told of every event and round.
      resume: Go on from the checkpoint in the run folder.

    Raises:
      UserError: The plan does not fit, the folder is taken, the checkpoint is not this run's, or training diverged.
    """
    method, logbook = method_of(inputs.config), Logbook()
    # What does not fit, and weights that cannot be read, show before anything is written.
    ranks = first_plan(inputs, method, situation_of(inputs, logbook)).ranks
    inputs.base.whole()
    folder, checkpoint = open_folder(inputs.config, inputs.run_id, resume=resume)
    simulation = _Simulation(inputs, method, ranks, folder, display, logbook)
    try:
        return run_virtual(
            simulation.play(checkpoint),
            start_seconds=checkpoint.branch("run").facts["clock_seconds"] if checkpoint else 0.0,
        )
    except BaseExceptionGroup as group:
        raise first_error(group) from group
    finally:
        folder.close()


@dataclass(slots=True)
class _Player:
    """One simulated device: what it is, both ends of its link, and the task that plays it."""

    device: Device
    device_end: CompressedLink
    server_end: CompressedLink
    task: asyncio.Task[None] | None = None


@dataclass(frozen=True, slots=True)
class _Everyone:
    """The members of a simulated fleet: all of it, always."""

    players: Mapping[str, _Player]
    situation: Situation
    muster_again: Callable[[], None]

    @property
    def links(self) -> Mapping[str, CompressedLink]:
        return {name: player.server_end for name, player in self.players.items()}

    async def muster(self, round: int) -> Situation:  # noqa: ARG002
        self.muster_again()
        return replace(self.situation, fleet=self.situation.fleet.spans_at(now()))

    async def dismiss(self, finish: Finish) -> None:
        for link in self.links.values():
            with contextlib.suppress(DeviceGone):
                await link.send(finish)


class _Simulation:
    """The wiring of one run: machines, links, both ends."""

    def __init__(
        self,
        inputs: RunInputs,
        method: Method,
        ranks: tuple[int, ...],
        folder: RunFolder,
        display: ProgressDisplay,
        logbook: Logbook,
    ) -> None:
        self._inputs, self._method, self._display, self._logbook = inputs, method, display, logbook
        self._events: list[Event] = []
        fleet = inputs.fleet
        may_leave = not stragglers_of(inputs.config, method).waits_for_all
        self._sites = SimulatedSites(fleet, self._record, at_sites=method.round.shape.at_sites)
        self._spans = SimulatedSpans(
            fleet,
            inputs.base,
            inputs.costs,
            inputs.config.data.max_length,
            seed=inputs.config.train.seed,
            record=self._record,
            packed=inputs.compressed,
        )
        self._stores = {device.name: MemoryStore() for device in fleet.devices} if may_leave else {}
        self._players = {device.name: self._player(index) for index, device in enumerate(fleet.devices)}
        self._run = Run(
            inputs,
            method,
            fleet,
            ranks,
            folder=folder,
            display=display,
            logbook=logbook,
            machine=ModelledMachine(fleet.server.name, fleet.server.effective_flops, self._record),
            clock=now,
            events=self._events,
            devices=self,
            may_leave=may_leave,
            sites=self._sites,
        )

    async def play(self, checkpoint: State | None) -> Outcome:
        train, fleet = self._inputs.config.train, self._inputs.fleet
        if checkpoint:
            self._run.load(checkpoint)
            self.load(checkpoint.branch("devices"))
        names = [device.name for device in fleet.devices]
        self._display.run_started(train.rounds, names, train.local_steps, first_round=self._logbook.rounds_done)
        async with asyncio.TaskGroup() as tasks:
            for name in self._players:
                self._start(name, tasks)
            situation = situation_of(self._inputs, self._logbook)
            adapter = await self._run.play(_Everyone(self._players, situation, lambda: self._start_anew(tasks)))
        return self._run.finish(adapter, fleet)

    def _player(self, index: int) -> _Player:
        """The device at this place in the fleet, as it is before its first round."""
        inputs, profile = self._inputs, self._inputs.fleet.devices[index]

        def record(event: Event) -> None:
            if self._players[profile.name] is player:  # and not one that has been put in its place
                self._record(event)

        machine = ModelledMachine(profile.name, profile.effective_flops, record, speed_mode(profile))
        batches, costs, settings = inputs.batches(index), inputs.costs, inputs.train_settings
        spans = self._spans.of(profile, record)
        device = Device(profile.name, inputs.base, batches, machine, costs, settings, inputs.shape, spans)
        device_end, server_end = self._sites.link(profile, record)
        committing = CommittingLink(device_end, self._stores[profile.name]) if self._stores else None
        player = _Player(device, inputs.compressed(committing or device_end), inputs.compressed(server_end))
        if committing:
            committing.attach(device, player.device_end)
        return player

    def _start(self, name: str, tasks: asyncio.TaskGroup) -> None:
        player = self._players[name]
        player.task = tasks.create_task(player.device.converse(player.device_end), name=name)

    def _start_anew(self, tasks: asyncio.TaskGroup) -> None:
        """Puts a new one in the place of each device that the last round has dropped."""
        last = self._logbook.rounds_done - 1
        records = reversed(self._logbook.history.records)
        dropped = {
            record.device for record in takewhile(lambda record: record.round == last, records) if not record.samples
        }
        for index, profile in enumerate(self._inputs.fleet.devices):
            if profile.name in dropped:
                old = self._players[profile.name].task
                assert old is not None, "every player has been started"
                old.cancel()
                self._players[profile.name] = self._player(index)
                self._start(profile.name, tasks)

    def _record(self, event: Event) -> None:
        self._events.append(event)
        self._display.event(event)

    def state(self) -> State:
        """What outlives a round on the devices: a branch for each, as it is after its last round that counted."""
        return joined({name: self._state_of(name, player) for name, player in self._players.items()})

    def _state_of(self, name: str, player: _Player) -> State:
        if self._stores:
            return self._stores[name].load(self._run.server.ledger.counted.get(name))
        return device_state(player.device, player.device_end)

    def load(self, state: State) -> None:
        """Goes on from a `state`."""
        where, counted = self._inputs.base.device, self._run.server.ledger.counted
        for name, own in state.branches().items():
            player, branches = self._players[name], own.branches()
            player.device.load(branches["device"])
            player.device_end.load(branches["packing"].moved(where))
            if self._stores:
                self._stores[name].save(counted.get(name), own)
