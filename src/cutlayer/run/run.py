"""What every run has, whatever its fleet: a server, a folder, evaluation, the commit point, an adapter at the end.

A simulated fleet (`run/simulated.py`) and a real one (`run/served.py`) bring machines, links and the clock.
"""

from __future__ import annotations

import math
import shutil
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from cutlayer.config import RunConfig
from cutlayer.errors import CheckpointError, DivergedError, UserError, leaves
from cutlayer.fleet.machine import Machine
from cutlayer.fleet.profile import DeviceProfile, Fleet, ServerProfile
from cutlayer.methods.method import Method
from cutlayer.methods.table import build_method
from cutlayer.model.export import save_adapter
from cutlayer.model.pruned import save_pruned
from cutlayer.policies.learning_rate import schedule
from cutlayer.policies.plan import Situation
from cutlayer.policies.stragglers import stragglers_by_name
from cutlayer.report.devices import DeviceRow, device_ledger
from cutlayer.report.gantt import gantt_svg
from cutlayer.report.json_lines import Position
from cutlayer.report.progress import ProgressDisplay
from cutlayer.report.run_folder import RunFolder
from cutlayer.report.summary import peak_cuda_bytes, peak_memory_bytes, versions
from cutlayer.rounds.patience import Patience, check
from cutlayer.run.inputs import RunInputs, ServerInputs
from cutlayer.run.loop import Coordinator, Hold, Logbook, Members
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


@dataclass(frozen=True, slots=True)
class DeviceStates:
    """What outlives a round on the devices of this process; a real fleet's keep their own.

    Attributes:
      cursors: by device, its place in its data.
      moments: by device, AdamW's.
      lost: by device, what packing its last update lost.
      members: of a real fleet, the devices that there are.
    """

    cursors: dict[str, dict[str, Any]] = field(default_factory=dict)
    moments: dict[str, Adapter] = field(default_factory=dict)
    lost: dict[str, Adapter] = field(default_factory=dict)
    members: list[dict[str, Any]] = field(default_factory=list)


def situation_with(
    inputs: ServerInputs, fleet: Fleet, logbook: Logbook, label_counts: Mapping[str, tuple[int, ...]]
) -> Situation:
    """What planners may look at."""
    train = inputs.config.train
    return Situation(
        fleet=fleet,
        costs=inputs.costs,
        history=logbook.history,
        num_tokens=inputs.config.data.max_length,
        batch_size=train.batch_size,
        local_steps=train.local_steps,
        rank=inputs.config.lora.rank,
        seed=train.seed,
        label_counts=label_counts,
        base_dropout=inputs.config.model.base_dropout,
        rounds=train.rounds,
        micro_batches=train.micro_batches,
        overlap=train.overlap,
    )


def situation_of(inputs: RunInputs, logbook: Logbook) -> Situation:
    """What planners may look at where the whole fleet is simulated."""
    return situation_with(inputs, inputs.fleet, logbook, inputs.label_counts)


def method_of(config: RunConfig) -> Method:
    """The method that the config names, with its options."""
    method = config.method
    return build_method(method.name, method.options, config.train.seed, method.sha256)


def first_plan(inputs: ServerInputs, method: Method, situation: Situation) -> RoundPlan:
    """The plan of the first round.

    Raises:
      BudgetError: A device cannot hold its part.
      ConfigError: The method's choices contradict each other, the model, its LoRA or the policy for stragglers.
    """
    train = inputs.config.train
    check(stragglers_by_name(train.stragglers, train.late), method.round)
    plan = method.make_plan(0, situation)
    if any(device.prune or device.score for device in plan.devices):
        _ = inputs.base.structure  # raises where this model cannot be pruned
    return plan


