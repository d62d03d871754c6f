"""The device's end of judging: it answers, or stops where it is told to; what it trains with stays as it is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bases import open_base
from cutlayer.device.device import Device
from cutlayer.device.judging import judge
from cutlayer.device.talks.local import SHAPE
from cutlayer.errors import WireError
from cutlayer.fleet.clock import run_virtual
from cutlayer.fleet.machine import ModelledMachine
from cutlayer.model.base import Base
from cutlayer.model.trainable import OptimizerSettings, TrainSettings
from cutlayer.testing.playground import FlatCosts, ListedBatches, MadeUpRows
from cutlayer.types import DevicePlan, Event
from cutlayer.wire.messages import Close, Finish, Gradients, HeldOut, Hidden, Judge, Judged, Message

ModelMaker = Callable[[str, str], Path]


END = Finish("run", 3, "all is done")


class Answering:
    """A device's end whose other end answers each held-out batch so, or not at all, and says farewell at the end."""

    bytes_sent = bytes_received = 0

    def __init__(self, answer: Callable[[HeldOut], Message | None] = lambda _: None) -> None:
        self.sent: list[Message] = []
        self._answer = answer
        self._answers: asyncio.Queue[Message] = asyncio.Queue()

    async def send(self, message: Message) -> None:
        self.sent.append(message)
        answer = self._answer(message) if isinstance(message, HeldOut) else END
        if answer is not None:
            self._answers.put_nowait(answer)

    async def receive(self) -> Message:
        return await self._answers.get()


@pytest.fixture(scope="module")
def base(tiny_model: ModelMaker) -> Base:
    return open_base(tiny_model("bert", "classification"), "classification")


def judged(base: Base, plan: DevicePlan, link: Answering, held: Any = None) -> tuple[Message, list[Event]]:
    events: list[Event] = []
    held = held or MadeUpRows("classification", 0)
    settings = TrainSettings(OptimizerSettings())
    machine = ModelledMachine("pi", 1e6, events.append)
    device = Device("pi", base, ListedBatches([]), machine, FlatCosts(base.num_blocks), settings, SHAPE, held_out=held)
    adapter = base.initial_adapter(0, ())
    names = base.device_names(plan.cut, top=plan.top)
    asked = Judge("run", 3, "pi", plan, {name: adapter[name] for name in names}, classes=1)
    before = torch.random.get_rng_state()
    ended = run_virtual(judge(device, link, asked))
    assert torch.random.get_rng_state().equal(before)
    assert device.state().tensors == {}
    return ended, events


def through(message: HeldOut) -> Message:
    return Hidden("run", 3, message.number, "pi", message.h_BTD)


def test_a_device_that_holds_all_says_one_thing(base: Base) -> None:
    link = Answering(through)
    ended, events = judged(base, DevicePlan("pi", cut=base.num_blocks, top=base.num_blocks, batch_size=3), link)
    (said,) = link.sent
    assert ended == END
    assert isinstance(said, Judged)
    assert (said.samples, said.weight, said.counts_3C[2].tolist()) == (6, 6, [6])
    assert [(event.what, event.step, event.round) for event in events] == [("forward", None, 3)] * 2


def test_a_device_with_two_ends_judges_what_comes_down(base: Base) -> None:
    link = Answering(through)
    judged(base, DevicePlan("pi", cut=1, top=1 + 1, batch_size=3), link)
    first, second, said = link.sent
    assert isinstance(first, HeldOut)
    assert isinstance(second, HeldOut)
    assert isinstance(said, Judged)
    assert (first.number, second.number, first.labels, said.samples) == (0, 1, None, 6)
    assert said.loss > 0


def test_a_device_with_the_first_blocks_knows_no_loss(base: Base) -> None:
    link = Answering()
    judged(base, DevicePlan("pi", cut=1, batch_size=3), link)
    said = link.sent[-1]
    assert isinstance(said, Judged)
    assert (said.samples, said.loss, int(said.counts_3C.sum())) == (6, 0.0, 0)


@pytest.mark.parametrize("plan", [DevicePlan("pi", cut=1, top=2, batch_size=3), DevicePlan("pi", cut=1, batch_size=3)])
def test_it_stops_where_it_is_told_to(plan: DevicePlan, base: Base) -> None:
    """Whether it waits for an answer or only sends."""
    close = Close("run", 3, False, "deadline")
    link = Answering(lambda _: close)
    ended, _ = judged(base, plan, link)
    assert ended == close
    assert len(link.sent) == 1


@pytest.mark.parametrize(
    "answer", [Gradients("run", 3, 0, "pi", None, 0.5), Hidden("run", 3, 7, "pi", torch.zeros(3, 8, 16))]
)
def test_another_answer_has_no_place(base: Base, answer: Message) -> None:
    with pytest.raises(WireError, match="Hidden of held-out batch 0"):
        judged(base, DevicePlan("pi", cut=1, top=2, batch_size=3), Answering(lambda _: answer))


def test_a_device_without_such_rows_says_so(base: Base) -> None:
    class Nothing:
        def batches(self, batch_size: int) -> list[Any]:  # noqa: ARG002
            return []

    link = Answering(through)
    judged(base, DevicePlan("pi", cut=1, batch_size=3), link, Nothing())
    (said,) = link.sent
    assert isinstance(said, Judged)
    assert (said.samples, said.weight, said.loss) == (0, 0, 0.0)
