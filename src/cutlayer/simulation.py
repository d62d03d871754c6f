"""A run with its whole fleet simulated in this process: the same device and server code, on a clock that jumps."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from cutlayer.coordinator import Logbook
from cutlayer.device.device import Device
from cutlayer.fleet.clock import now, run_virtual
from cutlayer.fleet.link import modelled_link
from cutlayer.fleet.machine import ModelledMachine
from cutlayer.fleet.modes import speed_mode
from cutlayer.methods.method import Method
from cutlayer.policies.compress import CompressedLink
from cutlayer.policies.plan import Known
from cutlayer.prepare import Ingredients
from cutlayer.report.progress import ProgressDisplay
from cutlayer.report.run_folder import RunFolder
from cutlayer.run import DeviceStates, Outcome, Run, first_error, first_plan, known_of, method_of, open_folder
from cutlayer.server.checkpoint import Snapshot
from cutlayer.types import Event


def simulate(ingredients: Ingredients, display: ProgressDisplay, *, resume: bool = False) -> Outcome:
    """Runs to the end and exports.

    Args:
      ingredients: What the run is made of.
      display: Told of every event and round.
      resume: Go on from the checkpoint in the run folder.

    Raises:
      UserError: The plan does not fit, the folder is taken, the checkpoint is not this run's, or training diverged.
    """
    method, logbook = method_of(ingredients.config), Logbook()
    # What does not fit, and weights that cannot be read, show before anything is written.
    ranks = first_plan(ingredients, method, known_of(ingredients, logbook)).ranks
    ingredients.base.whole()
    folder, snapshot = open_folder(ingredients.config, ingredients.run_id, resume=resume)
    simulation = _Simulation(ingredients, method, ranks, folder, display, logbook)
    try:
        return run_virtual(simulation.play(snapshot), start_seconds=snapshot.clock_seconds if snapshot else 0.0)
    except BaseExceptionGroup as group:
        raise first_error(group) from group
    finally:
        folder.close()


@dataclass(frozen=True, slots=True)
class _Everyone:
    """The members of a simulated fleet: all of it, always."""

    links: Mapping[str, CompressedLink]
    known: Known

    async def muster(self, round: int) -> Known:  # noqa: ARG002
        return self.known


class _Simulation:
    """The wiring of one run: machines, links, both ends."""

    def __init__(
        self,
        ingredients: Ingredients,
        method: Method,
        ranks: tuple[int, ...],
        folder: RunFolder,
        display: ProgressDisplay,
        logbook: Logbook,
    ) -> None:
        self._ingredients, self._method, self._display, self._logbook = ingredients, method, display, logbook
        self._events: list[Event] = []
        self._devices: dict[str, Device] = {}
        self._links: dict[str, tuple[CompressedLink, CompressedLink]] = {}  # the device's end, the server's
        fleet = ingredients.fleet
        for index, profile in enumerate(fleet.devices):
            machine = ModelledMachine(profile.name, profile.effective_flops, self._record, speed_mode(profile))
            self._devices[profile.name] = Device(
                profile.name,
                ingredients.base,
                ingredients.batches(index),
                machine,
                ingredients.costs,
                ingredients.train_settings,
            )
            device_end, server_end = modelled_link(profile, self._record)
            self._links[profile.name] = ingredients.compressed(device_end), ingredients.compressed(server_end)
        self._run = Run(
            ingredients,
            method,
            fleet,
            ranks,
            folder=folder,
            display=display,
            logbook=logbook,
            machine=ModelledMachine(fleet.server.name, fleet.server.effective_flops, self._record),
            clock=now,
            events=self._events,
            states=self._states,
        )

    async def play(self, snapshot: Snapshot | None) -> Outcome:
        train, fleet = self._ingredients.config.train, self._ingredients.fleet
        if snapshot:
            self._restore(snapshot)
        names = [device.name for device in fleet.devices]
        self._display.run_started(train.rounds, names, train.local_steps, first_round=self._logbook.rounds_done)
        server_ends = {name: server_end for name, (_, server_end) in self._links.items()}
        members = _Everyone(server_ends, known_of(self._ingredients, self._logbook))
        async with asyncio.TaskGroup() as tasks:
            for name, (device_end, _) in self._links.items():
                tasks.create_task(self._method.round.device_end(device_end, self._devices[name]), name=name)
            adapter = await self._run.play(members)
        return self._run.finish(adapter, fleet)

    def _record(self, event: Event) -> None:
        self._events.append(event)
        self._display.event(event)

    def _states(self) -> DeviceStates:
        states = {name: device.state() for name, device in self._devices.items()}
        return DeviceStates(
            cursors={name: cursor for name, (cursor, _) in states.items()},
            moments={name: moments for name, (_, moments) in states.items()},
            lost={name: device_end.state() for name, (device_end, _) in self._links.items()},
        )

    def _restore(self, snapshot: Snapshot) -> None:
        self._run.restore(snapshot)
        where = self._ingredients.base.device
        for name, device in self._devices.items():
            device.load_state(snapshot.cursors[name], snapshot.device_moments[name])
            self._links[name][0].load_state({key: value.to(where) for key, value in snapshot.lost[name].items()})
