"""What devices return, in the order of their steps; nothing of one that has left."""

from __future__ import annotations

import asyncio

import torch

from cutlayer.fleet.clock import run_virtual
from cutlayer.server.returns import Returns
from cutlayer.wire.messages import HiddenGradients


def returned(device: str, step: int) -> HiddenGradients:
    return HiddenGradients("run", 0, step, device, torch.zeros(1), 0.5)


def test_each_gets_the_next_of_its_device() -> None:
    async def program() -> list[int | None]:
        returns = Returns(("a", "b"))
        waiting = [asyncio.create_task(returns.next(name)) for name in ("a", "b", "a", "a", "a")]
        await asyncio.sleep(1)
        for device, step in (("a", 0), ("b", 7), ("a", 1)):
            returns.put(returned(device, step))
        returns.leave("a")
        return [None if (one := await task) is None else one.step for task in waiting]

    assert run_virtual(program()) == [0, 7, 1, None, None]
