"""A run with its whole fleet simulated in this process: the same device and server code, on a clock that jumps.

Where a round may end without a device, devices keep commit points (`device/commit.py`), and one that was dropped begins
the next round anew from its own: the simulated device gives up the moment its round is closed, so that a run that is
resumed there is the same. (A real one finishes what it is at, which delays its next round by a step at most.)

Where late work is kept, devices are at work at a commit point. A run that is resumed begins at the time at which the
first of their tasks was begun, gives each device its assignment again when it was given it, and is at the commit point
where the stopped run was; nothing that happens on the way there is recorded a second time.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import takewhile
from types import MappingProxyType
from typing import Any

from cutlayer.device.commit import CommittingLink, device_state
from cutlayer.device.device import Device
from cutlayer.device.store import MemoryStore
from cutlayer.errors import ConfigError, DeviceGone
from cutlayer.files import for_owner_alone
from cutlayer.fleet.clock import now, run_virtual
from cutlayer.fleet.machine import ModelledMachine
from cutlayer.fleet.modes import speed_mode
from cutlayer.fleet.presence import hours_of, mustered
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
from cutlayer.run.start import check_wishes
from cutlayer.run.state import is_over, open_folder
from cutlayer.run.understood import Noticed, understood, unnoticed
from cutlayer.server.tasks import Tasks, first_seconds
from cutlayer.state import State, joined
from cutlayer.types import Event, RoundPlan
from cutlayer.wire.messages import Finish


def simulate(
    inputs: RunInputs,
    display: ProgressDisplay,
    *,
    resume: bool = False,
    noticed: Noticed = unnoticed,
    started: Mapping[str, Any] = MappingProxyType({}),
) -> Outcome:
    """Runs to the end and exports.

    Args:
      inputs: What the run is made of.
      display: Told of every event and round.
      resume: Go on from the checkpoint in the run folder.
      noticed: Told what the run has understood, before its first round, and what a person should not overlook.
      started: What the run was told beside its run file, which its folder keeps.

    Raises:
      UserError: The plan does not fit, the folder is taken, the checkpoint is not this run's, or training diverged.
    """
    with for_owner_alone():
        return _simulated(inputs, display, started, resume=resume, noticed=noticed)


def _simulated(
    inputs: RunInputs, display: ProgressDisplay, started: Mapping[str, Any], *, resume: bool, noticed: Noticed
) -> Outcome:
    method, logbook = method_of(inputs.config), Logbook()
    # What does not fit, and weights that cannot be read, show before anything is written.
    display.stage("counting what steps cost")
    situation = situation_of(inputs, logbook)
    plan = first_plan(inputs, method, situation)
    ranks = plan.ranks
    _check_links(inputs, method)
    display.stage("reading the model")
    inputs.base.whole()
    check_wishes(inputs, method, ranks)
    folder, checkpoint = open_folder(inputs, {"command": "train", **started}, resume=resume)
    simulation = _Simulation(inputs, method, ranks, folder, display, logbook, noticed)
    if checkpoint is None:
        simulation.tell_understood(situation, plan)
    try:
        start_seconds = _start_seconds(checkpoint, inputs) if checkpoint else 0.0
        return run_virtual(simulation.play(checkpoint), start_seconds=start_seconds)
    except BaseExceptionGroup as group:
        raise first_error(group) from group
    finally:
        folder.close()


def _check_links(inputs: RunInputs, method: Method) -> None:
    """Raises ConfigError where a resumed run could not repeat what is under way: it depends on who else was sending."""
    server = inputs.fleet.server
    shared = (server.up_bits_per_second, server.down_bits_per_second) != (None, None)
    if shared and stragglers_of(inputs.config, method).late == "keep":
        raise ConfigError(
            "train.late: expected drop or use where devices share the server's connection, got keep: how long a "
            "message under way takes depends on others that are over. Leave up_mbit and down_mbit of the server out."
        )


def _start_seconds(checkpoint: State, inputs: RunInputs) -> float:
    """The time at which a resumed run begins: that of its commit point, or of the oldest task that is under way."""
    run = checkpoint.branch("run").facts
    clock: float = run["clock_seconds"]
    if "tasks" not in checkpoint.facts or is_over(checkpoint, inputs.config.train.rounds):
        return clock
    return first_seconds(checkpoint.branch("tasks"), clock)


@dataclass(slots=True)
class _Player:
    """One simulated device: what it is, both ends of its link, and the task that plays it."""

    device: Device
    device_end: CompressedLink
    server_end: CompressedLink
    task: asyncio.Task[None] | None = None


@dataclass(frozen=True, slots=True)
class _Mustered:
    """The members of a simulated fleet: those who are there when a round is planned (`fleet/presence.py`)."""

    players: Mapping[str, _Player]
    situation: Situation
    all_of_them: bool
    tasks: Tasks
    muster_again: Callable[[], None]

    @property
    def links(self) -> Mapping[str, CompressedLink]:
        return {name: player.server_end for name, player in self.players.items()}

    async def muster(self, round: int) -> Situation:
        self.muster_again()
        here = self.situation.of(
            await mustered(self.situation.fleet, round, self.situation.seed, all_of_them=self.all_of_them)
        )
        return replace(here, fleet=here.fleet.spans_at(now()))

    def leave_out(self, unplaced: Mapping[str, Exception]) -> bool:  # noqa: ARG002  a person has written this fleet
        return False

    async def dismiss(self, finish: Finish) -> None:
        for device, link in self.links.items():
            if device not in self.tasks:  # those who are at work are stopped
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
        noticed: Noticed,
    ) -> None:
        self._inputs, self._method, self._display, self._logbook = inputs, method, display, logbook
        self._noticed = noticed
        self._events: list[Event] = []
        self._replaying = False
        fleet = inputs.fleet
        self._waits_for_all = stragglers_of(inputs.config, method).waits_for_all
        may_leave = not self._waits_for_all
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
            noticed=noticed,
        )

    def tell_understood(self, situation: Situation, plan: RoundPlan) -> None:
        """Tells what the run has understood."""
        devices = zip(self._inputs.fleet.devices, self._inputs.parts, strict=True)
        rows = {device.name: len(part) for device, part in devices}
        for told in understood(self._inputs, self._method, situation, plan, rows, self._run.server.adapter):
            self._noticed(told)

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
            under_way = self._run.tasks
            members = _Mustered(
                self._players, situation, self._waits_for_all, under_way, lambda: self._start_anew(tasks)
            )
            if checkpoint and under_way and not is_over(checkpoint, train.rounds):
                self._replaying = True  # what happened before the commit point has been recorded
                await under_way.replay(members.links, checkpoint.branch("run").facts["clock_seconds"])
                self._replaying = False
            adapter = await self._run.play(members)
            for name, player in self._players.items():
                if name in under_way and player.task is not None:
                    player.task.cancel()
        return self._run.finish(adapter, fleet)

    def _player(self, index: int) -> _Player:
        """The device at this place in the fleet, as it is before its first round."""
        inputs, profile = self._inputs, self._inputs.fleet.devices[index]

        def record(event: Event) -> None:
            if self._players[profile.name] is player:  # and not one that has been put in its place
                self._record(event)

        hours = hours_of(profile, inputs.config.train.seed)
        machine = ModelledMachine(profile.name, profile.effective_flops, record, speed_mode(profile), hours)
        batches, costs, settings = inputs.batches(index), inputs.costs, inputs.train_settings
        spans = self._spans.of(profile, record)
        held_out = inputs.held_out(index)
        device = Device(profile.name, inputs.base, batches, machine, costs, settings, inputs.shape, spans, held_out)
        device_end, server_end = self._sites.link(profile, record, hours)
        committing = CommittingLink(device_end, self._stores[profile.name]) if self._stores else None
        player = _Player(device, inputs.compressed(committing or device_end), inputs.compressed(server_end))
        if committing:
            committing.attach(device, player.device_end)
        return player

    def _start(self, name: str, tasks: asyncio.TaskGroup) -> None:
        player = self._players[name]
        player.task = tasks.create_task(player.device.converse(player.device_end), name=name)

    def _start_anew(self, tasks: asyncio.TaskGroup) -> None:
        """Puts a new one in the place of each device that the last round has dropped, or that judges it still."""
        last = self._logbook.rounds_done - 1
        records = reversed(self._logbook.history.records)
        dropped = {
            record.device for record in takewhile(lambda record: record.round == last, records) if not record.samples
        }
        for index, profile in enumerate(self._inputs.fleet.devices):
            if profile.name in dropped | self._logbook.owed and profile.name not in self._run.tasks:
                old = self._players[profile.name].task
                assert old is not None, "every player has been started"
                old.cancel()
                self._players[profile.name] = self._player(index)
                self._start(profile.name, tasks)

    def _record(self, event: Event) -> None:
        if self._replaying:
            return
        self._events.append(event)
        self._display.event(event)

    def state(self) -> State:
        """The state of the devices between rounds: a branch for each, as it is after its last round that counted."""
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
