"""A run without files: the real coordinator, server, devices and links on the virtual clock, on a tiny model."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch

from cutlayer.device.commit import CommittingLink
from cutlayer.device.device import Device, HoldsOut
from cutlayer.device.store import Store
from cutlayer.errors import DeviceGone
from cutlayer.fleet.clock import now, run_virtual
from cutlayer.fleet.machine import ModelledMachine
from cutlayer.fleet.presence import hours_of, mustered
from cutlayer.fleet.profile import DeviceProfile, Fleet, ServerProfile
from cutlayer.gate.guard import Guard
from cutlayer.gate.guarded import guarded
from cutlayer.methods.method import Method
from cutlayer.model.adapter import LoraSettings
from cutlayer.model.base import Base
from cutlayer.model.part import model_inputs
from cutlayer.model.settings import ModelSettings
from cutlayer.model.trainable import OptimizerSettings, TrainSettings
from cutlayer.packing import UNCOMPRESSED, CompressedLink, Compression
from cutlayer.policies.aggregate import Aggregate, Contribution
from cutlayer.policies.plan import Planner, Situation, make_plan
from cutlayer.policies.stragglers import Stragglers, wait_all
from cutlayer.reading import TaskKind
from cutlayer.rounds.patience import Patience
from cutlayer.run.judging import Judges
from cutlayer.run.loop import Coordinator, Logbook
from cutlayer.run.sites import SimulatedSites
from cutlayer.run.spans import SimulatedSpans
from cutlayer.server.aggregation import Aggregation
from cutlayer.server.forecast import Forecast
from cutlayer.server.server import Server
from cutlayer.server.tasks import Tasks
from cutlayer.state import State
from cutlayer.testing.reference import plain_peft_model
from cutlayer.testing.tiny import BLOCKS, LABELS, random_batch, tiny_model
from cutlayer.types import Adapter, Batch, Cost, DevicePlan, Event, History, RoundPlan
from cutlayer.wire.link import Around, Link
from cutlayer.wire.messages import Assignment, Finish, Message

WAIT_ALL = wait_all()
LEARNING_RATES = (1e-2, 5e-3, 2e-3, 1e-3)


def learning_rate(round: int, step: int) -> float:
    """The rate of a local step, another for each of a round and for neighbouring rounds."""
    return LEARNING_RATES[(2 * round + step) % len(LEARNING_RATES)]


class ListedBatches:
    """A stream that gives prepared batches and remembers which samples it gave out."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self._batches, self._next = list(batches), 0

    def next(self, batch_size: int | None = None) -> Batch:  # noqa: ARG002  the batches are prepared
        self._next += 1
        return self._batches[self._next - 1]

    def state(self) -> State:
        return State({"next": self._next})

    def load(self, state: State) -> None:
        self._next = state.facts["next"]

    @property
    def all(self) -> list[Batch]:
        return list(self._batches)

    @property
    def given(self) -> list[Batch]:
        return self._batches[: self._next]


@dataclass(frozen=True)
class MadeUpRows:
    """Rows that a device holds out: two batches, whatever their size; for `play`."""

    task: str
    seed: int

    def batches(self, batch_size: int) -> list[Batch]:
        """Two batches, each of as many samples as are asked for; the second is longer."""
        sizes = ((self.seed, 8), (self.seed + 1, 10))
        return [random_batch(self.task, seed=seed, samples=batch_size, tokens=tokens) for seed, tokens in sizes]


