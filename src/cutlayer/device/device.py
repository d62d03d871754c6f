"""A device: its data, its part of the model, its adapter, and what it can do with them. A talk says in which order.

    draw                 the batch of a local step
    bottom, back         the blocks below the cut, forward and backward
    tail                 the blocks above the server's, forward, loss and backward, where the device has the labels
    train                a local step of a device that holds the whole model
    update               what it has trained
    dropping, move       what a talk makes a step of its own of

Shapes: B batch, T tokens, D hidden size.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from cutlayer.device.shape import Shape
from cutlayer.device.spans import Spans
from cutlayer.fleet.allotment import frequency_of
from cutlayer.fleet.machine import Machine, Work
from cutlayer.model.base import Base
from cutlayer.model.dropout import seeded_dropout, still
from cutlayer.model.optimizers import Rule
from cutlayer.model.part import DevicePart, WholePart, model_inputs
from cutlayer.model.trainable import Trainable, TrainSettings
from cutlayer.model.versions import Versions
from cutlayer.policies.delay import delay_of
from cutlayer.policies.moments import FreshMoments
from cutlayer.policies.trains import Trains, rule_of
from cutlayer.state import Keeper, State, joined
from cutlayer.types import Adapter, Batch, Cost, Costs, DevicePlan
from cutlayer.wire.link import Link
from cutlayer.wire.messages import Activations, Assignment, Judge, Update

T = TypeVar("T")


class BatchStream(Keeper, Protocol):
    """An endless, resumable stream of batches (`data/batches.py`)."""

    def next(self, batch_size: int | None = None) -> Batch:
        """The next batch."""


class HoldsOut(Protocol):
    """Rows that are never trained on (`data/held_out.py`)."""

    def batches(self, batch_size: int) -> Iterable[Batch]:
        """All of them once."""


class _Nothing:
    def batches(self, batch_size: int) -> Iterable[Batch]:  # noqa: ARG002
        return ()


class Device:
    """One device.

    Args:
      name: its name in the fleet.
      base: the frozen model that its parts are cut from; devices that one process plays share it.
      batches: its private data.
      machine: what it computes on.
      costs: what its steps cost, for a modelled machine.
      settings: how it trains.
      shape: of its rounds.
      spans: see below.
      held_out: see below; None for no rows.

    Attributes:
      costs: what its steps cost.
      trainable: its adapter, with the optimizer.
      broadcast: the adapter that it started the round from.
      spans: its way to machines that run blocks for it; None where it knows none.
      held_out: the rows that it judges an adapter by.
      before_judging: puts the base where the device's last commit point left it, and notes the folds that come with
        what is judged; None where there are none.
      before_round: goes back to a commit point before a round begins (`commit.py`); None where there are none.
    """

    def __init__(
        self,
        name: str,
        base: Base,
        batches: BatchStream,
        machine: Machine,
        costs: Costs,
        settings: TrainSettings,
        shape: Shape,
        spans: Spans | None = None,
        held_out: HoldsOut | None = None,
    ) -> None:
        self.spans = spans
        self.held_out: HoldsOut = held_out or _Nothing()
        self.before_judging: Callable[[Judge], None] | None = None
        self.name, self.base, self.machine, self.settings = name, base, machine, settings
        self.before_round: Callable[[Assignment], Assignment] | None = None
        self.trainable = Trainable({}, settings.optimizer)
        self.broadcast: Adapter = {}
        self._batches, self.costs = batches, costs
        self._assignment: Assignment | None = None
        self._steps = self._samples = self._weight = 0
        self._loss_sum = 0.0  # of the steps that it took alone
        self._busy_before = 0.0
        self._drawn_from: deque[State] = deque()  # where in its data each batch began that does not count yet
        self._versions = Versions(self.trainable)
        self._rule: Rule | None = None  # where the plan says something else than AdamW
        self._talk = shape.talk(self)

    async def converse(self, link: Link) -> None:
        """Takes part in rounds until the server says that the run is over."""
        await self._talk.converse(link)

    @property
    def now(self) -> Assignment:
        """The assignment that the device was given when the round opened."""
        assert self._assignment is not None, "a round begins with an assignment"
        return self._assignment

    # ------------------------------------------------------------------ a round

    def begin(self, assignment: Assignment, change: Callable[[Adapter], Adapter] = lambda adapter: adapter) -> None:
        """Takes the round's adapter and cut.

        Args:
          assignment: What the server says.
          change: What the talk makes of the adapter before it is loaded.
        """
        if self.before_round is not None:
            assignment = self.before_round(assignment)
        self._assignment = assignment
        self.base.fold(assignment.folds)
        self.broadcast = change(assignment.adapter)
        self.trainable.load(self.broadcast)
        if assignment.plan.clause(FreshMoments) or not self.settings.keep_moments:
            self.trainable.load_moments({})
        self._rule = rule_of(assignment.plan, self.settings.optimizer) if assignment.plan.clause(Trains) else None
        self._versions = Versions(self.trainable, delay_of(assignment.plan))
        self.machine.set_pace(frequency_of(assignment.plan))
        self._drawn_from.clear()
        self._steps = self._samples = self._weight = 0
        self._loss_sum = 0.0
        self._busy_before = self.machine.busy_seconds

    def draw(self) -> Batch:
        """Draws the batch of a local step."""
        self._drawn_from.append(self._batches.state())
        return self._batches.next(self.now.plan.batch_size)

    def take_back(self) -> None:
        """Puts the batches of steps that are not done to their end back: they will be drawn again."""
        if self._drawn_from:
            self._batches.load(self._drawn_from[0])
        self._drawn_from.clear()

    def count(self, batch: Batch, loss: float | None = None) -> None:
        """Counts a batch as trained on, the first of those that were drawn and do not count yet.

        Args:
          batch: The batch.
          loss: Where the device took the step alone, the mean loss.
        """
        if self._drawn_from:
            self._drawn_from.popleft()
        self._samples += batch.num_samples
        self._weight += batch.weight
        if loss is not None:
            self._steps += 1
            self._loss_sum += loss * batch.weight

    def update(self, facts: Adapter | None = None, *, adapter: Adapter | None = None) -> Update:
        """The update with what the device trained in this round.

        Args:
          facts: What else the talk has to say.
          adapter: What of the adapter is sent; None for all of it.
        """
        return Update(
            run=self.now.run,
            round=self.now.round,
            device=self.name,
            adapter=self.trainable.adapter() if adapter is None else adapter,
            steps=self._steps,
            samples=self._samples,
            weight=self._weight,
            loss=self._loss_sum / self._weight if self._steps else 0.0,
            busy_seconds=self.machine.busy_seconds - self._busy_before,
            facts=facts or {},
        )

    def cost(self, batch: Batch, plan: DevicePlan | None = None) -> Cost:
        """The cost of a local step on a batch, under the round's plan or another."""
        return self.costs.device(plan or self.now.plan, batch.num_samples, batch.num_tokens)

    # ------------------------------------------------------------------ below a cut

    async def bottom(
        self,
        batch: Batch,
        step: int,
        micro_batch: int = 0,
        *,
        part: Callable[[], DevicePart] | None = None,
        within: Callable[[DevicePart], AbstractContextManager[object]] = nullcontext,
        graph: bool = True,
        share: float = 1.0,
    ) -> Tensor:
        """Runs a batch, or a part of one, up to the cut: (B, T, D).

        Args:
          batch: The batch, or the part.
          step: The local step.
          micro_batch: Which part.
          part: What the device holds below the cut; None for all of it.
          within: In what the part is run.
          graph: Whether its graph is kept where something here trains; without one nothing drops out either.
          share: Of the step's forward passes, by their FLOPs.
        """
        now = self.now

        def work() -> Tensor:
            held = self.base.device_part(now.plan.cut, now.plan.blocks) if part is None else part()
            held.use(self._versions.of(step))
            if not graph:
                with torch.no_grad(), still(held.model):
                    return held.forward(model_inputs(batch, self.base.device))
            with self.dropping(step, micro_batch), within(held):
                return held.forward(model_inputs(batch, self.base.device))

        shape_BTD = (batch.num_samples, batch.num_tokens, self.costs.hidden_size)
        cost = self.cost(batch, now.plan.below)
        return await self.machine.run(
            work,
            like=lambda: torch.empty(shape_BTD, dtype=self.base.dtype, device=self.base.device),
            what="forward",
            flops=share * cost.forward_flops,
            round=now.round,
            step=step,
        )

    def activations(self, batch: Batch, h_BTD: Tensor, step: int, rows_B: Tensor | None = None) -> Activations:
        """A batch at the cut, as it is sent: detached from its graph, without labels where the device has the head.

        Args:
          batch: The batch.
          h_BTD: What `bottom` made of it.
          step: The local step.
          rows_B: Which rows of the device's data these are, where the server is to keep them.
        """
        return Activations(
            run=self.now.run,
            round=self.now.round,
            step=step,
            device=self.name,
            h_BTD=h_BTD.detach(),
            mask_BT=batch.attention_mask_BT.bool(),
            labels=None if self.now.plan.head else batch.labels.int(),
            weight=batch.weight,
            rows_B=rows_B,
        )

    async def back(
        self,
        batch: Batch,
        h_BTD: Tensor,
        grad_BTD: Tensor | None,
        step: int,
        *,
        moves: bool,
        rule: Rule | None = None,
        before_step: Callable[[], None] | None = None,
        more_flops: float = 0.0,
    ) -> None:
        """Follows a graph back from the cut and frees it.

        Args:
          batch: What was run.
          h_BTD: What `bottom` made of it.
          grad_BTD: The gradient of the step's loss by it; None where nothing below the cut trains.
          step: The local step.
          moves: Whether the adapter is stepped then.
          rule: By which; None for the plan's.
          before_step: Called when the gradients of the whole step are there.
          more_flops: What else is computed on the way.
        """
        if grad_BTD is None and not self.now.plan.head:
            return

        def work() -> None:
            if grad_BTD is not None:
                h_BTD.backward(grad_BTD)
            if not moves:
                return
            if before_step is not None:
                before_step()
            self._versions.step(step, self.now.rate(step), rule or self._rule)

        cost = self.cost(batch, self.now.plan.below)
        await self.machine.run(
            work,
            like=lambda: None,
            what="backward",
            flops=0.0 if grad_BTD is None else cost.backward_flops + more_flops,
            round=self.now.round,
            step=step,
        )

    async def tail(self, batch: Batch, h_BTD: Tensor, step: int) -> tuple[float, Tensor]:
        """Runs what came down through the tail to the loss, and follows the graph back; nothing is stepped yet.

        Args:
          batch: Whose labels are needed.
          h_BTD: Hidden states where the tail begins.
          step: The local step.

        Returns:
          The mean loss of the batch, and its gradient by `h_BTD`.
        """
        now = self.now
        top = now.plan.top
        assert top is not None, "who has the labels has a tail"
        loss: Tensor | None = None
        leaf_BTD = h_BTD.detach().to(self.base.device).requires_grad_()

        def forward() -> Tensor:
            nonlocal loss
            part = self.base.tail_part(top, now.plan.blocks)
            part.use(self._versions.of(step))
            mask_BT, labels = batch.attention_mask_BT.bool(), batch.labels.long()
            with self.dropping(step, part="tail"):
                loss = part.loss(leaf_BTD, mask_BT.to(self.base.device), labels.to(self.base.device))
            return loss.detach()

        def backward() -> Tensor | None:
            nonlocal loss
            assert loss is not None
            loss.backward()
            loss = None  # while the time of this passes, other devices of this process need the memory of its graph
            return leaf_BTD.grad

        both, below = self.cost(batch), self.cost(batch, now.plan.below)
        works = (
            Work(forward, lambda: torch.zeros(()), "forward", both.forward_flops - below.forward_flops),
            Work(backward, lambda: torch.empty_like(h_BTD), "backward", both.backward_flops - below.backward_flops),
        )
        value, grad_BTD = await self.machine.run_in_turn(works, round=now.round, step=step)
        return float(value), grad_BTD

    async def forwards(
        self, work: Callable[[], T], batch: Batch, step: int, *, like: Callable[[], T], share: float = 1.0
    ) -> T:
        """Does work that is made of forward passes over a batch.

        Args:
          work: The work.
          batch: The batch.
          step: The local step.
          like: What the work would return of nothing.
          share: Of the step's forward passes, by their FLOPs.
        """
        cost = self.cost(batch)
        return await self.machine.run(
            work, like=like, what="forward", flops=share * cost.forward_flops, round=self.now.round, step=step
        )

    # ------------------------------------------------------------------ the whole model

    async def train(
        self,
        step: int,
        *,
        part: Callable[[], WholePart] | None = None,
        before_step: Callable[[], None] | None = None,
        after_step: Callable[[], None] | None = None,
    ) -> None:
        """One local step of a device that holds the whole model: forward, loss, backward, adapter step.

        Args:
          step: The local step.
          part: What the device holds of the model; None for all of it.
          before_step: Called when the gradients are there, and may add to them.
          after_step: Called when the adapter has moved.
        """
        now, batch = self.now, self.draw()
        cost = self.cost(batch)
        loss: Tensor | None = None

        def forward() -> Tensor:
            nonlocal loss
            whole = self.base.whole(now.plan.blocks) if part is None else part()
            whole.use(self.trainable.parameters)
            with self.dropping(step):
                loss = whole.loss(batch)
            return loss.detach()

        def backward() -> None:
            nonlocal loss
            assert loss is not None
            loss.backward()
            loss = None  # while the time of this passes, other devices of this process need the memory of its graph
            if before_step is not None:
                before_step()
            self.trainable.step(now.rate(step), self._rule)
            if after_step is not None:
                after_step()

        works = (
            Work(forward, lambda: torch.zeros(()), "forward", cost.forward_flops),
            Work(backward, lambda: None, "backward", cost.backward_flops),
        )
        value, _ = await self.machine.run_in_turn(works, round=now.round, step=step)
        self.count(batch, float(value))

    # ------------------------------------------------------------------ what a talk makes a step of its own of

    def dropping(self, step: int, micro_batch: int = 0, *, part: str = "device") -> AbstractContextManager[None]:
        """A block of code within which this part's dropout is drawn for this local step, whoever computed before."""
        at = (step, micro_batch) if micro_batch else (step,)
        return seeded_dropout(self.base.settings.drops, self.settings.seed, part, self.name, self.now.round, *at)

    def move(self, step: int) -> None:
        """Moves the adapter by the gradients that are there; a tensor without one stays."""
        self.trainable.step(self.now.rate(step), self._rule)

    # ------------------------------------------------------------------ what outlives a round

    def state(self) -> State:
        """The place in its data, AdamW's moments, and what the talk keeps."""
        return joined(
            {
                "data": self._batches.state(),
                "moments": State(tensors=self.trainable.moments()),
                "talk": self._talk.state(),
            }
        )

    def load(self, state: State) -> None:
        """Goes on from a `state`."""
        branches = state.branches()
        self._batches.load(branches["data"])
        self._talk.load(branches["talk"])
        self.trainable.load_moments(branches["moments"].tensors)
