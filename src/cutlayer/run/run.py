"""The parts that every run has, whatever its fleet: a server, a folder, evaluation, the commit point, an adapter at the
end.

A simulated fleet (`run/simulated.py`) and a real one (`run/served.py`) bring machines, links and the clock.
"""

from __future__ import annotations

import math
import shutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from cutlayer.data.batches import random_tokens
from cutlayer.errors import DivergedError, UserError, leaves
from cutlayer.fleet.machine import Machine
from cutlayer.fleet.profile import Fleet
from cutlayer.methods.method import Method
from cutlayer.model.export import save_adapter
from cutlayer.page.digest import about
from cutlayer.policies.plan import Situation
from cutlayer.policies.robust import robust_by_name
from cutlayer.report.progress import ProgressDisplay
from cutlayer.report.remarks import Watch
from cutlayer.report.round_row import of_real_machines
from cutlayer.report.run_folder import RunFolder
from cutlayer.rounds.patience import Patience
from cutlayer.run.answers import Answers, answers_of
from cutlayer.run.best import BestRound
from cutlayer.run.ending import Outcome, Real, export, in_need_of_room, result_of, write_reports
from cutlayer.run.inputs import RunInputs, ServerInputs, asked_stragglers, stragglers_of
from cutlayer.run.judging import Judges
from cutlayer.run.loop import Coordinator, Hold, Logbook, Members
from cutlayer.run.start import starting_adapter
from cutlayer.run.understood import Noticed, unnoticed
from cutlayer.server.aggregation import Aggregation
from cutlayer.server.checkpoint import save_checkpoint
from cutlayer.server.evaluate import evaluate, has_gradients
from cutlayer.server.forecast import Forecast
from cutlayer.server.server import Server
from cutlayer.server.sites import Sites
from cutlayer.server.tasks import Tasks
from cutlayer.state import Keeper, State, joined
from cutlayer.transport.descriptors import with_descriptors
from cutlayer.types import Adapter, Batch, Event, RoundPlan

SOME_TOKENS = 32
"""Tokens of each text that means nothing, on which an adapter is tried."""
LOST_ROUNDS = 2
"""Rounds in a row that may be lost, because nobody has finished; one more ends the run."""


def situation_with(
    inputs: ServerInputs, fleet: Fleet, logbook: Logbook, label_counts: Mapping[str, tuple[int, ...]]
) -> Situation:
    """Facts that planners may look at."""
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
        num_modules=len(inputs.base.modules),
        stragglers=asked_stragglers(inputs.config),
        quantised=inputs.model_settings.quantised,
        robust=robust_by_name(train.robust),
    )


def situation_of(inputs: RunInputs, logbook: Logbook) -> Situation:
    """Facts that planners may look at where the whole fleet is simulated."""
    return situation_with(inputs, inputs.fleet, logbook, inputs.label_counts)


def first_plan(inputs: ServerInputs, method: Method, situation: Situation) -> RoundPlan:
    """The plan of the first round.

    Raises:
      BudgetError: A device cannot hold its part.
      ConfigError: Two choices contradict each other, or the model or its LoRA does not serve.
    """
    plan = method.make_plan(0, situation)
    for device in plan.devices:
        method.round.shape.prepare(inputs.base, device)
    return plan


def server_of(
    inputs: ServerInputs,
    method: Method,
    adapter: Adapter,
    machine: Machine,
    fleet: Fleet,
    scratch: Path,
    *,
    may_leave: bool = True,
    sites: Sites | None = None,
) -> Server:
    """The server of a run, that starts from this adapter."""
    costs = inputs.costs
    return Server(
        inputs.run_id,
        inputs.base,
        adapter,
        machine,
        costs,
        inputs.train_settings,
        inputs.learning_rate,
        Forecast(fleet, costs, inputs.compression),
        inputs.config.data.max_length,
        scratch,
        scope=method.scope,
        broadcast=method.broadcast,
        may_leave=may_leave,
        sites=sites,
        sound=sound_in(inputs, method),
    )


