"""A run with its whole fleet simulated in this process: the same device and server code, on a clock that jumps."""

from __future__ import annotations

import asyncio
import math
import shutil
import statistics
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cutlayer.config import RunConfig
from cutlayer.coordinator import Coordinator, Logbook
from cutlayer.device.device import Device
from cutlayer.errors import DivergedError, UserError
from cutlayer.fleet.clock import now, run_virtual
from cutlayer.fleet.link import modelled_link
from cutlayer.fleet.machine import ModelledMachine
from cutlayer.fleet.modes import speed_mode
from cutlayer.fleet.profile import DeviceProfile, ServerProfile
from cutlayer.methods.method import Method
from cutlayer.methods.table import build_method
from cutlayer.model.export import save_adapter
from cutlayer.model.pruned import save_pruned
from cutlayer.policies.compress import CompressedLink
from cutlayer.policies.learning_rate import schedule
from cutlayer.policies.plan import Known
from cutlayer.prepare import Ingredients
from cutlayer.report.devices import DeviceRow, device_ledger
from cutlayer.report.gantt import gantt_svg
from cutlayer.report.progress import ProgressDisplay
from cutlayer.report.run_folder import RunFolder
from cutlayer.report.summary import peak_cuda_bytes, peak_memory_bytes, versions
from cutlayer.server.checkpoint import Snapshot, load_checkpoint, save_checkpoint
from cutlayer.server.evaluate import evaluate
from cutlayer.server.forecast import Forecast
from cutlayer.server.server import Server
from cutlayer.types import Adapter, Event, RoundPlan

STEPS_IN_CHART = 4
"""Of the last round, in report.svg: enough to see who waits for whom."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run ended with.

    Attributes:
      folder: the run folder.
      adapter: the PEFT folder in it.
      before: metrics of the untrained adapter.
      metrics: metrics of the trained one.
      devices: what each machine did, the server last.
      summary: what summary.json holds.
    """

    folder: Path
    adapter: Path
    before: dict[str, float]
    metrics: dict[str, float]
    devices: list[DeviceRow]
    summary: dict[str, Any]


def known_of(ingredients: Ingredients, logbook: Logbook) -> Known:
    """What planners may look at."""
    train = ingredients.config.train
    return Known(
        fleet=ingredients.fleet,
        costs=ingredients.costs,
        history=logbook.history,
        num_tokens=ingredients.config.data.max_length,
        batch_size=train.batch_size,
        local_steps=train.local_steps,
        rank=ingredients.config.lora.rank,
        seed=train.seed,
        label_counts=ingredients.label_counts,
        base_dropout=ingredients.config.model.base_dropout,
        rounds=train.rounds,
    )


def method_of(config: RunConfig) -> Method:
    """The method that the config names, with its options."""
    return build_method(config.method.name, config.method.options, config.train.seed)


def first_plan(ingredients: Ingredients, method: Method, known: Known) -> RoundPlan:
    """The plan of the first round.

    Raises:
      BudgetError: A device cannot hold its part.
      ConfigError: The method's choices contradict each other, or the model or its LoRA.
    """
    plan = method.make_plan(0, known)
    if any(device.prune or device.score for device in plan.devices):
        _ = ingredients.base.structure  # raises where this model cannot be pruned
    return plan


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
    plan = first_plan(ingredients, method, known_of(ingredients, logbook))
    ingredients.base.whole()
    path = Path(ingredients.config.out)
    snapshot = load_checkpoint(path / "checkpoint", ingredients.run_id) if resume else None
    folder = RunFolder.reopen(path) if resume else RunFolder.create(path)
    if not resume:
        folder.write_config(ingredients.config.to_yaml())
    try:
        return _Simulation(ingredients, method, folder, display, logbook, plan.ranks).run(snapshot, resume)
    finally:
        folder.close()