@dataclass(frozen=True)
class FlatCosts:
    """A cost model with round numbers: one MFLOP per block, sample and token; backward ends at the lowest adapter.

    A tail that a device holds is run forward and backward to its end.
    """

    num_blocks: int
    hidden_size: int = 16
    dtype: torch.dtype = torch.float32

    def device(self, plan: DevicePlan, num_samples: int, num_tokens: int) -> Cost:
        blocks = [block for block in range(plan.cut) if plan.blocks is None or block in plan.blocks]
        deep = plan.cut - min(blocks, default=plan.cut)
        forward, backward = (1e6 * (passed + 0.1) * num_samples * num_tokens for passed in (plan.cut, deep))
        tail = 0 if plan.top is None or plan.alone else self.num_blocks - plan.top
        above = 0.0 if plan.top is None or plan.alone else 1e6 * (tail + 0.1) * num_samples * num_tokens
        return Cost(forward + above, (backward if deep else 0.0) + above, 2**20 * (1 + plan.cut + tail))

    def device_forward(self, plan: DevicePlan, num_samples: int, num_tokens: int) -> float:
        return self.device(plan, num_samples, num_tokens).forward_flops

    def server(self, plan: DevicePlan, num_samples: int, num_tokens: int) -> Cost:
        blocks = (self.num_blocks if plan.top is None else plan.top) - plan.cut
        flops = 1e6 * (blocks + 0.1) * num_samples * num_tokens
        return Cost(flops, flops, 2**20 * (1 + blocks))

    def activation_bytes(self, num_samples: int, num_tokens: int) -> int:
        return 4 * num_samples * num_tokens * self.hidden_size

    def adapters_on_device(self, plan: DevicePlan) -> int:
        return 2 * sum(map(plan.holds, range(self.num_blocks)))

    def device_adapter_bytes(self, plan: DevicePlan) -> int:
        adapted = range(self.num_blocks) if plan.blocks is None else plan.blocks
        return 4096 * sum(map(plan.holds, adapted))

    def server_trainable_bytes(self, plan: DevicePlan) -> int:
        return 12288 * ((self.num_blocks if plan.top is None else plan.top) - plan.cut)


def fleet_of(num_devices: int, *, max_blocks: Sequence[int] = (1, 2, 3)) -> Fleet:
    """Unequal devices: speeds, links and limits differ."""
    return Fleet(
        name="play",
        source="made up",
        server=ServerProfile(flops_per_second=3e10, efficiency=1.0, memory_bytes=2**34),
        devices=tuple(
            DeviceProfile(
                name=f"device-{index}",
                flops_per_second=1e9 * (1 + (7 * index) % 5),
                efficiency=1.0,
                memory_bytes=2**30,
                up_bits_per_second=1e6 * (1 + index % 3),
                down_bits_per_second=2e6,
                latency_seconds=0.01,
                max_blocks=max_blocks[index % len(max_blocks)],
            )
            for index in range(num_devices)
        ),
    )


def planned(*planners: Planner, num_devices: int = 3, round: int = 0, **changes: Any) -> RoundPlan:
    """The plan that planners make for unequal devices of a model of three blocks, without a run.

    Args:
      planners: In their order.
      num_devices: Of `fleet_of`.
      round: Which is planned.
      changes: Fields of the situation.

    Example:
      >>> from cutlayer import cut_at, everyone
      >>> [(device.device, device.cut) for device in planned(everyone(), cut_at(2), num_devices=2).devices]
      [('device-0', 2), ('device-1', 2)]
    """
    situation = Situation(
        **{
            "fleet": fleet_of(num_devices),
            "costs": FlatCosts(BLOCKS),
            "history": History(),
            "num_tokens": 10,
            "batch_size": 4,
            "local_steps": 2,
            **changes,
        }
    )
    return make_plan(planners, round, situation)


def streams_for(
    fleet: Fleet, task: str, *, steps: int, samples: Callable[[int], int] = lambda index: 2 + index % 3
) -> dict[str, ListedBatches]:
    """Different batches for every device, of different sizes."""
    return {
        device.name: ListedBatches(
            [
                with_rows(
                    random_batch(task, seed=1000 * index + step, samples=samples(index), tokens=8 + 2 * (step % 2)),
                    first=step * samples(index),
                )
                for step in range(steps)
            ]
        )
        for index, device in enumerate(fleet.devices)
    }


def label_counts_of(streams: Mapping[str, ListedBatches]) -> dict[str, tuple[int, ...]]:
    """Samples of each class that each device has, by its name."""
    return {
        name: tuple(torch.cat([batch.labels for batch in stream.all]).bincount(minlength=LABELS).tolist())
        for name, stream in streams.items()
    }


