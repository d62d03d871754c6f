"""The device's end of the seeds round (`rounds/seeds.py`): it trains alone, by forward passes, and sends only scalars.

    what comes down     K sums: from them and w0 follow the weights (`model/standing.py`), whatever the device missed
    each local step     a batch; one of the K seeds; the loss to either side of it; a step along it (`model/kseed.py`)
    what goes up        for each step the seed's index and the slope

All that one process plays share the weights: each step moves them to where its device stands. Nothing drops out.

Shapes: K seeds, T local steps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cutlayer.device.attentive import Attentive
from cutlayer.device.device import Device
from cutlayer.device.follow import RoundTalk
from cutlayer.device.shape import Shape
from cutlayer.model.base import Base
from cutlayer.model.dropout import still
from cutlayer.model.kseed import SKIPPED, Walk
from cutlayer.model.standing import Standing
from cutlayer.policies.seed_search import SeedSearch, search_of
from cutlayer.policies.seeds import draw, uniform
from cutlayer.types import Adapter, DevicePlan, Flow
from cutlayer.wire.messages import Assignment, Message, Update

SUMS, ODDS = "sums", "odds"
"""The facts of an assignment: fp32 (K,), the sums at which the weights stand, and (Pro) the odds of each seed."""
INDICES, SLOPES = "seed_indices", "slopes"
"""The facts of an update: int16 (T,), which seed each step took, -1 for none; fp32 (T,), the slope along it."""


class Seeds(RoundTalk):
    """Trains alone along seeds.

    Args:
      device: The device.
    """

    def __init__(self, device: Device) -> None:
        super().__init__(device)
        self._walk: Walk | None = None

    async def work(self, heard: Attentive, assignment: Assignment) -> Message | None:
        """See `RoundTalk.work`."""
        self._device.begin(assignment)
        standing = await self._device.machine.aside(lambda: self._begin(assignment))
        heard.begin()
        for step in range(assignment.plan.local_steps):
            await self._step(standing, step)
            if (ended := heard.waiting()) is not None:
                return ended
        return None

    def _begin(self, assignment: Assignment) -> Standing:
        """The weights where the round begins."""
        base = self._device.base
        standing = standing_of(base, search_of(assignment.plan), self._device.settings.seed)
        standing.move(assignment.facts[SUMS])
        self._walk = Walk(standing, assignment.facts[SUMS])
        return standing

    async def _step(self, standing: Standing, step: int) -> None:
        device, now, walk = self._device, self._device.now, self._walk
        assert walk is not None, "a round begins with a walk"
        asked, batch = search_of(now.plan), device.draw()
        part = device.base.whole(now.plan.blocks)
        odds_K = now.facts.get(ODDS, uniform(asked.count))
        index = draw(odds_K, device.settings.seed, device.name, now.round, step)

        def work() -> float:
            part.use({name: standing.tensors[name] for name in part.names})
            with torch.no_grad(), still(part.model):
                return walk.step(
                    index, lambda: part.loss(batch), epsilon=asked.epsilon, rate=now.rate(0), clip=asked.clip
                )

        loss = await device.forwards(work, batch, step, like=lambda: 0.0)
        device.count(batch, loss)

    def update(self) -> Update:
        """The scalars; a round that ended early took no step in what was left of it."""
        assert self._walk is not None, "a round begins with a walk"
        facts, steps = self._walk.facts(), self._device.now.plan.local_steps
        return self._device.update(
            {
                INDICES: _padded(facts["seed_indices"], steps, SKIPPED).short(),
                SLOPES: _padded(facts["scalars"], steps, 0),
            },
            adapter={},
        )


def standing_of(base: Base, search: SeedSearch, seed: int) -> Standing:
    """The weights of this process that move, wherever they stand.

    Args:
      base: The model.
      search: What moves, along which seeds.
      seed: The run's, from which the adapter of the beginning is drawn.
    """
    ranks = (0,) * base.num_blocks if search.full else ()
    return base.standing(search.seeds, base.initial_adapter(seed, ranks), frozen=search.full)


def _padded(values_T: Tensor, length: int, fill: int) -> Tensor:
    return torch.nn.functional.pad(values_T, (0, length - len(values_T)), value=fill)


def said(plan: DevicePlan) -> Adapter:
    """The facts that an update says, as tensors that hold nothing."""
    steps = plan.local_steps
    return {
        INDICES: torch.empty(steps, dtype=torch.int16, device="meta"),
        SLOPES: torch.empty(steps, dtype=torch.float32, device="meta"),
    }


SHAPE = Shape("seeds", Seeds, flow=lambda _plan: Flow(forwards=2, backward=False), copies_weights=True, devices="alone")
