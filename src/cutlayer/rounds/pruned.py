"""The pruned round: every device trains by itself, on a model that shrinks (`device/talks/pruned.py`).

As the local round, but that an update says what is left of the device's model, how much each unit has mattered, and how
far its LoRA factors have moved; and that its adapter has what is left of each factor.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from cutlayer.device.talks.pruned import CHANGE, SHAPE, structure_in
from cutlayer.errors import MalformedMessage, Refused
from cutlayer.gate.forms import LOUDEST_FACT, Forms, Script, Shape, meta
from cutlayer.model.base import Base
from cutlayer.model.finite import finite
from cutlayer.model.structure import IMPORTANCE, KEPT, units_by_name
from cutlayer.policies.prune import Prune
from cutlayer.rounds.local import alone
from cutlayer.rounds.round import Round
from cutlayer.types import Adapter, DevicePlan
from cutlayer.wire.messages import Update


def pruned() -> Round:
    """Builds the pruned round. Its plan must leave the whole model on every device (`policies.cut.whole_model`).

    Example:
      >>> from cutlayer import pruned
      >>> pruned().shape.name
      'pruned'
    """
    return alone(SHAPE, script, places)


def script(plan: DevicePlan, forms: Forms) -> Script:
    """One update, with the structure of the device's model where it prunes."""
    prune = plan.clause(Prune)
    yield forms.update(None if prune is None else _Structure(forms, prune))


def places(base: Base, update: Update) -> Mapping[str, tuple[int, torch.Tensor]]:
    """The places of a pruned device's tensors in the full ones: by name the axis, and the positions along it."""
    if not (said := structure_in(update.facts)):
        return {}
    kept, _ = base.structure.from_tensors(said, update.device)
    found = {name: base.structure.where(name, kept) for name in update.adapter}
    return {name: place for name, place in found.items() if place is not None}


class _Structure:
    """The facts of an update of a device that prunes: see `gate.forms.Facts`."""

    def __init__(self, forms: Forms, prune: Prune) -> None:
        self._forms, self._structure = forms, forms.base.structure
        self._left = self._structure.left(prune.ratio)
        self._most = dict(zip(self._structure.counts, self._left, strict=True))

    def largest(self) -> Adapter:
        names = [name for name, _ in units_by_name(self._structure.everything)]
        kept = {f"{KEPT}{name}": meta((self._most[_group(name)],), torch.int32) for name in names}
        scores = {f"{IMPORTANCE}{name}": meta((self._structure.count(name),), torch.float32) for name in names}
        return {CHANGE: meta((), torch.float64), **kept, **scores}

    def check(self, facts: Adapter, *, diverged: bool) -> None:
        said = structure_in(facts)
        self._forms.expect_names("wrong-facts", "facts", {*said, CHANGE}, facts)
        self._forms.expect_form(CHANGE, facts[CHANGE], meta((), torch.float64))
        try:
            kept, importance = self._structure.from_tensors(said, self._forms.assignment.device)
        except MalformedMessage as error:
            raise Refused("wrong-facts", str(error)) from error
        for name, units in units_by_name(kept):
            self._forms.expect_between("wrong-facts", f"units of {name}", 1, len(units), self._most[_group(name)])
        if diverged:
            return
        if not all(finite(scores) for scores in importance.values()):
            raise self._forms.refused("not-finite", "finite importance", "others")
        if not 0 <= (change := float(facts[CHANGE])) <= LOUDEST_FACT:
            raise self._forms.refused("not-finite", f"{CHANGE} from 0 to {LOUDEST_FACT:g}", change)

    def shapes(self, facts: Adapter | None) -> Mapping[str, Shape]:
        full = self._forms.shapes
        if facts is None:
            return {name: self._structure.shape(name, shape, self._left) for name, shape in full.items()}
        kept, _ = self._structure.from_tensors(structure_in(facts), self._forms.assignment.device)
        shapes = dict(full)
        for name, shape in full.items():
            axis, positions = self._structure.where(name, kept) or (0, ())
            if len(positions):
                shapes[name] = (*shape[:axis], len(positions), *shape[axis + 1 :])
        return shapes


def _group(unit: str) -> str:
    """`heads` or `channels`, of a unit's name."""
    return unit.partition(".")[2]