def with_rows(batch: Batch, *, first: int) -> Batch:
    """The batch, of samples that are the rows from `first` on of the device's data."""
    return replace(batch, indices=tuple(range(first, first + batch.num_samples)))


@dataclass(frozen=True, slots=True)
class Mustered:
    """The devices that are there when a round is planned: all of them, unless the fleet says otherwise."""

    links: Mapping[str, Link]
    situation: Situation
    all_of_them: bool = True

    async def muster(self, round: int) -> Situation:
        whole = self.situation
        return whole.of(await mustered(whole.fleet, round, whole.seed, all_of_them=self.all_of_them))

    def leave_out(self, unplaced: Mapping[str, Exception]) -> bool:  # noqa: ARG002
        return False

    async def dismiss(self, finish: Finish) -> None:
        for link in self.links.values():
            with contextlib.suppress(DeviceGone):
                await link.send(finish)


class TappedLink(Around):
    """A link end that keeps a copy of every message sent through it."""

    def __init__(self, link: Link, sent: list[Message]) -> None:
        super().__init__(link)
        self._sent = sent

    async def send(self, message: Message) -> None:
        self._sent.append(message)
        await self._link.send(message)


class LeavingLink(Around):
    """The server's end of the link of a device that is gone in one round, after so many messages of it."""

    def __init__(self, link: Link, device: str, *, round: int, after: int) -> None:
        super().__init__(link)
        self._device, self._round, self._after = device, round, after
        self._heard = 0
        self._here = True

    async def send(self, message: Message) -> None:
        if isinstance(message, Assignment | Finish):
            self._here = message.round != self._round
        if not self._here and self._heard >= self._after:
            raise DeviceGone("unplugged", device=self._device, reason="unplugged")
        await self._link.send(message)

    async def receive(self) -> Message:
        if not self._here and self._heard >= self._after:
            raise DeviceGone("unplugged", device=self._device, reason="unplugged")
        message = await self._link.receive()
        self._heard += message.round == self._round
        return message


class TappedAggregate:
    """An aggregate that keeps what it was given."""

    def __init__(self, aggregate: Aggregate, given: list[list[Contribution]]) -> None:
        self.name, self.mixed_ranks = aggregate.name, aggregate.mixed_ranks
        self._aggregate, self._given = aggregate, given

    def __call__(self, broadcast: Adapter, contributions: Sequence[Contribution], plan: RoundPlan) -> Adapter:
        copies = [{name: value.clone() for name, value in part.adapter.items()} for part in contributions]
        self._given.append([replace(part, adapter=copy) for part, copy in zip(contributions, copies, strict=True)])
        return self._aggregate(broadcast, contributions, plan)

    def state(self) -> State:
        return self._aggregate.state()

    def load(self, state: State) -> None:
        self._aggregate.load(state)


@dataclass
class Played:
    """A run that was played, and what happened in it.

    Attributes:
      adapter: at the end.
      logbook: what devices measured.
      rows: of the rounds.
      events: what machines and links did.
      contributions: of each round, as the aggregate was given them.
      streams: what devices drew from.
      sent_up: by devices, as it travels.
      sent_down: by the server.
      errands: between devices and the machines that run blocks for them.
    """

    adapter: Adapter
    logbook: Logbook
    rows: list[dict[str, Any]]
    events: list[Event]
    contributions: list[list[Contribution]]
    streams: Mapping[str, ListedBatches] = field(default_factory=dict)
    sent_up: list[Message] = field(default_factory=list)
    sent_down: list[Message] = field(default_factory=list)
    errands: list[Message] = field(default_factory=list)
    views: Mapping[str, Adapter] = field(default_factory=dict)
    """The adapter as it is to each device at the end, by its name; none where all share one."""


