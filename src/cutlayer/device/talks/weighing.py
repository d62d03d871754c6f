"""The device's end of the weighing round (`rounds/weighing.py`): as the up-and-down round's, and the device weighs.

At every step it scores the LoRA modules below its cut by the gradients that it has; at the first step of a round in
which the plan says so, exactly too (`model/matrix_importance.py`). Its update says the scores, added up over the round.

Shapes: B batch, T tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from cutlayer.device.device import Device
from cutlayer.device.shape import Shape
from cutlayer.device.talks.split import Split
from cutlayer.model.low_rank import factor_names
from cutlayer.model.matrix_importance import Exactly, by_proxy, flops_of
from cutlayer.model.part import DevicePart
from cutlayer.policies.importance_ranks import EXACT, PROXY, Weigh
from cutlayer.types import Adapter, Batch
from cutlayer.wire.messages import Assignment, Update


class Weighing(Split):
    """Trains below the cut, and weighs.

    Args:
      device: The device.
    """

    def __init__(self, device: Device) -> None:
        super().__init__(device)
        self._exactly: Exactly | None = None
        self._proxy: dict[str, float] = {}

    def begin(self, assignment: Assignment) -> None:
        """See `Split.begin`."""
        super().begin(assignment)
        self._exactly, self._proxy = None, {}

    async def ahead(self, part: Batch, step: int, number: int) -> Tensor:
        """See `Split.ahead`."""
        weigh = self._device.now.plan.clause(Weigh)
        probes = weigh is not None and weigh.exact and step == 0
        return await self._device.bottom(part, step, number, within=self._watched if probes else nullcontext)

    async def back(self, part: Batch, h_BTD: Tensor, grad_BTD: Tensor | None, step: int, *, last: bool) -> None:
        """See `Split.back`."""
        device = self._device
        weigh = device.now.plan.clause(Weigh)
        probes = weigh is not None and weigh.exact and step == 0
        flops = flops_of(device.base, device.broadcast, part.num_samples, part.num_tokens) if probes else 0.0
        await device.back(
            part,
            h_BTD,
            grad_BTD,
            step,
            moves=last,
            before_step=self._score if weigh is not None else None,
            more_flops=flops,
        )

    def update(self) -> Update:
        """The update with what the device trained in the round, and the scores of modules in its adapter's order."""
        weigh = self._device.now.plan.clause(Weigh)
        modules = [a for _, a in factor_names(self._device.broadcast)]
        if weigh is None or not modules:
            return self._device.update()
        facts: Adapter = {PROXY: _in_order(modules, self._proxy)}
        if weigh.exact:
            facts[EXACT] = _in_order(modules, self._exactly.scores if self._exactly else {})
        return self._device.update(facts)

    def _watched(self, part: DevicePart) -> AbstractContextManager[None]:
        self._exactly = Exactly(self._device.base, part)
        return self._exactly.watching()

    def _score(self) -> None:
        for name, score in by_proxy(self._device.trainable.parameters).items():
            self._proxy[name] = self._proxy.get(name, 0.0) + score


def _in_order(modules: list[str], scores: Mapping[str, float]) -> Tensor:
    return torch.tensor([scores.get(name, 0.0) for name in modules], dtype=torch.float32)


SHAPE = Shape("weighing", Weighing)
