"""Gradients that devices return, to whoever waits for that step; nothing of a device that has left."""

from __future__ import annotations

import asyncio

import torch

from cutlayer.fleet.clock import run_virtual
from cutlayer.server.returns import Returns
from cutlayer.wire.messages import HiddenGradients


def returned(device: str, step: int) -> HiddenGradients:
    return HiddenGradients("run", 0, step, device, torch.zeros(1), 0.5)


def test_each_gets_its_own_step_of_its_device() -> None:
    """The step is the one asked for, whoever asks first, and whether it has come before or not."""

    async def program() -> list[int | None]:
        returns = Returns()
        returns.put(returned("a", 2))
        waiting = [asyncio.create_task(returns.of(*asked)) for asked in (("a", 1), ("a", 0), ("b", 7))]
        await asyncio.sleep(1)
        for device, step in (("a", 0), ("b", 7)):
            returns.put(returned(device, step))
        returns.put(returned("a", 1))  # one who asks now must not be given what another waits for
        waiting.append(asyncio.create_task(returns.of("a", 2)))
        await asyncio.sleep(1)
        waiting += [asyncio.create_task(returns.of("a", step)) for step in (3, 4)]
        await asyncio.sleep(1)
        returns.leave("a")
        waiting.append(asyncio.create_task(returns.of("a", 5)))
        return [None if (one := await task) is None else one.step for task in waiting]

    assert run_virtual(program()) == [1, 0, 7, 2, None, None, None]