def play(
    base: Base,
    method: Method,
    fleet: Fleet,
    streams: Mapping[str, ListedBatches],
    *,
    rounds: int = 2,
    local_steps: int = 2,
    settings: TrainSettings | None = None,
    seed: int = 0,
    compression: Compression = UNCOMPRESSED,
    apart: bool = False,
    guard: Callable[..., Guard] | None = None,
    stragglers: Stragglers = WAIT_ALL,
    link_of: Callable[[str, Link], Link] = lambda _device, link: link,
    stores: Mapping[str, Store] | None = None,
    micro_batches: int = 1,
    overlap: bool = True,
    held_out: Mapping[str, HoldsOut] | None = None,
) -> Played:
    """Plays a run and returns what happened. Messages are kept as they travel, packed.

    `apart`, each device has a base of its own, as in a process of its own; `guard` makes the guard of the server's end
    of each link, and `link_of` may put something more around that end. With `stores` devices keep commit points there.
    Where `stragglers` waits for all, the method's own patience counts, but for one that keeps late work: ask for that.
    With `held_out` devices judge by these rows before the first round and after each.
    """
    settings = settings or TrainSettings(OptimizerSettings())
    costs = FlatCosts(base.num_blocks, dtype=base.dtype)
    happened = Played({}, Logbook(), [], [], [], streams)
    method = replace(method, aggregate=TappedAggregate(method.aggregate, happened.contributions))

    async def run() -> None:
        events: list[Event] = []
        under_way = Tasks()
        patient = None if method.patience is None or method.patience.late == "keep" else method.patience
        policy = patient or stragglers if stragglers.waits_for_all else stragglers
        situation = Situation(
            fleet,
            costs,
            happened.logbook.history,
            num_tokens=10,
            batch_size=4,
            local_steps=local_steps,
            rounds=rounds,
            label_counts={} if base.settings.task == "causal-lm" else label_counts_of(streams),
            micro_batches=micro_batches,
            overlap=overlap,
            num_modules=len(base.modules),
            stragglers=None if stragglers == WAIT_ALL else stragglers,
        )
        sites = SimulatedSites(fleet, events.append, at_sites=method.round.shape.at_sites)
        server = Server(
            "play",
            base,
            base.initial_adapter(seed, method.make_plan(0, situation).ranks),
            ModelledMachine("server", fleet.server.effective_flops, events.append),
            costs,
            settings,
            learning_rate,
            Forecast(fleet, costs, compression),
            10,
            scope=method.scope,
            broadcast=method.broadcast,
            sites=sites,
        )

        def end(link: Link, sent: list[Message]) -> CompressedLink:
            return packing(TappedLink(link, sent))

        def packing(link: Link) -> CompressedLink:
            started_from = method.round.shape.started_from(base)
            return CompressedLink(link, compression, hidden_size=16, dtype=base.dtype, started_from=started_from)

        def server_end(name: str, link: Link) -> Link:
            if guard is None:
                return end(link, happened.sent_down)
            facts = {
                "hidden_size": 16,
                "longest_tokens": 10,
                "compression": compression,
                "holds": method.round.holds,
                "script": method.round.script,
            }
            return guarded(TappedLink(link, happened.sent_down), guard(name, "play", base, **facts), packing)

        async def no_metrics(_adapter: Adapter) -> dict[str, float]:
            return {}

        async def commit(row: dict[str, Any], done: list[Event]) -> None:
            happened.rows.append(row)
            happened.events.extend(done)

        def on_errands(link: Link) -> CompressedLink:
            return packing(TappedLink(link, happened.errands))

        spans = SimulatedSpans(fleet, base, costs, 12, seed=seed, record=events.append, packed=on_errands)
        hours = {profile.name: hours_of(profile, situation.seed) for profile in fleet.devices}
        ends = {profile.name: sites.link(profile, events.append, hours[profile.name]) for profile in fleet.devices}
        patience = Patience(policy, under_way)
        coordinator = Coordinator(
            method,
            server,
            Aggregation(method.aggregate),
            Mustered(
                {name: link_of(name, server_end(name, link)) for name, (_, link) in ends.items()},
                situation,
                policy.waits_for_all,
            ),
            happened.logbook,
            rounds=rounds,
            clock=now,
            evaluate=no_metrics,
            evaluate_when=lambda _round: held_out is not None,
            commit=commit,
            events=events,
            hold=patience.hold,
            tasks=under_way,
            judges=None if held_out is None else Judges(method, server, patience),
        )
        async with asyncio.TaskGroup() as tasks:
            for profile in fleet.devices:
                machine = ModelledMachine(
                    profile.name, profile.effective_flops, events.append, hours=hours[profile.name]
                )
                own = Base(base.settings) if apart else base
                way = spans.of(profile, events.append)
                shape, data = method.round.shape, streams[profile.name]
                held = None if held_out is None else held_out[profile.name]
                device = Device(profile.name, own, data, machine, costs, settings, shape, way, held)
                if stores is None:
                    device_end = end(ends[profile.name][0], happened.sent_up)
                else:
                    committing = CommittingLink(
                        TappedLink(ends[profile.name][0], happened.sent_up), stores[profile.name]
                    )
                    device_end = packing(committing)
                    committing.attach(device, device_end)
                tasks.create_task(device.converse(device_end))
            await coordinator.run()
        happened.views = server.adapters.views()
        views = list(happened.views.values())
        happened.adapter = views[0] if len(fleet.devices) == len(views) == 1 else server.exported()

    run_virtual(run())
    return happened


