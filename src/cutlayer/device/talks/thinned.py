"""The device's end of the thinned round (`rounds/thinned.py`): as the up-and-down round's, on less of a model.

What is below the cut has lost heads and channels (`policies/prune_below.py`): the device holds and trains what is left,
and says in its update what that is. Its gradients may be rounded before each step (`policies/few_bits.py`); what
crosses the cut is thinned on the link (`policies/channels.py`).

Shapes: B batch, T tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from cutlayer.device.device import Device
from cutlayer.device.shape import Shape
from cutlayer.device.talks.split import Split
from cutlayer.model.base import Base
from cutlayer.model.optimizers import quantised
from cutlayer.model.part import DevicePart
from cutlayer.model.structure import KEPT, units_by_name
from cutlayer.packing import StartedFrom
from cutlayer.policies.channels import DropChannels
from cutlayer.policies.directions import step_seeds
from cutlayer.policies.few_bits import FewBits
from cutlayer.policies.prune_below import PruneBelow, largest_below
from cutlayer.policies.trains import rule_of
from cutlayer.state import State
from cutlayer.types import Adapter, Batch, DevicePlan, Flow, Kept
from cutlayer.wire.messages import Assignment, Update

CLAUSES = (PruneBelow, DropChannels, FewBits)
"""The clauses that a plan of this shape may have: a device can read those that its shape has imported, and no others.
The second is the link's to read."""


class Thinned(Split):
    """Trains what is left below the cut.

    Args:
      device: The device.
    """

    def __init__(self, device: Device) -> None:
        super().__init__(device)
        self._kept: Kept | None = None  # what is left of the model; None for all of it
        self._chosen: tuple[int, int] | None = None  # the era and the cut for which that was chosen

    def begin(self, assignment: Assignment) -> None:
        """See `Split.begin`."""
        self._device.begin(assignment, self._thin)

    async def ahead(self, part: Batch, step: int, number: int) -> Tensor:
        """See `Split.ahead`."""
        return await self._device.bottom(part, step, number, part=self._part)

    async def back(self, part: Batch, h_BTD: Tensor, grad_BTD: Tensor | None, step: int, *, last: bool) -> None:
        """See `Split.back`."""
        device, few = self._device, self._device.now.plan.clause(FewBits)
        rule = None
        if few is not None:
            [seed] = step_seeds(few.seed, device.name, device.now.round, step, 1)
            rule = quantised(rule_of(device.now.plan, device.settings.optimizer), bits=few.bits, seed=seed)
        await device.back(part, h_BTD, grad_BTD, step, moves=last, rule=rule)

    def update(self) -> Update:
        """The update with what the device trained in the round, and of which units."""
        return self._device.update(self._said())

    def _thin(self, adapter: Adapter) -> Adapter:
        """Chooses what is left where the plan asks for it; what is left of the adapter."""
        base, plan = self._device.base, self._device.now.plan
        prune = plan.clause(PruneBelow)
        before, self._chosen = self._chosen, None if prune is None else (prune.era, plan.cut)
        if prune is None:
            self._kept = None
            return adapter
        if self._kept is None or before != self._chosen:
            kept = largest_below(base, plan.cut, adapter, prune.ratio)
            if kept != self._kept:  # moments are those of other units, at the same places
                self._device.trainable.load_moments({})
            self._kept = kept
        return base.structure.slice_all(adapter, self._kept)

    def _part(self) -> DevicePart:
        plan = self._device.now.plan
        return self._device.base.device_part(plan.cut, plan.blocks, self._kept)

    def _said(self) -> Adapter:
        """The units that are left of the blocks below the cut, as facts; none where nothing is left out."""
        if self._kept is None or self._chosen is None:
            return {}
        _, cut = self._chosen
        lowest = Kept(self._kept.heads[:cut], self._kept.channels[:cut])
        return {f"{KEPT}{name}": torch.tensor(units, dtype=torch.int32) for name, units in units_by_name(lowest)}

    def state(self) -> State:
        """The units that are left, and the era and the cut that they were chosen for; nothing where none were."""
        return State({"chosen": self._chosen}, self._said()) if self._chosen else State()

    def load(self, state: State) -> None:
        """Goes on from a `state`."""
        self._kept = self._chosen = None
        if "chosen" in state.facts:
            base, (era, cut) = self._device.base, state.facts["chosen"]
            self._chosen = era, cut
            self._kept = kept_in(state.tensors, base, self._device.name) or base.structure.everything


def kept_in(facts: Mapping[str, Tensor], base: Base, device: str) -> Kept | None:
    """The units that are left of the model, as a device's facts say; None where nothing is left out.

    Args:
      facts: By name; those that do not say it are passed over.
      base: The model.
      device: Whose they are.

    Raises:
      MalformedMessage: They are none of this model's.
    """
    said = {name: value for name, value in facts.items() if name.startswith(KEPT)}
    if not said:
        return None
    structure = base.structure
    whole = structure.to_tensors(structure.everything, {})
    kept, _ = structure.from_tensors(whole | said, device)
    return kept


def _started_from(base: Base) -> StartedFrom:
    """Devices train what is left of what they are sent, and say what that is."""

    def started_from(broadcast: Adapter, update: Update) -> Adapter:
        kept = kept_in(update.facts, base, update.device)
        return broadcast if kept is None else base.structure.slice_all(broadcast, kept)

    return started_from


def _flow(plan: DevicePlan) -> Flow:
    prune = plan.clause(PruneBelow)
    return Flow(removed=0.0 if prune is None else prune.ratio)


def _prepare(base: Base, plan: DevicePlan) -> None:
    if plan.clause(PruneBelow):
        _ = base.structure  # raises where this model cannot be pruned


SHAPE = Shape("thinned", Thinned, flow=_flow, started_from=_started_from, prepare=_prepare, copies_weights=True)
