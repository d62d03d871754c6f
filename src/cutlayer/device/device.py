"""A device: its data, its part of the model, its adapter. What it does in a step; `conversations.py` says when.

Shapes: B batch, T tokens, D hidden size.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from cutlayer.data.batches import parts_of
from cutlayer.device.pruning import Pruning
from cutlayer.fleet.machine import Machine, Work
from cutlayer.model.base import Base
from cutlayer.model.dropout import seeded_dropout
from cutlayer.model.part import WholePart, model_inputs
from cutlayer.model.trainable import Trainable, TrainSettings
from cutlayer.policies.self_prune import tail_norm
from cutlayer.state import State, joined
from cutlayer.types import Adapter, Batch, Costs
from cutlayer.wire.messages import Activations, Assignment, Gradients, Recall, Update


class BatchStream(Protocol):
    """An endless, resumable stream of batches (`data/batches.py`)."""

    def next(self, batch_size: int | None = None) -> Batch: ...

    def state(self) -> State: ...

    def load(self, state: State) -> None: ...


class Device:
    """One device.

    Args:
      name: its name in the fleet.
      base: the frozen model that its parts are cut from; devices that one process plays share it.
      batches: its private data.
      machine: what it computes on.
      costs: what its steps cost, for a modelled machine.
      settings: how it trains.
    """

    def __init__(
        self, name: str, base: Base, batches: BatchStream, machine: Machine, costs: Costs, settings: TrainSettings
    ) -> None:
        self.name = name
        self.machine = machine
        self.before_round: Callable[[Assignment], Assignment] | None = None  # goes back to a commit point (commit.py)
        self._base, self._batches, self._costs, self._settings = base, batches, costs, settings
        self._trainable = Trainable({}, settings.optimizer)
        self._pruning: Pruning | None = None  # a device that never prunes knows nothing of it
        self._assignment: Assignment | None = None
        self._before: Adapter = {}  # what it started the round from
        self._parts: list[Batch] = []  # of the batch of the step under way
        self._graphs: deque[Tensor] = deque()  # activations of parts that were sent and not answered
        self._steps = self._samples = self._weight = 0
        self._loss_sum = 0.0  # of the steps that it took alone
        self._busy_before = 0.0
        self._drawn_from = State()  # the place in its data where the last batch began
        self._sent: set[int] = set()  # the samples whose activations the server keeps
        self._change = 0.0  # of its LoRA factors in this round, where it scores
        self._shrank = False  # the tail of its LoRA factors in this round, where it may prune it

    def begin(self, assignment: Assignment) -> None:
        """Takes the round's adapter and cut; removes what the plan asks for, of the adapter too."""
        if self.before_round is not None:
            assignment = self.before_round(assignment)
        self._assignment, adapter = assignment, assignment.adapter
        self._base.fold(assignment.folds)
        if assignment.plan.prune or assignment.plan.score or self._pruning:
            self._pruning = self._pruning or Pruning(self._base)
            self._pruning.prune(assignment.plan.prune)
            adapter = self._base.structure.slice_all(adapter, self._pruning.kept)
        self._trainable.load(adapter)
        self._before = adapter
        if assignment.plan.fresh_moments or not self._settings.keep_moments:
            self._trainable.load_moments({})
        self._steps = self._samples = self._weight = 0
        self._loss_sum = self._change = 0.0
        self._shrank = False
        self._busy_before = self.machine.busy_seconds

    def draw(self) -> int:
        """Draws the batch of a step; returns how many parts it has."""
        self._drawn_from = self._batches.state()
        batch = self._batches.next(self._now.plan.batch_size)
        self._parts = parts_of(batch, self._now.plan.parts_of(batch.num_samples))
        return len(self._parts)

    async def forward(self, step: int, micro_batch: int = 0) -> Activations:
        """Runs a part of the batch up to the cut. The graph stays here; what is sent is detached."""
        part = self._parts[micro_batch]
        h_BTD = await self._run_forward(part, step, micro_batch)
        self._graphs.append(h_BTD)
        return replace(
            self._activations(part, h_BTD, step),
            micro_batch=micro_batch,
            micro_batches=len(self._parts),
            others_weight=sum(other.weight for other in self._parts) - part.weight,
        )

    def take_back(self) -> None:
        """Puts the batch of a step that is not answered to its end back: it will be drawn again."""
        self._parts.clear()
        self._graphs.clear()
        self._batches.load(self._drawn_from)

    async def stream(self, step: int, *, kept: bool) -> Activations | Recall:
        """Draws a batch for a server that answers nothing: runs it up to the cut and forgets it.

        Args:
          step: The local step.
          kept: Whether the server keeps what it gets: samples that it has are then only named.
        """
        now, batch = self._now, self._batches.next(self._now.plan.batch_size)
        self._samples += batch.num_samples
        self._weight += batch.weight
        rows_B = torch.tensor(batch.indices, dtype=torch.int32) if kept else None
        if rows_B is not None and self._sent.issuperset(batch.indices):
            return Recall(now.run, now.round, step, self.name, rows_B, batch.num_tokens)
        h_BTD = await self._run_forward(batch, step)
        if kept:
            self._sent.update(batch.indices)
        return self._activations(batch, h_BTD, step, rows_B)

    async def _run_forward(self, batch: Batch, step: int, micro_batch: int = 0) -> Tensor:
        now = self._now
        part = self._base.device_part(now.plan.cut, now.plan.blocks)

        def work() -> Tensor:
            part.use(self._trainable.parameters)
            with seeded_dropout(self._drops, self._settings.seed, "device", self.name, now.round, *at):
                return part.forward(model_inputs(batch, self._base.device))

        at = (step, micro_batch) if micro_batch else (step,)
        shape_BTD = (batch.num_samples, batch.num_tokens, self._costs.hidden_size)
        cost = self._costs.device(now.plan, *shape_BTD[:2])
        return await self.machine.run(
            work,
            like=lambda: torch.empty(shape_BTD, dtype=self._base.dtype, device=self._base.device),
            what="forward",
            flops=cost.forward_flops,
            round=now.round,
            step=step,
        )

    def _activations(self, batch: Batch, h_BTD: Tensor, step: int, rows_B: Tensor | None = None) -> Activations:
        return Activations(
            run=self._now.run,
            round=self._now.round,
            step=step,
            device=self.name,
            h_BTD=h_BTD.detach(),
            mask_BT=batch.attention_mask_BT.bool(),
            labels=batch.labels.int(),
            weight=batch.weight,
            rows_B=rows_B,
        )

    async def backward(self, gradients: Gradients) -> None:
        """Back-propagates from the cut and frees the graph; after the last part of the batch, steps the adapter."""
        now, batch, h_BTD = self._now, self._parts[gradients.micro_batch], self._graphs.popleft()
        last = gradients.micro_batch + 1 == len(self._parts)
        if last:  # a step that is not done to its end does not count
            self._samples += sum(part.num_samples for part in self._parts)
            self._weight += sum(part.weight for part in self._parts)
        if gradients.grad_BTD is None:
            return  # nothing on this device trains

        def work() -> None:
            h_BTD.backward(gradients.grad_BTD)
            if last:
                self._trainable.step(now.learning_rates[gradients.step])

        cost = self._costs.device(now.plan, batch.num_samples, batch.num_tokens)
        await self.machine.run(
            work,
            like=lambda: None,
            what="backward",
            flops=cost.backward_flops,
            round=now.round,
            step=gradients.step,
        )

    async def train(self, step: int) -> None:
        """One local step of a device that holds the whole model: forward, loss, backward, adapter step."""
        now = self._now
        batch = self._batches.next(now.plan.batch_size)
        cost = self._costs.device(now.plan, batch.num_samples, batch.num_tokens)
        loss: Tensor | None = None

        def forward() -> Tensor:
            nonlocal loss
            part = self._part()
            part.use(self._trainable.parameters)
            with seeded_dropout(self._drops, self._settings.seed, "device", self.name, now.round, step):
                loss = part.loss(batch)
            return loss.detach()

        def backward() -> None:
            nonlocal loss
            assert loss is not None
            loss.backward()
            loss = None  # while the time of this passes, other devices of this process need the memory of its graph
            if now.plan.tail_penalty:
                (now.plan.tail_penalty * self._tail(self._trainable.parameters)).backward()
            if self._pruning and now.plan.score:
                self._pruning.observe(self._part(), self._trainable.parameters)
            self._trainable.step(now.learning_rates[step])
            if now.plan.score:
                self._change = _lora_distance(self._trainable.values(), self._before)
            if now.plan.prune_to:
                self._shrank = bool(self._tail(self._trainable.values()) < self._tail(self._before))

        works = (
            Work(forward, lambda: torch.zeros(()), "forward", cost.forward_flops),
            Work(backward, lambda: None, "backward", cost.backward_flops),
        )
        value, _ = await self.machine.run_in_turn(works, round=now.round, step=step)
        self._steps += 1
        self._samples += batch.num_samples
        self._weight += batch.weight
        self._loss_sum += float(value) * batch.weight

    def _part(self) -> WholePart:
        """What the device holds of the whole model."""
        blocks = self._now.plan.blocks
        return self._base.pruned(self._pruning.kept, blocks) if self._pruning else self._base.whole(blocks)

    def _tail(self, adapter: Mapping[str, Tensor]) -> Tensor:
        """The norm of what the device would lose of this adapter if it pruned its ranks."""
        return tail_norm(adapter, self._now.plan.prune_to, self._base.block_of)

    def update(self) -> Update:
        """What the device trained in this round; of its ranks, what it has not pruned."""
        now = self._now
        if self._shrank:
            self._trainable.shrink(lambda tensors: self._base.at_ranks(tensors, now.plan.prune_to))
        return Update(
            run=now.run,
            round=now.round,
            device=self.name,
            adapter=self._trainable.adapter(),
            steps=self._steps,
            samples=self._samples,
            weight=self._weight,
            loss=self._loss_sum / self._weight if self._steps else 0.0,
            busy_seconds=self.machine.busy_seconds - self._busy_before,
            change=self._change,
            structure=self._pruning.state().tensors if self._pruning else {},
            ranks_left=now.plan.prune_to if self._shrank else now.plan.ranks if now.plan.prune_to else (),
        )

    def state(self) -> State:
        """What outlives a round: the place in its data, the samples that the server keeps, moments, structure."""
        return joined(
            {
                "data": self._batches.state(),
                "sent": State({"rows": sorted(self._sent)}),
                "moments": State(tensors=self._trainable.moments()),
                "pruning": self._pruning.state() if self._pruning else State(),
            }
        )

    def load(self, state: State) -> None:
        """Goes on from a `state`."""
        branches = state.branches()
        self._batches.load(branches["data"])
        self._sent = set(branches["sent"].facts["rows"])
        pruning = branches["pruning"]
        self._pruning = Pruning(self._base) if pruning.tensors else None
        if self._pruning:
            self._pruning.load(pruning)
        self._trainable.load_moments(branches["moments"].tensors)

    @property
    def _now(self) -> Assignment:
        assert self._assignment is not None, "a round begins with an assignment"
        return self._assignment

    @property
    def _drops(self) -> bool:
        model = self._base.settings
        return model.base_dropout or model.lora.dropout > 0


def _lora_distance(after: Adapter, before: Adapter) -> float:
    """The Frobenius norm of what changed in the LoRA factors."""
    squares = [(value - before[name]).double().square().sum() for name, value in after.items() if ".lora_" in name]
    return math.sqrt(sum(map(float, squares)))
