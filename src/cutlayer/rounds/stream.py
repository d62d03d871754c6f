"""The stream: activations go up, nothing comes down; devices only run forward and never wait for the server.

    device                              wire                    server
    batch -> frozen forward
                          -> Activations(step, h, mask, labels) ->
    the next batch, while this one is on its way                lift to the deepest cut, without gradient
                          -> Activations ... ->                 shuffle buffer; as soon as it is full:
                                                                a mixed batch: forward, loss, backward, adapter step
    ... local_steps times, then
                          -> Update() ->                        drain the buffer

What is mixed does not depend on who is fast: samples enter the buffer in the order of local steps, and of names
within a step. So a run repeats on any clock, and no device's data comes before the others'. What it costs is at most
one local step of the slowest device (docs/decisions/0010-stream-order.md).

With a cache a sample is sent once. From then on the device names it (`Recall`), and computes and sends nothing.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from cutlayer.device.talks.stream import SHAPE
from cutlayer.errors import ConfigError
from cutlayer.gate.forms import Forms, Script, ScriptOf
from cutlayer.policies.aggregate import Contribution
from cutlayer.policies.repeat import Repeat
from cutlayer.rounds.round import Round
from cutlayer.rounds.turn import Turn
from cutlayer.server.cache import STORED, ActivationCache
from cutlayer.server.owners import one_for_all
from cutlayer.server.samples import one_by_one
from cutlayer.server.server import Server
from cutlayer.server.steps.mixed import lift, train_mixed
from cutlayer.server.steps.shuffle import ShuffleBuffer
from cutlayer.server.steps.stages import Stages
from cutlayer.state import State
from cutlayer.types import Costs, DevicePlan, RoundPlan
from cutlayer.wire.link import Link
from cutlayer.wire.messages import Activations, Recall

MIB = 2**20
Queue = asyncio.Queue[list[Activations] | None]
"""Batches of one device, each as its samples, at the deepest cut; None where no more will come."""


def stream(
    *,
    window: int | None = None,
    server_batch: int | None = None,
    cache: bool = True,
    cache_mib: int = 256,
    cache_dtype: str = "fp32",
    stages: int = 1,
    micro_batches: int = 1,
    decomposed: bool = False,
    seed: int = 0,
) -> Round:
    """Builds the stream. Its plan must leave the devices nothing to train, and the server a block for every stage
    (`policies.ranks.ranks_above_deepest_cut`); with a cache it must say that activations repeat
    (`policies.repeat.activations_repeat`).

    Args:
      window: Samples in the shuffle buffer; None for one batch of every device of the round.
      server_batch: Samples in a mixed batch; None for the largest batch of a device.
      cache: Whether the server keeps activations, so that a sample is computed and sent once.
      cache_mib: The memory that they may take; what is more is read from the disk.
      cache_dtype: What they are stored as: fp32 (as they arrived), bf16, or int8 with a scale for each token.
      stages: Into how many the server side is cut.
      micro_batches: Into how many a mixed batch is divided on its way through the stages.
      decomposed: Whether gradients of weights are put off until no stage waits for a gradient of its input.
      seed: Of the shuffling.

    Raises:
      ConfigError: An option out of its range, or two that contradict each other.

    Example:
      >>> from cutlayer import stream
      >>> round = stream(cache=False)
      >>> round.keeps_activations, round.cuts_batches
      (False, False)
    """
    least = {"window": window, "server_batch": server_batch, "cache_mib": cache_mib, "stages": stages}
    for name, value in (least | {"micro_batches": micro_batches}).items():
        if value is not None and value < 1:
            raise ConfigError(f"method.{name}: expected at least 1, got {value}. Change method.{name}.")
    if cache_dtype not in STORED:
        raise ConfigError(
            f"method.cache_dtype: expected one of {', '.join(STORED)}, got {cache_dtype!r}. Choose one of these."
        )
    if decomposed and stages == 1:
        raise ConfigError(
            "method.decomposed: expected method.stages of at least 2, got 1: below a single stage nothing waits "
            "for a gradient, so there is none to put first. Set method.stages, or method.decomposed=false."
        )
    pipeline = {"stages": stages, "micro_batches": micro_batches, "decomposed": decomposed}
    return _Stream(window, server_batch, (cache_mib * MIB, cache_dtype) if cache else None, pipeline, seed)


def script(plan: DevicePlan, forms: Forms) -> Script:
    """A batch for each local step, or the names of its samples where they repeat, then the update."""
    rows = plan.clause(Repeat) is not None
    for step in range(plan.local_steps):
        yield from forms.batch(step, rows=rows)
    yield forms.update()


class _Stream:
    equal_cuts = together = cuts_batches = divisible = False

    def __init__(
        self,
        window: int | None,
        server_batch: int | None,
        kept: tuple[int, str] | None,
        pipeline: dict[str, Any],
        seed: int,
    ) -> None:
        self._window, self._server_batch, self._kept, self._pipeline = window, server_batch, kept, pipeline
        self._seed, self.shape = seed, SHAPE
        self.script: ScriptOf = script
        self.keeps_activations = kept is not None
        self._cache: ActivationCache | None = None
        self._resumed = State()

    async def server_end(self, server: Server, links: Mapping[str, Link], plan: RoundPlan) -> list[Contribution]:
        server.begin(plan, one_for_all)
        deepest = max(device.cut for device in plan.devices)
        cache = self._cache_of(server)
        arrived: dict[str, Queue] = {device.device: asyncio.Queue() for device in plan.devices}
        async with asyncio.TaskGroup() as tasks:
            for device in plan.devices:
                link, queue = links[device.device], arrived[device.device]
                tasks.create_task(_turn(server, link, device, deepest, cache, queue))
            await self._train(server, plan, deepest, arrived)
        if cache is not None:
            cache.flush()
        return server.contributions()

    async def _train(self, server: Server, plan: RoundPlan, deepest: int, arrived: Mapping[str, Queue]) -> None:
        """Trains on mixed batches as soon as there are any, through the round's part of the learning rates once."""
        devices = sorted(plan.devices, key=lambda device: device.device)
        batch_size = self._server_batch or max(device.batch_size for device in devices)
        window = self._window or sum(device.batch_size for device in devices)
        buffer = ShuffleBuffer[Activations](window, batch_size, (self._seed, plan.round))
        stages = Stages(server.base, deepest, devices[0].blocks, **self._pipeline)
        local_steps = max(device.local_steps for device in devices)
        most_steps = math.ceil(sum(device.batch_size * device.local_steps for device in devices) / batch_size)
        step = 0
        async for samples in _mixed(devices, arrived, buffer):
            await train_mixed(server, samples, stages, step=step, local_step=step * local_steps // most_steps)
            step += 1

    def _cache_of(self, server: Server) -> ActivationCache | None:
        if self._kept is None or server.base.device.type == "meta":  # a rehearsal computes nothing that could be kept
            return None
        if self._cache is None:
            memory_bytes, stored = self._kept
            base, folder = server.base, server.scratch and server.scratch / "activations"
            per_token = base.settings.task == "causal-lm"
            self._cache = ActivationCache(
                folder, memory_bytes=memory_bytes, stored=stored, dtype=base.dtype, per_token=per_token
            )
            self._cache.load(self._resumed)
        return self._cache

    def holds(self, device: str, row: int) -> bool:
        return self._cache is not None and self._cache.holds(device, row)

    def server_bytes(self, plan: RoundPlan, costs: Costs, num_tokens: int) -> int:
        """One model from the shallowest cut, one step, the cache, and at worst everything that a round sends."""
        shallowest = min(plan.devices, key=lambda device: device.cut)
        batch_size = self._server_batch or max(device.batch_size for device in plan.devices)
        sent = sum(costs.activation_bytes(d.batch_size, num_tokens) * d.local_steps for d in plan.devices)
        kept = self._kept[0] if self._kept else 0
        return costs.server(shallowest, batch_size, num_tokens).memory_bytes + sent + kept

    def state(self) -> State:
        return self._resumed if self._cache is None else self._cache.state()

    def load(self, state: State) -> None:
        self._resumed = state


async def _turn(
    server: Server, link: Link, device: DevicePlan, deepest: int, cache: ActivationCache | None, queue: Queue
) -> None:
    """One device's round, as the server sees it. If the device leaves, what of it is not mixed yet never is.

    If it is late, what it has sent by the time it hears so is trained on, and counts.
    """
    turn = Turn(server, link, device, Activations if cache is None else (Activations, Recall))

    async def take(message: Activations | Recall) -> None:
        if isinstance(message, Recall):
            assert cache is not None, "nothing is recalled where nothing is kept"
            samples, shape = cache.recall(message), (len(message.rows_B), message.num_tokens)
            forward_flops = server.costs.device(device, *shape).forward_flops
            saved_bytes = server.costs.activation_bytes(*shape)
            server.ledger.arrived(device.device, saved_flops=forward_flops, saved_bytes=saved_bytes)
        else:
            samples = one_by_one(await lift(server, message, deepest))
            if cache is not None and message.rows_B is not None:
                cache.keep(samples)
            server.ledger.arrived(device.device)
        queue.put_nowait(samples)
        if turn.all_steps_came:
            queue.put_nowait(None)

    def forget() -> None:
        while not queue.empty():
            queue.get_nowait()
        queue.put_nowait(None)

    stayed = await turn.hold(take, gone=forget)
    if stayed and not turn.all_steps_came:
        queue.put_nowait(None)


async def _mixed(
    devices: Sequence[DevicePlan], arrived: Mapping[str, Queue], buffer: ShuffleBuffer[Activations]
) -> AsyncIterator[list[Activations]]:
    """The mixed batches of a round: one batch of each device in turn goes into the buffer, in an order of names."""
    names = [device.device for device in devices]
    while names:
        for name in list(names):
            samples = await arrived[name].get()
            if samples is None:
                names.remove(name)
            else:
                for batch in buffer.put(samples):
                    yield batch
    for batch in buffer.drain():
        yield batch
