"""One server or one device, without a run around it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any
from unittest import mock

from cutlayer.device.device import Device
from cutlayer.device.shape import Shape
from cutlayer.device.talks import split
from cutlayer.errors import DivergedError
from cutlayer.fleet.clock import now, run_virtual
from cutlayer.fleet.machine import ModelledMachine
from cutlayer.fleet.profile import Fleet
from cutlayer.model.base import Base
from cutlayer.model.part import model_inputs
from cutlayer.model.trainable import OptimizerSettings, TrainSettings
from cutlayer.policies.aggregate import Contribution
from cutlayer.policies.scope import Scope, shared
from cutlayer.rounds.round import Round
from cutlayer.server.forecast import Forecast
from cutlayer.server.server import Server
from cutlayer.server.steps.train import answer, train
from cutlayer.testing.playground import FlatCosts, ListedBatches, learning_rate
from cutlayer.types import Batch, Event, RoundPlan
from cutlayer.wire.link import Link
from cutlayer.wire.messages import Activations, Assignment, Finish, Gradients, Message, Update

ADAMW = TrainSettings(OptimizerSettings())


def server_for(
    base: Base,
    fleet: Fleet,
    events: list[Event] | None = None,
    settings: TrainSettings = ADAMW,
    *,
    scope: Scope = shared,
) -> Server:
    """A server of this fleet, at 30 GFLOP/s, on the costs of the playground."""
    costs = FlatCosts(base.num_blocks)
    record = (events if events is not None else []).append
    machine = ModelledMachine("server", fleet.server.effective_flops, record)
    start = base.initial_adapter(0)
    forecast = Forecast(fleet, costs)  # type: ignore[arg-type]
    return Server(
        "run",
        base,
        start,
        machine,
        costs,  # type: ignore[arg-type]
        settings,
        learning_rate,
        forecast,
        10,
        scope=scope,
    )


async def served(server: Server, arrived: Activations) -> Gradients:
    """The server's answer to one device's activations, as of a step that serves one device at a time."""
    return answer(server, arrived, *await train(server, arrived, server.ledger.device(arrived.device)))


def device_for(
    base: Base,
    batches: Sequence[Batch],
    events: list[Event] | None = None,
    settings: TrainSettings = ADAMW,
    *,
    name: str = "device-0",
    shape: Shape = split.SHAPE,
) -> Device:
    """A device, at 1 GFLOP/s, on the costs of the playground."""
    machine = ModelledMachine(name, 1e9, (events if events is not None else []).append)
    costs = FlatCosts(base.num_blocks)
    return Device(name, base, ListedBatches(batches), machine, costs, settings, shape)  # type: ignore[arg-type]


def activations_for(base: Base, batch: Batch, cut: int, *, device: str = "device-0", step: int = 0) -> Activations:
    """The message that a device with an untrained adapter would send for this batch."""
    part = base.device_part(cut)
    part.use(base.initial_adapter(0))
    h_BTD = part.forward(model_inputs(batch)).detach()
    return Activations("run", 0, step, device, h_BTD, batch.attention_mask_BT.bool(), batch.labels.int(), batch.weight)


class Suspecting:
    """A round on a server that can refuse its devices, and on which these trials of an adapter fail, by their number.

    Attributes:
      refused: by device, why.
      trials: counts them; asked for the next, it says how many there were.
    """

    def __init__(self, inner: Round, *fail: int) -> None:
        self._inner, self._fail, self.trials = inner, fail, count()
        self.refused: dict[str, DivergedError] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def server_end(self, server: Server, links: Mapping[str, Link], plan: RoundPlan) -> list[Contribution]:
        server.sound = lambda _adapter: next(self.trials) not in self._fail
        server.held_by(lambda error: self.refused.update({error.device: error}), [*links])
        return await self._inner.server_end(server, links, plan)


@contextmanager
def rehearsing(server: Server) -> Iterator[None]:
    """Within it, the server's machine does no work: each piece returns what it says that it would return of nothing."""
    machine = server.machine
    run = machine.run

    async def idle(fn: Callable[[], Any], *, like: Callable[[], Any], **facts: Any) -> Any:
        return await run(like, like=like, **facts)

    with mock.patch.object(machine, "run", idle):
        yield


class ScriptedLink:
    """A device's end of a link whose other end says what it was told to, then nothing for ever.

    An assignment or a Finish waits until the round before has been answered, unless the link is `hasty`; a message with
    a time waits for that time; a function is asked what to say to what was heard last.

    Attributes:
      heard: what the device said, and when its last byte had left.
    """

    bytes_sent = bytes_received = 0

    def __init__(
        self,
        says: Sequence[Message | tuple[float, Message] | Callable[[Message], Message]],
        *,
        seconds: float = 0.0,
        hasty: bool = False,
    ) -> None:
        self._says, self._seconds, self._hasty = list(says), seconds, hasty
        self._free = asyncio.Lock()
        self._opened = 0  # rounds
        self.heard: list[tuple[float, Message]] = []

    @property
    def messages(self) -> list[Message]:
        """The messages that the device sent."""
        return [message for _, message in self.heard]

    async def send(self, message: Message) -> None:
        async with self._free:
            await asyncio.sleep(self._seconds)
        self.heard.append((now(), message))

    async def receive(self) -> Message:
        if not self._says:
            await asyncio.sleep(1e9)
        says = self._says[0]
        if isinstance(says, tuple):
            await asyncio.sleep(max(0.0, says[0] - now()))
        elif isinstance(says, Assignment | Finish) and not self._hasty:
            while sum(isinstance(message, Update) for message in self.messages) < self._opened:
                await asyncio.sleep(0.01)
        said = says[1] if isinstance(says, tuple) else says(self.messages[-1]) if callable(says) else says
        self._opened += isinstance(said, Assignment)
        self._says.pop(0)  # now: who is cancelled while waiting has heard nothing
        return said


def converse(device: Device, link: ScriptedLink) -> list[Message]:
    """Plays a device's talk; returns the messages that it sends."""
    run_virtual(device.converse(link))
    return link.messages
