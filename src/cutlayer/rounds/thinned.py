"""The thinned round: as the up-and-down round (`rounds/split.py`), with devices that hold less below their cuts.

device                              wire                    server
some heads and channels are left out
each local step as there, on what is left; some channels of h go up, the gradients of those come down
                      -> Update(adapter of what is left, what is left) ->
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from cutlayer.device.talks.thinned import SHAPE, kept_in
from cutlayer.errors import MalformedMessage, Refused
from cutlayer.gate.forms import Forms, Script, Shape, meta
from cutlayer.model.base import Base
from cutlayer.model.structure import KEPT, units_by_name
from cutlayer.policies.prune_below import PruneBelow
from cutlayer.rounds.round import Round
from cutlayer.rounds.split import hold_turn, up_and_down
from cutlayer.server.steps.step import ServerStep
from cutlayer.types import Adapter, DevicePlan, Kept
from cutlayer.wire.messages import Update


def thinned(*, server_step: ServerStep) -> Round:
    """Builds the thinned round. What is thinned is in the plan (`pruning_below`, `dropping_channels`, `rounding_to`).

    Args:
      server_step: How arriving activations are processed on the one base model.

    Example:
      >>> from cutlayer import a_copy_each, thinned
      >>> round = thinned(server_step=a_copy_each())
      >>> round.shape.name, round.divisible
      ('thinned', True)
    """
    return up_and_down(SHAPE, script, hold_turn, server_step, cuts_batches=server_step.cuts_batches, places=places)


def script(plan: DevicePlan, forms: Forms) -> Script:
    """A batch for each local step, whole or in parts, then the update; it says what is left where something is not."""
    for step in range(plan.local_steps):
        yield from forms.batch(step)
    prune = plan.clause(PruneBelow)
    yield forms.update(None if prune is None or not plan.cut else _WhatIsLeft(forms, plan.cut, prune))


def places(base: Base, update: Update) -> Mapping[str, tuple[int, torch.Tensor]]:
    """The places of a thinned device's tensors in the full ones: by name the axis, and the positions along it."""
    kept = kept_in(update.facts, base, update.device)
    if kept is None:
        return {}
    found = {name: base.structure.where(name, kept) for name in update.adapter}
    return {name: place for name, place in found.items() if place is not None}


class _WhatIsLeft:
    """The facts of an update of a thinned device: see `gate.forms.Facts`."""

    def __init__(self, forms: Forms, cut: int, prune: PruneBelow) -> None:
        self._forms, self._structure = forms, forms.base.structure
        self._left = self._structure.left(prune.ratio)
        heads, channels = (tuple(range(count)) for count in self._left)
        self._lowest = Kept((heads,) * cut, (channels,) * cut)

    def largest(self) -> Adapter:
        return {f"{KEPT}{name}": meta((len(units),), torch.int32) for name, units in units_by_name(self._lowest)}

    def check(self, facts: Adapter, *, diverged: bool) -> None:  # noqa: ARG002
        self._forms.check_tensors("facts", facts, self.largest())
        try:
            kept_in(facts, self._forms.base, self._forms.assignment.device)
        except MalformedMessage as error:
            raise Refused("wrong-facts", str(error)) from error

    def shapes(self, facts: Adapter | None) -> Mapping[str, Shape]:  # noqa: ARG002
        return {name: self._structure.shape(name, shape, self._left) for name, shape in self._forms.shapes.items()}