class _Simulation:
    """The wiring of one run: machines, links, both ends, and what happens at a commit point."""

    def __init__(
        self,
        ingredients: Ingredients,
        method: Method,
        folder: RunFolder,
        display: ProgressDisplay,
        logbook: Logbook,
        ranks: tuple[int, ...],
    ) -> None:
        self._ingredients, self._method, self._folder, self._display = ingredients, method, folder, display
        self._logbook, self._ranks = logbook, ranks
        self._scratch = folder.path / "scratch"  # what a run keeps on the disk while it lasts
        self._events: list[Event] = []
        self._validation = ingredients.validation_batches()
        self._before: dict[str, float] = {}
        self._wall_before = 0.0  # wall seconds of earlier processes
        self._started = time.perf_counter()
        self._devices: dict[str, Device] = {}
        self._links: dict[str, tuple[CompressedLink, CompressedLink]] = {}  # the device's end, the server's
        self._server: Server | None = None

    def run(self, snapshot: Snapshot | None, resume: bool) -> Outcome:
        if resume:
            self._folder.rewind(snapshot.positions if snapshot else dict.fromkeys(self._folder.positions(), 0))
        start = snapshot.clock_seconds if snapshot else 0.0
        try:
            return run_virtual(self._play(snapshot), start_seconds=start)
        except BaseExceptionGroup as group:
            raise _first(group) from group

    async def _play(self, snapshot: Snapshot | None) -> Outcome:
        train = self._ingredients.config.train
        self._build()
        assert self._server is not None
        if snapshot:
            self._restore(snapshot)
        else:
            self._before = self._evaluate(self._server.adapter)
        names = [device.name for device in self._ingredients.fleet.devices]
        self._display.run_started(train.rounds, names, train.local_steps, first_round=self._logbook.rounds_done)
        coordinator = Coordinator(
            self._method,
            self._server,
            {name: server_end for name, (_, server_end) in self._links.items()},
            known_of(self._ingredients, self._logbook),
            self._logbook,
            rounds=train.rounds,
            evaluate=self._evaluate,
            evaluate_when=lambda round: (round + 1) % train.eval_every == 0 or round + 1 == train.rounds,
            commit=self._commit,
            events=self._events,
        )
        async with asyncio.TaskGroup() as tasks:
            for name, (device_end, _) in self._links.items():
                tasks.create_task(self._method.round.device_end(device_end, self._devices[name]), name=name)
            await coordinator.run()
        adapter = self._folder.path / "adapter"
        base, card, personal = self._ingredients.base, self._ingredients.card, self._server.personal
        for name, own in personal.items():
            save_adapter(self._folder.path / "adapters" / name, own, base, card)
        best = min(personal.values(), key=lambda own: self._evaluate_one(own)["loss"], default=None)
        save_adapter(adapter, self._server.exported() if best is None else best, base, card)
        kept = self._method.structure()
        if kept is not None:
            ingredients = self._ingredients
            save_pruned(self._folder.path / "pruned", self._server.adapter, ingredients.base, ingredients.card, kept)
        return self._finish(adapter, now())

    def _build(self) -> None:
        """Machines, links, devices and the server."""
        ingredients, train = self._ingredients, self._ingredients.config.train
        fleet, base, costs = ingredients.fleet, ingredients.base, ingredients.costs
        for index, profile in enumerate(fleet.devices):
            machine = ModelledMachine(profile.name, profile.effective_flops, self._record, speed_mode(profile))
            batches = ingredients.batches(index)
            self._devices[profile.name] = Device(
                profile.name, base, batches, machine, costs, ingredients.train_settings
            )
            device_end, server_end = modelled_link(profile, self._record)
            self._links[profile.name] = ingredients.compressed(device_end), ingredients.compressed(server_end)
        self._server = Server(
            ingredients.run_id,
            base,
            base.initial_adapter(train.seed, self._ranks),
            ModelledMachine(fleet.server.name, fleet.server.effective_flops, self._record),
            costs,
            ingredients.train_settings,
            schedule(
                train.schedule,
                peak=train.lr,
                warmup=train.warmup,
                rounds=train.rounds,
                local_steps=train.local_steps,
            ),
            Forecast(fleet, costs, ingredients.compression),
            ingredients.config.data.max_length,
            self._scratch,
        )

    def _record(self, event: Event) -> None:
        self._events.append(event)
        self._display.event(event)

    def _evaluate(self, adapter: Adapter) -> dict[str, float]:
        """Of the full adapter; where every device has one of its own, the mean over devices."""
        assert self._server is not None
        if not self._server.personal:
            return self._evaluate_one(adapter)
        each = [self._evaluate_one(own) for own in self._server.personal.values()]
        return {name: statistics.fmean(metrics[name] for metrics in each) for name in each[0]}

    def _evaluate_one(self, adapter: Adapter) -> dict[str, float]:
        metrics = evaluate(self._ingredients.base, adapter, self._validation, self._method.structure())
        if not math.isfinite(metrics["loss"]):
            raise DivergedError(
                f"round {self._logbook.rounds_done}, validation: expected a finite loss, got {metrics['loss']}. "
                "Lower the learning rate (--lr), or set train.clip.",
                device=self._ingredients.fleet.server.name,
                round=self._logbook.rounds_done,
                step=self._ingredients.config.train.local_steps,
            )
        return metrics

    def _commit(self, row: dict[str, Any], events: list[Event]) -> None:
        """The commit point: what the round did is on the disk, then the state that goes on from there."""
        self._folder.append_metrics(row)
        self._folder.append_events(events)
        self._folder.scalars(row)
        save_checkpoint(self._folder.path / "checkpoint", self._snapshot(), self._ingredients.run_id)
        self._display.round_done(row)

    def _snapshot(self) -> Snapshot:
        assert self._server is not None
        states = {name: device.state() for name, device in self._devices.items()}
        return Snapshot(
            rounds_done=self._logbook.rounds_done,
            clock_seconds=now(),
            adapter=self._server.adapter,
            aggregate=self._method.aggregate.state(),
            folds=self._server.folds,
            folds_held=self._server.folds_held,
            server_moments=self._server.moments(),
            device_moments={name: moments for name, (_, moments) in states.items()},
            personal=self._server.personal,
            lost={name: device_end.state() for name, (device_end, _) in self._links.items()},
            cursors={name: cursor for name, (cursor, _) in states.items()},
            round_state=self._method.round.state_dict(),
            history=self._logbook.history.records,
            totals={"before": self._before, "cuts": self._logbook.cuts, "wall_seconds": self._wall()},
            positions=self._folder.positions(),
        )

    def _restore(self, snapshot: Snapshot) -> None:
        assert self._server is not None
        device = self._ingredients.base.device
        self._server.adapter = {name: value.to(device) for name, value in snapshot.adapter.items()}
        self._method.aggregate.load_state({name: value.to(device) for name, value in snapshot.aggregate.items()})
        folds = {name: value.to(device) for name, value in snapshot.folds.items()}
        self._server.load_folds(folds, snapshot.folds_held)
        self._server.load_moments(snapshot.server_moments)
        for name, player in self._devices.items():
            player.load_state(snapshot.cursors[name], snapshot.device_moments[name])
            self._links[name][0].load_state({key: value.to(device) for key, value in snapshot.lost[name].items()})
        self._server.personal = {
            name: {key: value.to(device) for key, value in adapter.items()}
            for name, adapter in snapshot.personal.items()
        }
        self._method.round.load_state_dict(snapshot.round_state)
        self._logbook.rounds_done = snapshot.rounds_done
        self._logbook.history.records.extend(snapshot.history)
        self._logbook.cuts |= snapshot.totals["cuts"]
        self._before = snapshot.totals["before"]
        self._wall_before = snapshot.totals["wall_seconds"]

    def _wall(self) -> float:
        return self._wall_before + time.perf_counter() - self._started

    def _finish(self, adapter: Path, virtual_seconds: float) -> Outcome:
        """Writes the chart and the summary."""
        fleet = self._ingredients.fleet
        machines: list[DeviceProfile | ServerProfile] = [*fleet.devices, fleet.server]
        events = list(self._folder.read_events())
        rows = device_ledger(
            events,
            self._logbook.history.records,
            profiles={machine.name: _profile(machine) for machine in machines},
            cuts=self._logbook.cuts,
        )
        last, names = self._logbook.rounds_done - 1, [device.name for device in fleet.devices]
        self._folder.write_report(gantt_svg(events, round=last, first_steps=STEPS_IN_CHART, order=names))
        summary = self._summary(rows, virtual_seconds)
        self._folder.write_summary(summary)
        shutil.rmtree(self._scratch, ignore_errors=True)
        return Outcome(self._folder.path, adapter, self._before, summary["metrics"], rows, summary)

    def _summary(self, rows: list[DeviceRow], virtual_seconds: float) -> dict[str, Any]:
        totals = Counter[str]()
        for row in rows[:-1]:  # the server's row repeats what the devices' hold
            totals.update(samples=row.samples, steps=row.steps, bytes_up=row.bytes_up, bytes_down=row.bytes_down)
        records = self._logbook.history.records
        saved = {
            "saved_flops": sum(record.saved_flops for record in records),
            "saved_bytes": sum(record.saved_bytes for record in records),
        }
        return {
            "metrics": self._logbook.metrics or self._evaluate_last(),
            "metrics_before": self._before,
            "totals": {**totals, **saved, "rounds": self._logbook.rounds_done, "virtual_seconds": virtual_seconds},
            "wall_seconds": self._wall(),
            "peak_memory_bytes": peak_memory_bytes(),
            "peak_cuda_bytes": peak_cuda_bytes(),
            "versions": versions(),
            "seed": self._ingredients.config.train.seed,
            "run": self._ingredients.run_id,
        }

    def _evaluate_last(self) -> dict[str, float]:
        """A run that was resumed after its last round evaluates once more."""
        assert self._server is not None
        return self._evaluate(self._server.adapter)


def _profile(machine: DeviceProfile | ServerProfile) -> str:
    return f"{machine.flops_per_second / 1e12:g} TFLOP/s"


def _first(group: BaseExceptionGroup[Any]) -> BaseException:
    """What a person should read of several tasks' failures: a user error if there is one."""
    users = group.subgroup(UserError) or group
    inner: BaseException = users.exceptions[0]
    return _first(inner) if isinstance(inner, BaseExceptionGroup) else inner