@cache
def tiny_base(family: str = "bert", task: TaskKind = "classification") -> Base:
    """A tiny random model with LoRA on every linear layer, made once in a process."""
    labels, lora = LABELS if task == "classification" else 0, LoraSettings(targets=("all-linear",))
    return Base(ModelSettings(str(tiny_model(family, task)), task, num_labels=labels, lora=lora))


def played(
    method: Method,
    *,
    base: Base | None = None,
    num_devices: int = 3,
    rounds: int = 2,
    local_steps: int = 2,
    samples: Callable[[int], int] = lambda index: 2 + index % 3,
) -> Played:
    """Plays a run of the method on a tiny model and unequal devices: `play`, in a second.

    Args:
      method: How it decides; it belongs to this run from now on.
      base: The model; None for a classifier.
      num_devices: Of `fleet_of`.
      rounds: Of the run.
      local_steps: Of each device in a round.
      samples: In each batch of a device, by its index.

    Example:
      >>> from cutlayer import Method, cut_at, everyone, mean_per_block, relay
      >>> vanilla = Method((everyone(), cut_at(1)), relay(), mean_per_block())
      >>> [(record.device, record.samples) for record in played(vanilla, rounds=1).logbook.history.records]
      [('device-0', 4), ('device-1', 6), ('device-2', 8)]
    """
    base, fleet = base or tiny_base(), fleet_of(num_devices)
    streams = streams_for(fleet, base.settings.task, steps=rounds * local_steps, samples=samples)
    return play(base, method, fleet, streams, rounds=rounds, local_steps=local_steps)


def plain_training(
    base: Base,
    start: Adapter,
    batches: Sequence[Batch],
    rates: Sequence[float],
    optimizer_state: dict[str, Any] | None = None,
    *,
    micro_batches: int = 1,
) -> tuple[Adapter, dict[str, Any]]:
    """Ordinary PEFT training of the unsplit model: transformers' from_pretrained, peft, torch's AdamW.

    With several micro-batches, gradients of the parts of a batch add up before a step.

    Returns the adapter and the optimizer's state, so that training can go on.
    """
    model, inside = plain_peft_model(base)
    with torch.no_grad():
        for name, value in start.items():
            inside[name].copy_(value)
    optimizer = torch.optim.AdamW(inside.values(), lr=0.0, weight_decay=0.0, fused=True)
    if optimizer_state is not None:
        optimizer.load_state_dict(optimizer_state)
    for batch, rate in zip(batches, rates, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        chunks = {name: tensor.chunk(micro_batches) for name, tensor in model_inputs(batch).items()}
        for number, labels in enumerate(batch.labels.chunk(micro_batches)):
            weight = len(labels) if labels.dim() == 1 else int((labels[:, 1:] != -100).sum())
            loss = model(**{name: parts[number] for name, parts in chunks.items()}, labels=labels).loss
            (loss * (weight / batch.weight)).backward()
        optimizer.step()
    return {name: parameter.detach().clone() for name, parameter in inside.items()}, optimizer.state_dict()
