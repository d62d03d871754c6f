"""A round that is only said: the real conversation on the virtual clock, between machines that do no work.

Devices and the server say what they would say of batches of one shape, in activations that hold nothing (`meta`);
machines and links let the time pass that it would take. So the time of a round is known for any method, with its
order and its barriers, before a weight is read. Where all batches have that shape, it is the time of the run.

Shapes: B batch, T tokens, D hidden size.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from types import MappingProxyType
from typing import Any, TypeVar

import torch

from cutlayer.device.device import Device
from cutlayer.fleet.clock import now, run_virtual
from cutlayer.fleet.machine import ModelledMachine, Work
from cutlayer.fleet.presence import Hours, hours_of
from cutlayer.fleet.profile import DeviceProfile
from cutlayer.methods.method import Method
from cutlayer.model.base import Base
from cutlayer.model.settings import ModelSettings
from cutlayer.policies.aggregate import Contribution
from cutlayer.policies.stragglers import Stragglers, wait_all
from cutlayer.reading import TaskKind
from cutlayer.rounds.patience import Patience
from cutlayer.run.inputs import RunInputs
from cutlayer.run.judging import Judges
from cutlayer.run.sites import SimulatedSites
from cutlayer.run.spans import SimulatedSpans
from cutlayer.server.forecast import Forecast
from cutlayer.server.server import Server
from cutlayer.server.tasks import Tasks
from cutlayer.state import Stateless
from cutlayer.types import Batch, DevicePlan, Event, RoundPlan
from cutlayer.wire.link import Around, Link
from cutlayer.wire.messages import Assignment, Finish, Message

T = TypeVar("T")

EQUAL: Mapping[str, float] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """The time and the bytes that a round would take.

    Attributes:
      seconds: from the first assignment to the last update.
      bytes_up: devices to server.
      bytes_down: server to devices.
      owners: of the adapters on the server.
      fold_bytes: of what a round adds to the base, which the server keeps.
      events: what machines and links did.
      assignments: what each device was told, in tensors that hold nothing.
    """

    seconds: float
    bytes_up: int
    bytes_down: int
    owners: tuple[str, ...]
    fold_bytes: int = 0
    events: tuple[Event, ...] = field(default=(), compare=False)
    assignments: Mapping[str, Assignment] = field(default_factory=dict, compare=False)


def rehearse(
    inputs: RunInputs,
    method: Method,
    plan: RoundPlan,
    num_tokens: int,
    bandwidth_shares: Mapping[str, float] = EQUAL,
    *,
    away: bool = False,
    keeping: Stragglers | None = None,
    rounds: int = 1,
    fails: bool = False,
) -> Rehearsed:
    """Plays one round of `plan` with batches of `num_tokens` tokens a text. Reads no weight.

    Args:
      inputs: What the run is made of.
      method: The run's.
      plan: Of the round.
      num_tokens: Of every batch.
      bandwidth_shares: By device, of the server's connection where the fleet has one that is shared
        (`Gateway.share_by`).
      away: Whether devices are away when the fleet says so; else all of them stay.
      keeping: When rounds end, where late work is kept; None plays until everybody is done.
      rounds: So many are then played, and what comes out is their mean: the first has nobody who is late.
      fails: Whether machines of the fleet fail, as it says that they do.
    """
    rehearsal = _Rehearsal(
        inputs, method, plan, num_tokens, bandwidth_shares, away=away, keeping=keeping, rounds=rounds, fails=fails
    )
    return run_virtual(rehearsal.play())


def rehearse_judging(inputs: RunInputs, method: Method, plan: RoundPlan, num_tokens: int) -> Rehearsed:
    """Plays how the devices of a round judge by the rows that they hold out (`rounds/judging.py`), after it.

    Args:
      inputs: What the run is made of.
      method: The run's.
      plan: Of the round.
      num_tokens: Of every text.
    """
    return run_virtual(_Rehearsal(inputs, method, plan, num_tokens, EQUAL, judges=True).play())


@cache
def _empty(settings: ModelSettings) -> Base:
    """The model of these settings without weights, one per process: what rehearsals build of it they share."""
    return Base(settings, device="meta")


class _Rehearsal:
    """The wiring of one round."""

    def __init__(
        self,
        inputs: RunInputs,
        method: Method,
        plan: RoundPlan,
        num_tokens: int,
        shares: Mapping[str, float],
        *,
        away: bool = False,
        keeping: Stragglers | None = None,
        rounds: int = 1,
        fails: bool = False,
        judges: bool = False,
    ) -> None:
        self._away, self._keeping, self._rounds, self._judges = away, keeping, rounds, judges
        self._inputs, self._method, self._plan, self._num_tokens = inputs, method, plan, num_tokens
        self._events: list[Event] = []
        self._sites = SimulatedSites(inputs.fleet, self._events.append, at_sites=method.round.shape.at_sites)
        self._sites.gateway.share_by(shares)
        self._base = _empty(inputs.model_settings)
        self._spans = SimulatedSpans(
            inputs.fleet,
            self._base,
            inputs.costs,
            num_tokens,
            seed=inputs.config.train.seed,
            record=self._events.append,
            packed=inputs.compressed,
            machines=_IdleMachine,
            fails=fails,
        )

    async def play(self) -> Rehearsed:
        server, links, told = self._server(), dict[str, Link](), dict[str, Assignment]()
        if self._method.fold is not None:  # a round opens with what the one before it stacked, all but the first
            server.folds.add(self._method.fold([self._contribution(device) for device in self._plan.devices]))
        async with asyncio.TaskGroup() as tasks:
            for index, profile in enumerate(self._inputs.fleet.devices):
                hours = hours_of(profile, self._inputs.config.train.seed) if self._away else None
                ends = self._sites.link(profile, self._events.append, hours)
                device_end, server_end = map(self._inputs.compressed, ends)
                links[profile.name] = _Overheard(server_end, told)
                device = self._device(index, profile, hours)
                tasks.create_task(device.converse(device_end), name=profile.name)
            await self._hold(server, links)
            result = Rehearsed(
                seconds=now() / self._rounds,
                bytes_up=sum(link.bytes_received for link in links.values()) // self._rounds,
                bytes_down=sum(link.bytes_sent for link in links.values()) // self._rounds,
                owners=server.adapters.owners,
                fold_bytes=server.folds.num_bytes,
                events=tuple(self._events),
                assignments=told,
            )
            for link in links.values():
                await link.send(Finish(server.run, self._plan.round + 1, "the rehearsal is over"))
        return result

    async def _hold(self, server: Server, links: Mapping[str, Link]) -> None:
        """The round; or some of them, in which whoever is late goes on; or what devices say after it."""
        if self._judges:
            patience = Patience(wait_all(), Tasks())
            await Judges(self._method, server, patience).judge(self._plan.round, self._plan.devices, self._plan, links)
            return
        if self._keeping is None:
            await self._method.round.server_end(server, links, self._plan)
            return
        tasks = Tasks()
        patience = Patience(self._keeping, tasks)
        for number in range(self._rounds):
            plan = tasks.joined(replace(self._plan, round=number))
            await patience.hold(self._method.round, server, links, plan)

    def _server(self) -> Server:
        inputs, profile = self._inputs, self._inputs.fleet.server
        return Server(
            inputs.run_id,
            self._base,
            {name: torch.empty(shape, device="meta") for name, shape in self._base.shapes_of(self._plan.ranks).items()},
            _IdleMachine(profile.name, profile.effective_flops, self._events.append),
            inputs.costs,
            inputs.train_settings,
            inputs.learning_rate,
            Forecast(inputs.fleet, inputs.costs, inputs.compression),
            inputs.config.data.max_length,
            scope=self._method.scope,
            broadcast=self._method.broadcast,
            sites=self._sites,
        )

    def _device(self, index: int, profile: DeviceProfile, hours: Hours | None) -> Device:
        machine = _IdleMachine(profile.name, profile.effective_flops, self._events.append, hours=hours)
        batches = _AlikeBatches(self._inputs.config.data.task, self._num_tokens)
        held_out = _AlikeRows(batches, len(self._inputs.held_out(index).rows))
        shape = self._method.round.shape
        costs, settings = self._inputs.costs, self._inputs.train_settings
        spans = self._spans.of(profile, self._events.append)
        return Device(profile.name, self._base, batches, machine, costs, settings, shape, spans, held_out)

    def _contribution(self, plan: DevicePlan) -> Contribution:
        """The contribution that a device of this plan would have trained."""
        shapes = self._base.shapes_of(plan.ranks)
        adapter = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
        return Contribution(adapter, dict.fromkeys(adapter, 1.0))


class _IdleMachine(ModelledMachine):
    """Takes the time that work takes without doing it; the result is what the work says that it would be like."""

    async def run(
        self,
        fn: Callable[[], T],  # noqa: ARG002  the work that is not done
        *,
        like: Callable[[], T],
        what: str,
        flops: float,
        round: int,
        step: int | None,
        peer: str | None = None,
    ) -> T:
        return await super().run(like, like=like, what=what, flops=flops, round=round, step=step, peer=peer)

    async def run_in_turn(self, works: Sequence[Work], *, round: int, step: int | None) -> list[Any]:
        return await super().run_in_turn([work._replace(fn=work.like) for work in works], round=round, step=step)


class _AlikeBatches(Stateless):
    """A stream of batches, all of one shape, of tokens that mean nothing; no sample comes twice."""

    def __init__(self, task: TaskKind, num_tokens: int) -> None:
        self._task, self._num_tokens = task, num_tokens
        self._num_given = 0

    def next(self, batch_size: int | None = None) -> Batch:
        assert batch_size is not None, "a device asks for the batch size of its plan"
        ids_BT = torch.ones(batch_size, self._num_tokens, dtype=torch.long)
        labels = ids_BT if self._task == "causal-lm" else ids_BT[:, 0]
        rows = range(self._num_given, self._num_given + batch_size)
        self._num_given = rows.stop
        return Batch(ids_BT, ids_BT, labels, token_type_ids_BT=None, indices=tuple(rows), weight=batch_size)


@dataclass(frozen=True)
class _AlikeRows:
    """Rows that a device holds out, of the same shape as its batches."""

    given: _AlikeBatches
    rows: int

    def batches(self, batch_size: int) -> Iterator[Batch]:
        for start in range(0, self.rows, batch_size):
            yield self.given.next(min(batch_size, self.rows - start))


class _Overheard(Around):
    """The server's end of a link, which notes what its device is told to do."""

    def __init__(self, link: Link, told: dict[str, Assignment]) -> None:
        super().__init__(link)
        self._told = told

    async def send(self, message: Message) -> None:
        if isinstance(message, Assignment):
            self._told[message.device] = message
        await super().send(message)
