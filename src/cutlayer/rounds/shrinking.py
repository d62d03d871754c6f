"""The shrinking round: every device trains by itself, and may prune its own LoRA ranks (`device/talks/shrinking.py`).

As the local round, but that the update of a device that may prune says which ranks it has left itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from cutlayer.device.talks.shrinking import RANKS_LEFT, SHAPE
from cutlayer.gate.forms import Forms, Script, Shape, meta
from cutlayer.policies.self_prune import SelfPrune
from cutlayer.rounds.local import alone
from cutlayer.rounds.round import Round
from cutlayer.types import Adapter, DevicePlan


def shrinking() -> Round:
    """Builds the shrinking round. Its plan must leave the whole model on every device (`policies.cut.whole_model`).

    Example:
      >>> from cutlayer import shrinking
      >>> shrinking().shape.name
      'shrinking'
    """
    return alone(SHAPE, script)


def script(plan: DevicePlan, forms: Forms) -> Script:
    """One update, with the ranks that are left where the device may prune them."""
    may = plan.clause(SelfPrune)
    yield forms.update(None if may is None else _RanksLeft(forms, plan, may))


class _RanksLeft:
    """The facts of an update of a device that may prune its ranks: see `gate.forms.Facts`."""

    def __init__(self, forms: Forms, plan: DevicePlan, may: SelfPrune) -> None:
        self._forms, self._plan, self._may = forms, plan, may

    def largest(self) -> Adapter:
        return {RANKS_LEFT: meta((len(self._plan.ranks),), torch.int32)}

    def check(self, facts: Adapter, *, diverged: bool) -> None:  # noqa: ARG002
        self._forms.check_tensors("facts", facts, self.largest())
        ranks = tuple(facts[RANKS_LEFT].tolist())
        if ranks not in (self._plan.ranks, self._may.ranks):
            raise self._forms.refused("wrong-facts", "the ranks of its plan, pruned or not", ranks)

    def shapes(self, facts: Adapter | None) -> Mapping[str, Shape]:
        ranks: Sequence[int] = self._plan.ranks if facts is None else facts[RANKS_LEFT].tolist()
        full = {name: meta(shape, torch.float32) for name, shape in self._forms.shapes.items()}
        return {name: tuple(tensor.shape) for name, tensor in self._forms.base.at_ranks(full, ranks).items()}