def server_of(
    inputs: ServerInputs,
    adapter: Adapter,
    machine: Machine,
    fleet: Fleet,
    scratch: Path,
    *,
    may_leave: bool = True,
) -> Server:
    """The server of a run, that starts from this adapter."""
    train, costs = inputs.config.train, inputs.costs
    return Server(
        inputs.run_id,
        inputs.base,
        adapter,
        machine,
        costs,
        inputs.train_settings,
        schedule(
            train.schedule, peak=train.lr, warmup=train.warmup, rounds=train.rounds, local_steps=train.local_steps
        ),
        Forecast(fleet, costs, inputs.compression),
        inputs.config.data.max_length,
        scratch,
        may_leave=may_leave,
    )


class Run:
    """One run on the server's side.

    Args:
      inputs: What it is made of.
      method: How it decides.
      fleet: The machines, as far as they are known when it begins.
      ranks: Of the full adapter, by block.
      folder: Where it writes.
      display: Told of every event and round.
      logbook: How far it is.
      machine: What the server computes on.
      clock: Seconds since the run began, over all its processes.
      events: Where machines and links record.
      states: What outlives a round on devices that this process plays.
      may_leave: Whether devices may leave a round.

    Attributes:
      server: The server.
    """

    def __init__(
        self,
        inputs: ServerInputs,
        method: Method,
        fleet: Fleet,
        ranks: Sequence[int],
        *,
        folder: RunFolder,
        display: ProgressDisplay,
        logbook: Logbook,
        machine: Machine,
        clock: Callable[[], float],
        events: list[Event],
        states: Callable[[], DeviceStates] = DeviceStates,
        may_leave: bool = True,
    ) -> None:
        self._inputs, self._method, self._folder, self._display = inputs, method, folder, display
        self._logbook, self._clock, self._events, self._states = logbook, clock, events, states
        self._scratch = folder.path / "scratch"  # what a run keeps on the disk while it lasts
        self._validation = inputs.validation_batches()
        self._before: dict[str, float] = {}
        self._losses: dict[str, float] = {}  # at the last evaluation, of devices with an adapter of their own
        self._wall_before = 0.0  # wall seconds of earlier processes
        self._started = time.perf_counter()
        adapter = inputs.base.initial_adapter(inputs.config.train.seed, tuple(ranks))
        self.server = server_of(inputs, adapter, machine, fleet, self._scratch, may_leave=may_leave)

    async def play(self, members: Members, hold: Hold | None = None) -> Path:
        """Holds the rounds that are left and exports; returns the adapter's folder.

        Args:
          members: The devices.
          hold: Holds a round; None where this process serves the devices.

        Raises:
          UserError: What a device holds does not fit, or training diverged.
        """
        train = self._inputs.config.train
        if not self._before:
            self._before = await self._evaluate(self.server.adapter)
        coordinator = Coordinator(
            self._method,
            self.server,
            members,
            self._logbook,
            rounds=train.rounds,
            clock=self._clock,
            evaluate=self._evaluate,
            evaluate_when=lambda round: (round + 1) % train.eval_every == 0 or round + 1 == train.rounds,
            commit=self._commit,
            events=self._events,
            hold=hold or Patience(stragglers_by_name(train.stragglers, train.late)).hold,
        )
        await coordinator.run()
        if not self._logbook.metrics:  # resumed after its last round
            self._logbook.metrics = await self._evaluate(self.server.adapter)
        with self._in_need_of_room("at its end", "the adapter"):
            return await self.server.machine.aside(self._export)

    def _export(self) -> Path:
        adapter = self._folder.path / "adapter"
        base, card, personal = self._inputs.base, self._inputs.card, self.server.personal
        for name, own in personal.items():
            save_adapter(self._folder.path / "adapters" / name, own, base, card)
        best = min(personal, key=self._losses.__getitem__, default=None)
        save_adapter(adapter, self.server.exported() if best is None else personal[best], base, card)
        kept = self._method.structure()
        if kept is not None:
            save_pruned(self._folder.path / "pruned", self.server.adapter, base, card, kept)
        return adapter

    async def _evaluate(self, adapter: Adapter) -> dict[str, float]:
        """Of the full adapter; where every device has one of its own, the mean over devices."""
        return await self.server.machine.aside(lambda: self._evaluated(adapter))

    def _evaluated(self, adapter: Adapter) -> dict[str, float]:
        if not self.server.personal:
            return self._evaluate_one(adapter)
        each = [self._evaluate_one(own) for own in self.server.personal.values()]
        self._losses = {name: metrics["loss"] for name, metrics in zip(self.server.personal, each, strict=True)}
        return {name: statistics.fmean(metrics[name] for metrics in each) for name in each[0]}

    def _evaluate_one(self, adapter: Adapter) -> dict[str, float]:
        metrics = evaluate(self._inputs.base, adapter, self._validation, self._method.structure())
        if not math.isfinite(metrics["loss"]):
            raise DivergedError(
                f"round {self._logbook.rounds_done}, validation: expected a finite loss, got {metrics['loss']}. "
                "Lower the learning rate (--lr), or set train.clip.",
                device=self.server.machine.name,
                round=self._logbook.rounds_done,
                step=self._inputs.config.train.local_steps,
            )
        return metrics

    async def _commit(self, row: dict[str, Any], events: list[Event]) -> None:
        """The commit point: what the round did is on the disk, then the state that goes on from there."""
        seconds = self._clock()
        await self.server.machine.aside(lambda: self._write(row, events, seconds))
        self._display.round_done(row)

    def _write(self, row: dict[str, Any], events: list[Event], seconds: float) -> None:
        with self._in_need_of_room(f"round {row['round']}", "its checkpoint"):
            self._folder.append_metrics(row)
            self._folder.append_events(events)
            self._folder.scalars(row)
            save_checkpoint(self._folder.path / "checkpoint", self._snapshot(seconds), self._inputs.run_id)

    @contextmanager
    def _in_need_of_room(self, where: str, what: str) -> Iterator[None]:
        """A disk that is full ends the run with a word of it: the last checkpoint is whole."""
        try:
            yield
        except OSError as error:
            raise CheckpointError(
                f"{self._folder.path}, {where}: expected room for {what}, got {error.strerror or error}. "
                "The last checkpoint is whole: make room, then go on with --resume."
            ) from error

    def _snapshot(self, seconds: float) -> Snapshot:
        states = self._states()
        return Snapshot(
            rounds_done=self._logbook.rounds_done,
            clock_seconds=seconds,
            adapter=self.server.adapter,
            aggregate=self._method.aggregate.state(),
            folds=self.server.folds,
            folds_held=self.server.folds_held,
            counted=self.server.counted,
            server_moments=self.server.moments(),
            device_moments=states.moments,
            personal=self.server.personal,
            lost=states.lost,
            cursors=states.cursors,
            members=states.members,
            round_state=self._method.round.state_dict(),
            totals={"before": self._before, "cuts": self._logbook.cuts, "wall_seconds": self._wall()},
            positions=self._folder.positions(),
        )

    def restore(self, snapshot: Snapshot) -> None:
        """Goes on from a checkpoint; the devices' states in it are the caller's."""
        device = self._inputs.base.device
        self.server.adapter = {name: value.to(device) for name, value in snapshot.adapter.items()}
        self._method.aggregate.load_state({name: value.to(device) for name, value in snapshot.aggregate.items()})
        folds = {name: value.to(device) for name, value in snapshot.folds.items()}
        self.server.load_folds(folds, snapshot.folds_held)
        self.server.counted = dict(snapshot.counted)
        self.server.load_moments(snapshot.server_moments)
        self.server.personal = {
            name: {key: value.to(device) for key, value in adapter.items()}
            for name, adapter in snapshot.personal.items()
        }
        self._method.round.load_state_dict(snapshot.round_state)
        self._logbook.rounds_done = snapshot.rounds_done
        self._logbook.history.records.extend(self._folder.read_records())
        self._logbook.cuts |= snapshot.totals["cuts"]
        self._before = snapshot.totals["before"]
        self._wall_before = snapshot.totals["wall_seconds"]

    def _wall(self) -> float:
        return self._wall_before + time.perf_counter() - self._started

    def finish(
        self, adapter: Path, fleet: Fleet, refusals: Mapping[str, Mapping[str, int]] = MappingProxyType({})
    ) -> Outcome:
        """Writes the chart and the summary.

        Args:
          adapter: The exported folder.
          fleet: The machines that took part.
          refusals: By device and reason, how often something of it was refused.
        """
        machines: list[DeviceProfile | ServerProfile] = [*fleet.devices, fleet.server]
        last, names = self._logbook.rounds_done - 1, [device.name for device in fleet.devices]
        shown: list[Event] = []
        rows = device_ledger(
            self._events_so_far(last, shown),
            self._logbook.history.records,
            profiles={machine.name: _profile(machine) for machine in machines},
            cuts=self._logbook.cuts,
        )
        summary = self._summary(rows) | {"refusals": refusals}
        with self._in_need_of_room("at its end", "its report"):
            self._folder.write_report(gantt_svg(shown, round=last, first_steps=STEPS_IN_CHART, order=names))
            self._folder.write_summary(summary)
        shutil.rmtree(self._scratch, ignore_errors=True)
        return Outcome(self._folder.path, adapter, self._before, summary["metrics"], rows, summary)

    def _events_so_far(self, round: int, kept: list[Event]) -> Iterator[Event]:
        """One by one, for all of them would be gigabytes; those of this round are kept as they pass."""
        for event in self._folder.read_events():
            if event.round == round:
                kept.append(event)
            yield event

    def _summary(self, rows: list[DeviceRow]) -> dict[str, Any]:
        totals = Counter[str]()
        for row in rows[:-1]:  # the server's row repeats what the devices' hold
            totals.update(
                samples=row.samples,
                steps=row.steps,
                bytes_up=row.bytes_up,
                bytes_down=row.bytes_down,
                late=row.late,
            )
        records = self._logbook.history.records
        saved = {
            "saved_flops": sum(record.saved_flops for record in records),
            "saved_bytes": sum(record.saved_bytes for record in records),
        }
        return {
            "metrics": self._logbook.metrics,
            "metrics_before": self._before,
            "totals": {**totals, **saved, "rounds": self._logbook.rounds_done, "virtual_seconds": self._clock()},
            "wall_seconds": self._wall(),
            "peak_memory_bytes": peak_memory_bytes(),
            "peak_cuda_bytes": peak_cuda_bytes(),
            "versions": versions(),
            "method": self._inputs.config.method.model_dump(include={"name", "source"}),
            "seed": self._inputs.config.train.seed,
            "run": self._inputs.run_id,
        }


def open_folder(config: RunConfig, run_id: str, *, resume: bool) -> tuple[RunFolder, Snapshot | None]:
    """The run folder, and the checkpoint in it if the run goes on from one; what came after it is taken back.

    Raises:
      UserError: The folder is taken, or the checkpoint is not this run's.
    """
    path = Path(config.out)
    if not resume:
        folder = RunFolder.create(path)
        folder.write_config(config.to_yaml())
        return folder, None
    snapshot = load_checkpoint(path / "checkpoint", run_id)
    folder = RunFolder.reopen(path)
    folder.rewind(snapshot.positions if snapshot else dict.fromkeys(folder.positions(), Position()))
    return folder, snapshot


def first_error(group: BaseExceptionGroup[Any]) -> BaseException:
    """What a person should read of several tasks' failures: a user error if there is one."""
    return min(leaves(group), key=lambda error: not isinstance(error, UserError))


def _profile(machine: DeviceProfile | ServerProfile) -> str:
    return f"{machine.flops_per_second / 1e12:g} TFLOP/s"
