"""The run: round after round, until there is an adapter.

    while rounds are left:
        plan the round                       methods/: who joins, where each is cut
        hold it                              rounds/: the conversation with the devices
        aggregate                            many adapters to one
        evaluate, report, checkpoint         the commit point

The coordinator knows no method and no transport: a link is a link.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from cutlayer.errors import Refused
from cutlayer.methods.method import Method
from cutlayer.policies.aggregate import Contribution
from cutlayer.policies.plan import Situation
from cutlayer.report.intervals import length, union
from cutlayer.report.round_row import round_row
from cutlayer.rounds.patience import nobody
from cutlayer.rounds.round import Round
from cutlayer.run.judging import Judges
from cutlayer.run.placed import placed
from cutlayer.server.aggregation import Aggregation
from cutlayer.server.contributions import but_for, fairly_weighed, log_outliers, table_of
from cutlayer.server.found_out import found_out, poisoned
from cutlayer.server.ledger import Tally
from cutlayer.server.server import Server
from cutlayer.server.tasks import Tasks
from cutlayer.types import Adapter, DevicePlan, Event, History, RoundPlan, StepRecord
from cutlayer.wire.link import Link, Refusing
from cutlayer.wire.messages import Finish, Update


@dataclass(slots=True)
class Logbook:
    """Progress of a run, and what it measured.

    Attributes:
      rounds_done: rounds that are complete.
      history: what they measured.
      cuts: each device's cut in the last round.
      metrics: the last evaluation.
      before: the metrics of the untrained adapter.
      owed: devices that were to judge after the last round, and did not in time.
    """

    rounds_done: int = 0
    history: History = field(default_factory=History)
    cuts: dict[str, int] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    before: dict[str, float] = field(default_factory=dict)
    owed: set[str] = field(default_factory=set)


Hold = Callable[[Round, Server, Mapping[str, Link], RoundPlan], Awaitable[list[Contribution]]]
"""Holds one round: what was trained in it, by name of device (`rounds/patience.py` is the plain one); nothing of one
that is lost, after which the adapter is what it was."""


class Members(Protocol):
    """The devices that there are.

    Attributes:
      links: The server's end of the connection to each.
    """

    @property
    def links(self) -> Mapping[str, Link]: ...

    async def muster(self, round: int) -> Situation:
        """Waits until there are enough devices; returns the facts that planners may look at in this round."""

    def leave_out(self, unplaced: Mapping[str, Exception]) -> bool:
        """Refuses devices that nothing can be planned for, and says so; or does nothing, where devices must stay."""

    async def dismiss(self, finish: Finish) -> None:
        """Tells every device that it may go."""


class Coordinator:
    """Runs the rounds of one run.

    Args:
      method: How to decide.
      server: The server's side of training.
      aggregation: Makes the next adapter, by the method's aggregate.
      members: The devices.
      logbook: Where to start from.
      rounds: Rounds of the whole run.
      clock: Seconds since the run began, over all its processes: virtual in simulation.
      evaluate: Full adapter -> metrics.
      evaluate_when: Whether the round of this number is evaluated.
      commit: Called at each commit point with the round's row and events.
      events: Where machines and links record; emptied at each commit point.
      hold: Holds a round, for as long as its devices are waited for.
      tasks: What devices are at work on, where that may outlive a round: rounds are planned for the others.
      judges: Asks devices what the adapter comes to on rows that they hold out; None where they hold out none.
      enough: Whether the run ends before its rounds do, after those so far.
      told: Gets who has moved the adapter by how much, before the round is committed.
    """

    def __init__(
        self,
        method: Method,
        server: Server,
        aggregation: Aggregation,
        members: Members,
        logbook: Logbook,
        *,
        rounds: int,
        clock: Callable[[], float],
        evaluate: Callable[[Adapter], Awaitable[dict[str, float]]],
        evaluate_when: Callable[[int], bool],
        commit: Callable[[dict[str, Any], list[Event]], Awaitable[None]],
        events: list[Event],
        hold: Hold,
        tasks: Tasks,
        judges: Judges | None = None,
        enough: Callable[[], bool] = lambda: False,
        told: Callable[[list[dict[str, Any]]], None] = lambda _rows: None,
    ) -> None:
        self._told = told
        self._spoilers = set[str]()  # whose part was all of a round, and poison, since a round that was not
        self._tasks, self._judges, self._enough = tasks, judges, enough
        self._method, self._server, self._aggregation, self._members = method, server, aggregation, members
        self.logbook, self._clock = logbook, clock
        self._rounds, self._evaluate, self._evaluate_when, self._commit = rounds, evaluate, evaluate_when, commit
        self._events, self._hold = events, hold

    async def run(self) -> None:
        """Holds the rounds that are left, then tells every device that it may go."""
        while self.logbook.rounds_done < self._rounds and not self._enough():
            await self._one_round(self.logbook.rounds_done)
        reason = "nothing has become better for a while" if self._enough() else "all rounds are done"
        await self._members.dismiss(Finish(self._server.run, self.logbook.rounds_done, reason))

    async def _one_round(self, number: int) -> None:
        situation = await self._members.muster(number)
        links = self._members.links
        self._tasks.forget_all_but(links.keys())
        start_wall, start = time.perf_counter(), self._clock()
        situation, plan = await placed(
            situation,
            lambda now: self._make_plan(number, now),
            lambda: self._members.muster(number),
            self._members.leave_out,
            self._server.machine,
        )
        links = self._members.links
        judged: list[Event] = []
        if self._judges is not None and not number:
            untrained = await self._judge(0, number, plan, plan.devices, links, judged)
            self.logbook.before = self.logbook.before or untrained["metrics"]
            start = self._clock()
        bytes_before = {device: (link.bytes_received, link.bytes_sent) for device, link in links.items()}
        contributions = await self._hold(self._method.round, self._server, links, plan)
        plan = self._tasks.begun(plan)
        if contributions:
            guilty = await self._server.machine.aside(lambda: self._aggregate(contributions, plan, links))
            for device in guilty:
                self._turn_out(device, links[device], number)
            self._spoilers = self._spoilers | {*guilty} if len(guilty) == len(contributions) else set()
            if len(self._spoilers) > 1:  # each alone, and no sound round between them: it is the learning rate
                raise poisoned(guilty[-1], number)
        elif number + 1 == self._rounds:
            raise nobody(plan, self._server.left)  # there is no round left that could make up for it
        duration = self._clock() - start
        records = self._records(plan, situation, links, self._server.ledger.take_tallies(), duration, bytes_before)
        self.logbook.history.records.extend(records)
        self.logbook.cuts |= {device.device: device.cut for device in plan.devices}
        events, self._events[:] = list(self._events), []
        metrics, held_out = dict[str, float](), dict[str, Any]()
        if self._evaluate_when(number):
            metrics = await self._evaluate(self._server.adapter)
            if self._judges is not None:
                held_out = await self._judge(number + 1, number, plan, self._idle(plan, records), links, judged)
                metrics = metrics or held_out["metrics"]
            self.logbook.metrics = metrics
        self.logbook.rounds_done = number + 1
        row = round_row(
            records,
            round=number,
            virtual_seconds=self._clock(),
            wall_seconds=time.perf_counter() - start_wall,
            server_memory_bytes=self._server.folds.num_bytes
            + self._method.round.server_bytes(plan, situation.costs, situation.num_tokens),
            validation=metrics,
            held_out=held_out,
        )
        await self._commit(row, [*events, *judged])

    def _idle(self, plan: RoundPlan, records: Sequence[StepRecord]) -> list[DevicePlan]:
        """The devices whose round counted, and that are not at work: in a relay, those of every turn."""
        counted = {record.device for record in records if record.samples}
        return [one for one in plan.devices if one.device in counted and one.device not in self._tasks]

    async def _judge(
        self,
        round: int,
        within: int,
        plan: RoundPlan,
        devices: Sequence[DevicePlan],
        links: Mapping[str, Link],
        events: list[Event],
    ) -> dict[str, Any]:
        """Has devices judge: what they say, with what that took. No record knows of it, and so no planner.

        Args:
          round: That comes next.
          within: The round to which what machines and links did for it is added.
          plan: Of that round.
          devices: Who judges.
          links: To all devices.
          events: Gets what machines and links did.
        """
        assert self._judges is not None
        start, ends = self._clock(), [links[device.device] for device in devices]
        up, down = sum(end.bytes_received for end in ends), sum(end.bytes_sent for end in ends)
        judgement = await self._judges.judge(round, devices, plan, links)
        self.logbook.owed = set(judgement.asked) - set(judgement.answered)
        events += [replace(event, round=within) for event in self._events if event.round == round]
        self._events[:] = [event for event in self._events if event.round != round]
        return judgement.row() | {
            "seconds": self._clock() - start,
            "bytes_up": sum(end.bytes_received for end in ends) - up,
            "bytes_down": sum(end.bytes_sent for end in ends) - down,
        }

    def _make_plan(self, number: int, situation: Situation) -> RoundPlan:
        """The round's plan; what its steps cost is counted here, where it holds up no link, and later looked up."""
        plan = self._tasks.joined(self._planned(number, situation))
        for device in plan.devices:
            situation.costs.device(device, device.micro_batch_size, situation.num_tokens)
            if not device.alone:
                situation.costs.server(device, device.micro_batch_size, situation.num_tokens)
        return plan

    def _planned(self, number: int, situation: Situation) -> RoundPlan:
        """The plan for the devices that are idle; of a fleet at work, one that `Tasks.joined` empties."""
        idle = tuple(device for device in situation.fleet.devices if device.name not in self._tasks)
        if 0 < len(idle) < len(situation.fleet.devices):
            situation = situation.of(situation.fleet.model_copy(update={"devices": idle}))
        return self._method.make_plan(number, situation)

    def _aggregate(
        self, contributions: Sequence[Contribution], plan: RoundPlan, links: Mapping[str, Link]
    ) -> list[str]:
        """Makes the next adapter; the devices whose part of it was poison, and was left out."""
        adapters, aggregation = self._server.adapters, self._aggregation
        if self._server.base.settings.task == "causal-lm":
            contributions = fairly_weighed(contributions, plan, self._server.ledger.samples())
        rows = table_of(contributions, aggregation.began(adapters, plan), plan.round)
        log_outliers(rows)
        self._told(rows)

        def sound(without: Collection[str], times: float) -> bool:
            tried = aggregation.tried(adapters, but_for(contributions, without), plan, self._method.fold, times=times)
            return all(self._server.sound(adapter) for adapter in tried.values())

        others = self._server.may_leave and len(links) > 1
        guilty = found_out(rows, sound, lambda device: others and isinstance(links.get(device), Refusing))
        for device in guilty:
            self._server.take_back(device)
        contributions = but_for(contributions, guilty)
        if not contributions:
            return guilty
        contributions = aggregation.steadied(adapters, contributions, plan)
        aggregation(adapters, contributions, plan)
        if self._method.fold is not None:
            self._server.folds.add(self._method.fold(contributions))
        return guilty

    def _turn_out(self, device: str, link: Link, round: int) -> None:
        """Refuses a device, of which nothing has counted, as one that sends what may not be believed."""
        assert isinstance(link, Refusing), "whoever is found out can be refused"
        link.refuse(Refused("diverged", str(poisoned(device, round))))

    def _observed(self, device: DevicePlan, update: Update | None) -> Mapping[str, Any]:
        """Facts that the method reads from a device's update; none for a device whose round did not count."""
        return {} if update is None else self._method.observe(device, update)

    def _records(
        self,
        plan: RoundPlan,
        situation: Situation,
        links: Mapping[str, Link],
        tallies: Mapping[str, Tally],
        duration: float,
        bytes_before: Mapping[str, tuple[int, int]],
    ) -> list[StepRecord]:
        """Records of what the round measured of each device, in the order of their names."""
        records, events_of = [], defaultdict[str, list[Event]](list)
        for event in self._events:
            events_of[event.who].append(event)
        for device in sorted(plan.devices, key=lambda device: device.device):
            name, events = device.device, events_of[device.device]
            tally, link = tallies[name], links[name]
            up, down = bytes_before[name]
            forward, backward, upload, download = (
                _seconds(events, what) for what in ("forward", "backward", "upload", "download")
            )
            in_steps = [event for event in events if event.step is not None]
            busy, network = forward + backward, upload + download
            records.append(
                StepRecord(
                    round=plan.round,
                    device=name,
                    steps=tally.steps,
                    samples=tally.samples,
                    weight=tally.weight,
                    loss=tally.loss,
                    busy_seconds=busy,
                    network_seconds=network,
                    waiting_seconds=max(0.0, duration - _occupied(events)),
                    bytes_up=link.bytes_received - up,
                    bytes_down=link.bytes_sent - down,
                    backward_seconds=backward,
                    upload_seconds=upload,
                    cut=device.cut,
                    batch_size=device.batch_size,
                    ranks=device.ranks,
                    flops=sum(event.flops for event in events),
                    memory_bytes=situation.device_bytes(device),
                    step_network_seconds=sum(_seconds(in_steps, what) for what in ("upload", "download")),
                    facts={**tally.facts, **self._observed(device, tally.update)},
                    dropped_messages=tally.dropped_messages,
                    late=tally.late,
                )
            )
        return records


def _occupied(events: Sequence[Event]) -> float:
    """The seconds in which a device computed, sent or received; where it does two at once, they count once."""
    return length(union((event.start_seconds, event.end_seconds) for event in events))


def _seconds(events: Sequence[Event], what: str) -> float:
    return sum(event.end_seconds - event.start_seconds for event in events if event.what == what)