def sound_in(inputs: ServerInputs, method: Method) -> Callable[[Adapter], bool]:
    """Returns a function that says whether the model runs with an adapter, and learns.

    It runs on the first rows that it is judged by and on tokens by chance: a server may have no rows. Gradients are
    those of tokens by chance, which take little memory.
    """
    base, longest = inputs.base, min(SOME_TOKENS, inputs.config.data.max_length)

    @cache
    def batches() -> tuple[list[Batch], Batch]:
        return inputs.validation_batches()[:1], random_tokens(base.settings.task, base.vocabulary, longest)

    def sound(adapter: Adapter) -> bool:
        if method.moved is not None:
            return True
        (rows, by_chance), kept = batches(), method.structure()
        if not has_gradients(base, adapter, by_chance, kept):
            return False
        return not rows or math.isfinite(evaluate(base, adapter, rows, kept)["loss"])

    return sound


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
      devices: Keeps what outlives a round on the devices, as far as this process knows it.
      may_leave: Whether devices may leave a round.
      sites: Their connections; None where there are none.
      noticed: Told what a person should not overlook.

    Attributes:
      server: The server.
      tasks: What devices are at work on, where that may outlive a round.
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
        devices: Keeper,
        may_leave: bool = True,
        sites: Sites | None = None,
        noticed: Noticed = unnoticed,
    ) -> None:
        self._noticed, self._watch = noticed, Watch()
        self._inputs, self._method, self._folder, self._display = inputs, method, folder, display
        folder.report_to(inputs.config.train.report_to, inputs.config.model_dump(mode="json"))
        self._logbook, self._clock, self._events, self._devices = logbook, clock, events, devices
        self._scratch = folder.path / "scratch"  # what a run keeps on the disk while it lasts
        self._validation = inputs.validation_batches()
        self._losses: dict[str, float] = {}  # at the last evaluation, of devices with an adapter of their own
        self._wall_before = 0.0  # wall seconds of earlier processes
        self._started = time.perf_counter()
        train = inputs.config.train
        self._best = BestRound(train.keep, train.metric, train.patience)
        self._answers: Answers | None = answers_of(inputs)
        self._samples: list[dict[str, Any]] = []  # of the last evaluation, until they are on the disk
        adapter = starting_adapter(inputs, method, tuple(ranks))
        self.server = server_of(
            inputs, method, adapter, machine, fleet, self._scratch, may_leave=may_leave, sites=sites
        )
        self._aggregation = Aggregation(method.aggregate, robust_by_name(train.robust))
        self._contributions: list[dict[str, Any]] = []  # of the round under way, until they are on the disk
        self.tasks = Tasks()
        folder.write_about(about(inputs.config, inputs.base.num_blocks))

    async def play(self, members: Members, hold: Hold | None = None, *, warming_seconds: float = 0.0) -> Path:
        """Holds the rounds that are left and exports; returns the adapter's folder.

        Args:
          members: The devices.
          hold: Holds a round; None where this process serves the devices.
          warming_seconds: See `Patience`.

        Raises:
          UserError: What a device holds does not fit, or training diverged.
        """
        train = self._inputs.config.train
        stragglers = stragglers_of(self._inputs.config, self._method)
        patience = Patience(stragglers, self.tasks, warming_seconds=warming_seconds, again=LOST_ROUNDS)
        if not self._logbook.before:
            self._logbook.before = await self._evaluate(self.server.adapter)
            if self._validation:
                self._best.check(self._logbook.before)
            self._tell_samples()
        self._watch = Watch(self._logbook.before.get("loss"))
        coordinator = Coordinator(
            self._method,
            self.server,
            self._aggregation,
            members,
            self._logbook,
            rounds=train.rounds,
            clock=self._clock,
            evaluate=self._evaluate,
            evaluate_when=lambda round: (round + 1) % train.eval_every == 0 or round + 1 == train.rounds,
            commit=self._commit,
            events=self._events,
            hold=hold or patience.hold,
            tasks=self.tasks,
            judges=Judges(self._method, self.server, patience) if self._inputs.config.data.hold_out else None,
            enough=lambda: self._best.exhausted,
            told=self._contributions.extend,
        )
        await coordinator.run()
        if not self._logbook.metrics:  # resumed after its last round
            self._logbook.metrics = await self._evaluate(self.server.adapter)
            self._samples = []  # the run that was stopped has written them
        if not self._validation:
            self._take_from_devices()
        with in_need_of_room(self._folder.path, "at its end", "the adapter"):
            return await self.server.machine.aside(self._export)

    def _export(self) -> Path:
        result = self._best.best_result or result_of(self.server, self._losses, self._method)
        return export(self._folder.path, self._inputs, result, self._method)

    def _take_from_devices(self) -> None:
        """Takes the metrics that devices gave of their rows, each when it was last asked: the server has no rows."""
        self._logbook.metrics, devices = self._folder.read_judged()
        self._losses = {name: metrics["loss"] for name, metrics in devices.items()}

    async def _evaluate(self, adapter: Adapter) -> dict[str, float]:
        """The metrics of the full adapter; where devices have views of their own, the mean over devices; nothing of a
        server that has no rows to judge by, which may answer all the same."""
        if not self._validation and self._answers is None:
            return {}
        return await self.server.machine.aside(lambda: self._evaluated(adapter))

    def _evaluated(self, adapter: Adapter) -> dict[str, float]:
        views, metrics = self.server.adapters.views(), dict[str, float]()
        if self._validation and not views:
            metrics = self._evaluate_one(adapter)
        elif self._validation:
            each = [self._evaluate_one(own) for own in views.values()]
            self._losses = {name: metrics["loss"] for name, metrics in zip(views, each, strict=True)}
            metrics = {name: statistics.fmean(metrics[name] for metrics in each) for name in each[0]}
        if self._answers is not None:
            asked, kept = self._asked(adapter, views), self._method.structure()
            metrics |= self._answers.judged(asked, kept, self._display.stage)
            rounds = self._logbook.rounds_done + bool(self._logbook.before)  # the one under way
            self._samples = [
                {"rounds": rounds, **said} for said in self._answers.samples(asked, kept, self._display.stage)
            ]
        return metrics

    def _asked(self, adapter: Adapter, views: Mapping[str, Adapter]) -> Adapter:
        """The adapter that answers: where devices have views of their own, the one that the run would export."""
        return views[min(views, key=lambda name: self._losses.get(name, math.inf))] if views else adapter

    def _tell_samples(self) -> None:
        """Writes the answers of the last evaluation, and shows them."""
        if self._samples:
            self._folder.append_samples(self._samples)
            self._display.answered(self._samples)
            self._samples = []

    def _evaluate_one(self, adapter: Adapter) -> dict[str, float]:
        if self._method.moved is not None:
            self._method.moved.stand(self._inputs.base, self._inputs.config.train.seed)
        of, rows = len(self._inputs.judged), len(self._inputs.validation)
        what = "evaluating" if of == rows else f"evaluating on {of} of {rows} validation rows"
        self._display.stage(what, 0, of)
        metrics = evaluate(
            self._inputs.base,
            adapter,
            self._validation,
            self._method.structure(),
            told=lambda done: self._display.stage(what, done, of),
        )
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
        seconds, row = self._clock(), row if self._folder.simulated else of_real_machines(row)
        await self.server.machine.aside(lambda: self._write(row, events, seconds))
        if (line := self._watch.saw(row["round"], row["loss"], self._inputs.config.train.lr)) is not None:
            self._noticed(line)
        self._folder.on_round(row)
        self._display.round_done(row)
        self._display.answered(self._samples)
        self._samples = []

    def _write(self, row: dict[str, Any], events: list[Event], seconds: float) -> None:
        with in_need_of_room(self._folder.path, f"round {row['round']}", "its checkpoint"):
            with_descriptors(lambda: self._folder.append_metrics(row))
            with_descriptors(lambda: self._folder.append_events(events))
            with_descriptors(lambda: self._folder.append_contributions(self._contributions))
            self._contributions.clear()
            with_descriptors(lambda: self._folder.scalars(row))
            if self._samples:
                with_descriptors(lambda: self._folder.append_samples(self._samples))
            self._keep(row)
            state, keep = self._state(seconds), self._inputs.config.train.checkpoints
            with_descriptors(
                lambda: save_checkpoint(self._folder.path / "checkpoint", state, self._inputs.run_id, keep=keep)
            )

    def _keep(self, row: Mapping[str, Any]) -> None:
        """Keeps the adapter of a round that is the best so far, or the one in so many."""
        train, rounds = self._inputs.config.train, self._logbook.rounds_done
        saved = bool(train.save_every) and rounds % train.save_every == 0
        if not self._validation and row["held_out"]:  # each when it was last asked
            self._losses |= {name: metrics["loss"] for name, metrics in row["held_out"]["devices"].items()}
        if not (saved or row["validation"]):
            return
        result = cache(lambda: result_of(self.server, self._losses, self._method))
        if row["validation"]:
            self._best.check(row["validation"])
            self._best.evaluated(row["round"], row["validation"], result)
        if saved:
            folder = self._folder.path / "adapters" / f"round-{rounds}"
            save_adapter(folder, result().adapter, self._inputs.base, self._inputs.card)

    def _state(self, seconds: float) -> State:
        """The checkpoint: {server, method, devices, run}, and the tasks in flight where there are any."""
        run = {
            "rounds_done": self._logbook.rounds_done,
            "clock_seconds": seconds,
            "before": self._logbook.before,
            "cuts": self._logbook.cuts,
            "wall_seconds": self._wall(),
            "positions": self._folder.positions(),
            "exhausted": self._best.exhausted,
            "losses": self._losses,
            "metrics": self._logbook.metrics,
            "card": asdict(self._inputs.card),
            "began_with": self._inputs.began_with,
        }
        return joined(
            {
                "server": self.server.state(),
                "method": joined({"round": self._method.round.state(), "aggregate": self._aggregation.state()}),
                "devices": self._devices.state(),
                "run": State(run),
                "best": self._best.state(),
                **({"tasks": self.tasks.state()} if self.tasks else {}),
            }
        )

    def load(self, checkpoint: State) -> None:
        """Goes on from a checkpoint; the devices' branch of it is the caller's."""
        branches = checkpoint.branches()
        self.server.load(branches["server"])
        method = branches["method"].moved(self._inputs.base.device).branches()
        self._method.round.load(method["round"])
        self._aggregation.load(method["aggregate"])
        if "tasks" in branches:
            self.tasks.load(branches["tasks"].moved(self._inputs.base.device))
        run = branches["run"].facts
        self._logbook.rounds_done = run["rounds_done"]
        self._logbook.history.records.extend(self._folder.read_records())
        self._logbook.cuts |= run["cuts"]
        self._logbook.before, self._wall_before = run["before"], run["wall_seconds"]
        self._losses = dict(run["losses"])
        self._best.load(branches["best"])

    def _wall(self) -> float:
        return self._wall_before + time.perf_counter() - self._started

    def finish(
        self,
        adapter: Path,
        fleet: Fleet,
        refusals: Mapping[str, Mapping[str, int]] = MappingProxyType({}),
        lost: Mapping[str, str] = MappingProxyType({}),
        real: Real | None = None,
    ) -> Outcome:
        """Writes the chart and the summary.

        Args:
          adapter: The exported folder.
          fleet: The machines that took part.
          refusals: By device and reason, how often something of it was refused.
          lost: By device that took part and was no more at the end, why.
          real: What is known of real machines; None of a simulated fleet.
        """
        seconds = {"wall_seconds": self._wall()} | ({"virtual_seconds": self._clock()} if real is None else {})
        outcome = write_reports(
            self._folder, self._inputs, self._logbook, fleet, adapter, seconds, refusals, lost, self._best, real
        )
        shutil.rmtree(self._scratch, ignore_errors=True)
        return outcome


def first_error(group: BaseExceptionGroup[Any]) -> BaseException:
    """The error that a person should read of several tasks' failures: a user error if there is one."""
    return min(leaves(group), key=lambda error: not isinstance(error, UserError))
