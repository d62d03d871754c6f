from __future__ import annotations

import asyncio
from typing import Any

import pytest
import torch

from cutlayer.device.told import Told
from cutlayer.types import DevicePlan
from cutlayer.wire.messages import Assignment, Close, Finish, Gradients, Message, Update

PLAN = DevicePlan("pi", 2, 4, 3)


class Script:
    """A link that says what it was told to, and takes everything."""

    bytes_sent = bytes_received = 0

    def __init__(self, says: list[Message]) -> None:
        self._says = says

    async def send(self, message: Message) -> None:
        pass

    async def receive(self) -> Message:
        return self._says.pop(0)


def update(**changes: Any) -> Update:
    values = {"steps": 0, "samples": 12, "weight": 12, "loss": 0.0, "busy_seconds": 1.0}
    return Update("run", 0, "pi", {}, **(values | changes))


def told(says: list[Message], *sends: Message) -> list[str]:
    lines: list[str] = []

    async def play() -> None:
        link = Told(Script(list(says)), 3, lines.append)
        for _ in says:
            await link.receive()
        for message in sends:
            await link.send(message)

    asyncio.run(play())
    return lines


OPENED = Assignment("run", 0, "pi", PLAN, (0.1,) * 3, {})


def gradients(loss: float) -> Gradients:
    return Gradients("run", 0, 0, "pi", torch.zeros(1), loss)


@pytest.mark.parametrize(
    ("says", "sent", "loss"),
    [
        ([gradients(1.0), gradients(0.5)], update(), ", loss 0.7500"),  # the server computed them
        ([], update(steps=3, loss=0.25), ", loss 0.2500"),  # the device did
        ([], update(), ""),  # nobody here knows
    ],
)
def test_two_lines_a_round(says: list[Message], sent: Update, loss: str) -> None:
    assert told([OPENED, *says], sent) == [
        "round 1/3: 2 blocks here, 3 steps of 4 samples",
        f"round 1/3: done, 12 samples{loss}",
    ]


def test_what_ends_a_round_or_the_run_is_told() -> None:
    close = Close("run", 1, False, "deadline")
    assert told([close, Finish("run", 3, "all rounds are done")]) == [
        "round 2/3: ended by the server: deadline",
        "all rounds are done",
    ]
