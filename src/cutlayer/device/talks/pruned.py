"""The device's end of the pruned round (`rounds/pruned.py`): it trains alone, on a model that shrinks.

`Pruning` knows what is left of the device's model and how much each unit has mattered so far; the talk prunes when a
round begins, scores units at every step, and says both in its update.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from cutlayer.device.attentive import Attentive
from cutlayer.device.device import Device
from cutlayer.device.follow import RoundTalk
from cutlayer.device.shape import Shape
from cutlayer.device.talks.local import steps_alone
from cutlayer.model.base import Base
from cutlayer.model.importance import magnitudes, smooth, unit_scores
from cutlayer.model.part import WholePart
from cutlayer.model.structure import IMPORTANCE, KEPT, units_by_name
from cutlayer.packing import StartedFrom
from cutlayer.policies.prune import Prune, most_important
from cutlayer.state import State
from cutlayer.types import Adapter, DevicePlan, Flow
from cutlayer.wire.messages import Assignment, Message, Update

CHANGE = "change"
"""The fact of an update: fp64, the Frobenius norm of what the round changed in the device's LoRA factors."""


class Pruning:
    """The structure of one device's model.

    Args:
      base: the model.

    Attributes:
      kept: what is left.

    Raises:
      ConfigError: This model or these LoRA targets cannot be pruned.
    """

    def __init__(self, base: Base) -> None:
        self._base = base
        self.kept = base.structure.everything
        self._importance: Adapter = {}

    def prune(self, ratio: float) -> None:
        """Removes the least important units until this share of each block is gone; what is gone stays gone.

        Importance is what earlier rounds' gradients say; before there were any, the size of the weights.
        """
        if ratio > 0:
            left = self._base.structure.left(ratio)
            self.kept = most_important(self._importance or magnitudes(self._base), self.kept, left)
            units = dict(units_by_name(self.kept))
            self._importance = {name: _only(scores, units[name]) for name, scores in self._importance.items()}

    def observe(self, part: WholePart, parameters: Mapping[str, nn.Parameter]) -> None:
        """Learns from one step's gradients, before the step is taken."""
        self._importance = smooth(self._importance, unit_scores(self._base, part, parameters, self.kept))

    def state(self) -> State:
        """Structure and importance as tensors: what a checkpoint holds and what the server is told."""
        return State(tensors=self._base.structure.to_tensors(self.kept, self._importance))

    def load(self, state: State) -> None:
        """Goes on from a `state`."""
        self.kept, self._importance = self._base.structure.from_tensors(state.tensors, "checkpoint")


def _only(scores: Tensor, units: tuple[int, ...]) -> Tensor:
    """The scores of these units; 0 for the others, which are gone."""
    chosen = torch.tensor(units, device=scores.device)
    return torch.zeros_like(scores).index_copy_(0, chosen, scores[chosen])


class Pruned(RoundTalk):
    """Trains alone on what it has left.

    Args:
      device: The device.
    """

    def __init__(self, device: Device) -> None:
        super().__init__(device)
        self._pruning: Pruning | None = None  # a device whose plan says nothing of it has its whole model
        self._change = 0.0

    async def work(self, heard: Attentive, assignment: Assignment) -> Message | None:
        """See `RoundTalk.work`."""
        self._device.begin(assignment, self._prune)
        self._change = 0.0
        scores = bool((prune := assignment.plan.clause(Prune)) and prune.score)
        return await steps_alone(
            self._device,
            heard,
            assignment,
            part=self._part,
            before_step=self._score if scores else None,
            after_step=self._measure if scores else None,
        )

    def _prune(self, adapter: Adapter) -> Adapter:
        """Removes what the plan asks for; what is left of the adapter.

        A device that scores goes on from what it has left. One that does not chooses anew, and may have more left.
        """
        base, prune = self._device.base, self._device.now.plan.clause(Prune)
        if prune is None:
            self._pruning = None
            return adapter
        if self._pruning is None or not prune.score:
            self._pruning = Pruning(base)
        self._pruning.prune(prune.ratio)
        return base.structure.slice_all(adapter, self._pruning.kept)

    def _part(self) -> WholePart:
        """The whole model, but for the units that the device has pruned."""
        base, blocks = self._device.base, self._device.now.plan.blocks
        return base.pruned(self._pruning.kept, blocks) if self._pruning else base.whole(blocks)

    def _score(self) -> None:
        assert self._pruning is not None, "a plan with a clause has made it"
        self._pruning.observe(self._part(), self._device.trainable.parameters)

    def _measure(self) -> None:
        self._change = _lora_distance(self._device.trainable.values(), self._device.broadcast)

    def update(self) -> Update:
        """See `RoundTalk.update`; with what the device has left, and its scores."""
        if self._pruning is None:
            return self._device.update()
        change = torch.tensor(self._change, dtype=torch.float64)
        return self._device.update({CHANGE: change, **self._pruning.state().tensors})

    def state(self) -> State:
        """Structure and importance, where there is something pruned or scored."""
        return self._pruning.state() if self._pruning else State()

    def load(self, state: State) -> None:
        """Goes on from a `state`."""
        self._pruning = Pruning(self._device.base) if state.tensors else None
        if self._pruning:
            self._pruning.load(state)


def _lora_distance(after: Adapter, before: Adapter) -> float:
    """The Frobenius norm of what changed in the LoRA factors."""
    squares = [(value - before[name]).double().square().sum() for name, value in after.items() if ".lora_" in name]
    return math.sqrt(sum(map(float, squares)))


def structure_in(facts: Mapping[str, Tensor]) -> Adapter:
    """The facts of an update that say what is left of the device's model; none where it does not prune."""
    return {name: value for name, value in facts.items() if name.startswith((KEPT, IMPORTANCE))}


def _started_from(base: Base) -> StartedFrom:
    """Devices train what is left of what they are sent, and say what that is."""

    def started_from(broadcast: Adapter, update: Update) -> Adapter:
        if not (structure := structure_in(update.facts)):
            return broadcast
        kept, _ = base.structure.from_tensors(structure, update.device)
        return base.structure.slice_all(broadcast, kept)

    return started_from


def _flow(plan: DevicePlan) -> Flow:
    prune = plan.clause(Prune)
    return Flow(removed=0.0 if prune is None else prune.ratio)


def _prepare(base: Base, plan: DevicePlan) -> None:
    if plan.clause(Prune):
        _ = base.structure  # raises where this model cannot be pruned


SHAPE = Shape(
    "pruned", Pruned, flow=_flow, started_from=_started_from, prepare=_prepare, copies_weights=True, devices="alone"
)
