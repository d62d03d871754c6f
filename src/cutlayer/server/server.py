"""The server's side of training: one base model, the adapters it trains, one step for one device's activations.

Shapes: B batch, T tokens, D hidden size.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cutlayer.errors import DivergedError
from cutlayer.fleet.machine import Machine
from cutlayer.model.adapter import split_adapter
from cutlayer.model.base import Base
from cutlayer.model.dropout import seeded_dropout
from cutlayer.model.folds import by_number, numbered, taken_back
from cutlayer.model.loss import MASKED
from cutlayer.model.trainable import Trainable, TrainSettings
from cutlayer.policies.aggregate import Contribution
from cutlayer.server.concat import concat
from cutlayer.server.forecast import Forecast
from cutlayer.server.stages import Stages
from cutlayer.types import Adapter, Costs, DevicePlan, RoundPlan
from cutlayer.wire.messages import Activations, Assignment, Gradients, Recall, Update

SHARED = "*"
"""The owner of a server adapter that all devices train: a name that no device can have."""

Owner = Callable[[str], str]
"""Device name -> who owns the server adapter that its activations train."""


def one_per_device(device: str) -> str:
    """Each device has a server adapter of its own."""
    return device


def one_for_all(_device: str) -> str:
    """One server adapter, stepped by every device's activations."""
    return SHARED


@dataclass(slots=True)
class Tally:
    """What the server saw of one device in a round."""

    steps: int = 0
    samples: int = 0
    weight: int = 0
    loss_sum: float = 0.0  # sum of batch losses times their weights
    begun_weight: int = 0  # of the step under way: its parts count when all of them have been trained on
    begun_loss_sum: float = 0.0
    saved_flops: float = 0.0  # of a device that need not compute what the server keeps
    saved_bytes: int = 0  # of activations that it need not send
    change: float = 0.0  # norm of what its LoRA factors changed by
    ranks_left: tuple[int, ...] = ()  # of a device that may prune its own
    late: bool = False  # it left the round, or was asked to end it early
    dropped_messages: int = 0  # that came after their round was over

    @property
    def loss(self) -> float:
        return self.loss_sum / self.weight if self.weight else math.nan


@dataclass(frozen=True, slots=True)
class Part:
    """A device's part of the round under way, so far.

    Attributes:
      plan: what it was given to do.
      steps: local steps that the server has seen.
      done: whether its update has come.
      gone: whether it has left the round.
    """

    plan: DevicePlan
    steps: int
    done: bool
    gone: bool


@dataclass(slots=True)
class OpenRound:
    """A round under way: its plan and what has come in."""

    plan: RoundPlan
    owner: Owner
    updates: dict[str, Update] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    moments: dict[str, Adapter] = field(default_factory=dict)
    """AdamW's moments of the server adapters as the round began, by owner: of devices that may leave."""

    def device(self, name: str) -> DevicePlan:
        return next(device for device in self.plan.devices if device.device == name)


class Server:
    """The server.

    Args:
      run: the run's identifier.
      base: the one frozen model.
      adapter: the full adapter to start from.
      machine: what it computes on.
      costs: what its steps cost.
      settings: how it trains.
      learning_rate: (round, step) -> the rate of a device's local step.
      forecast: predicts when devices' activations arrive.
      longest_tokens: the longest batch there can be, for the forecast of a device's first.
      scratch: a folder for what a run keeps on the disk while it lasts; None where nobody will resume it.
      may_leave: whether devices may leave a round: it then keeps what it needs to forget a device's part in one.
    """

    def __init__(
        self,
        run: str,
        base: Base,
        adapter: Adapter,
        machine: Machine,
        costs: Costs,
        settings: TrainSettings,
        learning_rate: Callable[[int, int], float],
        forecast: Forecast,
        longest_tokens: int,
        scratch: Path | None = None,
        *,
        may_leave: bool = True,
    ) -> None:
        self.run, self.base, self.machine = run, base, machine
        self.adapter, self.forecast, self.longest_tokens = adapter, forecast, longest_tokens
        self.scratch = scratch
        self.personal: dict[str, Adapter] = {}  # adapters that are never averaged, by device
        self._costs, self._settings, self._learning_rate = costs, settings, learning_rate
        self._trainables: dict[str, Trainable] = {}
        self._tallies: defaultdict[str, Tally] = defaultdict(Tally)
        self._left: set[str] = set()  # since tallies were taken
        self._may_leave = may_leave
        self._round: OpenRound | None = None
        self.folds: Adapter = {}
        self.folds_held: dict[str, int] = {}
        self.counted: dict[str, int] = {}  # by device, its last round that did
        base.unfold()  # an earlier run of this process may have folded
        self._device_trains = cache(lambda cut, blocks: bool(base.device_names(cut, blocks)))

    def begin(self, plan: RoundPlan, owner: Owner) -> None:
        """Opens a round: every owner's server adapter starts from the full adapter."""
        self._round = OpenRound(plan, owner)
        fresh = {owner(device.device) for device in plan.devices if device.fresh_moments}
        shares: dict[str, Adapter] = {}
        for device in plan.devices:
            names = self.base.server_names(device.cut, device.blocks, head=device.head)
            shares.setdefault(owner(device.device), {}).update(self._share(names, device.ranks))
        for name, share in shares.items():
            if not share and name not in self._trainables:
                continue  # a device that holds everything has no adapter here
            trainable = self._trainable(name)
            trainable.load({key: share[key] for key in self.adapter if key in share})
            if name in fresh or not self._settings.keep_moments:
                trainable.load_moments({})
            if self._may_leave:
                self._round.moments[name] = {key: value.clone() for key, value in trainable.moments().items()}

    def assignment(self, device: DevicePlan) -> Assignment:
        """What a device is told when the round opens."""
        plan = self.open.plan
        return Assignment(
            run=self.run,
            round=plan.round,
            device=device.device,
            plan=device,
            learning_rates=tuple(self._learning_rate(plan.round, step) for step in range(device.local_steps)),
            adapter=self._share(
                self.base.device_names(device.cut, device.blocks, head=device.head),
                device.ranks,
                self.personal.get(device.device),
            ),
            folds=self._folds_missed(device),
            counted=self.counted.get(device.device),
        )

    def _folds_missed(self, device: DevicePlan) -> Adapter:
        """The folds since the last update of a device, of the blocks that it holds."""
        names, held = set(self.base.device_names(device.cut)), self.folds_held.get(device.device, 0)
        return {
            key: value
            for number, stack in by_number(self.folds)
            if number >= held
            for key, value in numbered(number, {name: stack[name] for name in stack if name in names}).items()
        }

    def _share(self, names: Sequence[str], ranks: Sequence[int], own: Adapter | None = None) -> Adapter:
        """What a device's plan takes of the full adapter, or of its own: these tensors, at its ranks."""
        return self.base.at_ranks(split_adapter(self.adapter if own is None else own, names), ranks)

    async def step(self, arrived: Activations) -> Gradients:
        """Trains on one device's activations and answers it.

        Raises:
          DivergedError: The loss is not finite.
        """
        return self.answer(arrived, *await self.train(arrived, self.open.device(arrived.device)))

    async def train(self, arrived: Activations, device: DevicePlan) -> tuple[float, Tensor | None]:
        """Server-side forward, loss, backward and adapter step, for activations at the cut of `device`.

        Of a part of a batch the gradient adds up with those of the others; the adapter's step comes with the last.

        Args:
          arrived: What one device sent; or what several did, as if `SHARED` had sent it.
          device: The plan, of the one or of any of several.

        Returns:
          The loss, and its gradient by the activations; None where nothing below the cut trains.

        Raises:
          DivergedError: The loss is not finite.
        """
        num_samples, num_tokens = arrived.h_BTD.shape[:2]
        cost = self._costs.server(device, num_samples, num_tokens)
        return await self.machine.run(
            lambda: self._compute(arrived, device),
            what="step",
            flops=cost.forward_flops + cost.backward_flops,
            round=arrived.round,
            step=arrived.step,
            peer=None if arrived.device == SHARED else arrived.device,
        )

    def answer(self, arrived: Activations, loss: float, grad_BTD: Tensor | None) -> Gradients:
        """The answer to activations that were trained on; the device's tally has them from now on."""
        tally = self._tallies[arrived.device]
        tally.begun_loss_sum += loss * arrived.weight
        tally.begun_weight += arrived.weight
        if arrived.ends_step:
            tally.steps += 1
            tally.loss_sum += tally.begun_loss_sum
            tally.weight += tally.begun_weight
            tally.begun_loss_sum, tally.begun_weight = 0.0, 0
        return Gradients(self.run, arrived.round, arrived.step, arrived.device, grad_BTD, loss, arrived.micro_batch)

    def _compute(self, arrived: Activations, device: DevicePlan) -> tuple[float, Tensor | None]:
        part = self.base.server_part(device.cut, device.blocks)
        trainable = self._trainable(self.open.owner(arrived.device))
        part.use(trainable.parameters)
        h_BTD = arrived.h_BTD.detach().requires_grad_(self._device_trains(device.cut, device.blocks))
        drops = self.base.settings.base_dropout or self.base.settings.lora.dropout > 0
        at = (arrived.step, arrived.micro_batch) if arrived.micro_batch else (arrived.step,)
        with seeded_dropout(drops, self._settings.seed, "server", arrived.device, arrived.round, *at):
            loss = part.loss(h_BTD, arrived.mask_BT.to(h_BTD.device), arrived.labels.long().to(h_BTD.device))
        value = float(loss.detach())
        self._check_finite(value, arrived.device, arrived.step)
        loss.backward(torch.full_like(loss, arrived.share))
        if arrived.ends_step:
            trainable.step(self._learning_rate(arrived.round, arrived.step))
        return value, h_BTD.grad

    def arrive(self, message: Activations | Recall) -> None:
        """Counts a local step of a device that waits for no answer; and what it saves where it only names a batch."""
        tally = self._tallies[message.device]
        tally.steps += 1
        if isinstance(message, Recall):
            shape = (len(message.rows_B), message.num_tokens)
            tally.saved_flops += self._costs.device(self.open.device(message.device), *shape).forward_flops
            tally.saved_bytes += self._costs.activation_bytes(*shape)

    async def lift(self, arrived: Activations, cut: int) -> Activations:
        """The activations at a deeper cut: runs the frozen blocks between the device's cut and this one."""
        device = self.open.device(arrived.device)
        if device.cut == cut:
            return arrived

        def work() -> Tensor:
            part = self.base.middle_part(device.cut, cut, frozenset())
            drops = self.base.settings.base_dropout
            with torch.no_grad(), seeded_dropout(drops, self._settings.seed, "lift", arrived.device, *at):
                return part.forward(arrived.h_BTD, arrived.mask_BT.to(arrived.h_BTD.device))

        at, shape = (arrived.round, arrived.step), arrived.h_BTD.shape[:2]
        below, above = (self._costs.server(replace(device, cut=c), *shape).forward_flops for c in (device.cut, cut))
        h_BTD = await self.machine.run(
            work, what="forward", flops=below - above, round=arrived.round, step=arrived.step, peer=arrived.device
        )
        return replace(arrived, h_BTD=h_BTD)

    async def train_mixed(self, samples: Sequence[Activations], stages: Stages, *, step: int, local_step: int) -> None:
        """One step of the adapter that all devices share, on samples of several of them, each a batch of one.

        Args:
          samples: Activations at the cut of `stages`.
          stages: The server side.
          step: The server's step in this round.
          local_step: The place in the schedule of learning rates that it has.

        Raises:
          DivergedError: The loss is not finite.
        """
        plan = replace(self.open.plan.devices[0], cut=stages.cut)
        cost = self._costs.server(plan, len(samples), max(sample.h_BTD.shape[1] for sample in samples))
        trainable, device = self._trainable(SHARED), self.base.device

        def work() -> tuple[float, None]:
            h_BTD = concat([sample.h_BTD.to(device) for sample in samples])
            mask_BT = concat([sample.mask_BT for sample in samples]).to(device)
            labels = concat([sample.labels for sample in samples], MASKED).long().to(device)
            stages.use(trainable.parameters)
            drops = self.base.settings.base_dropout or self.base.settings.lora.dropout > 0
            with seeded_dropout(drops, self._settings.seed, "server", SHARED, self.open.plan.round, step):
                loss = stages.backward(h_BTD, mask_BT, labels)
            self._check_finite(loss, ", ".join(sorted({sample.device for sample in samples})), step)
            trainable.step(self._learning_rate(self.open.plan.round, local_step))
            return loss, None

        loss, _ = await self.machine.run(
            work,
            what="step",
            flops=cost.forward_flops + cost.backward_flops,
            round=self.open.plan.round,
            step=step,
        )
        for sample in samples:
            tally = self._tallies[sample.device]
            tally.weight += sample.weight
            tally.loss_sum += loss * sample.weight

    def _check_finite(self, loss: float, device: str, step: int) -> None:
        round = self.open.plan.round
        if not math.isfinite(loss):
            who = "all devices" if device == SHARED else f"device {device}"
            raise DivergedError(
                f"{who}, round {round}, step {step}: expected a finite loss, got {loss}. "
                "Lower the learning rate (--lr), or set train.clip.",
                device=device,
                round=round,
                step=step,
            )

    def accept(self, update: Update, *, late: bool = False) -> None:
        """A device has sent what it trained; an update of no sample is none.

        Args:
          update: What it sent.
          late: Whether it had to be asked to.

        Raises:
          DivergedError: The loss of a device that trained alone is not finite.
        """
        if not math.isfinite(update.loss):
            raise DivergedError(
                f"device {update.device}, round {update.round}: expected a finite loss, got {update.loss}. "
                "Lower the learning rate (--lr), or set train.clip.",
                device=update.device,
                round=update.round,
                step=update.steps,
            )
        if not update.samples:
            self.leave(update.device)
            return
        self.open.updates[update.device] = update
        self.folds_held[update.device] = self._num_folds
        self.counted[update.device] = update.round
        tally = self._tallies[update.device]
        tally.samples += update.samples
        tally.change, tally.ranks_left = update.change, update.ranks_left
        tally.late = late
        if update.steps:  # the server saw none of these losses
            tally.steps += update.steps
            tally.weight += update.weight
            tally.loss_sum += update.loss * update.weight

    def leave(self, device: str) -> None:
        """A device takes no further part in this round, and nothing that it did in it counts.

        It contributes no adapter and no sample. A server adapter that it alone trained is forgotten with AdamW's
        moments of it. One that others train too cannot be taken apart: it keeps what it learnt from that device.
        """
        assert self._may_leave, "a server whose devices stay keeps nothing to forget them by"
        self.open.gone.add(device)
        self._left.add(device)

    def take_tallies(self) -> dict[str, Tally]:
        """What was seen of each device since the last call; of those who left, nothing counts."""
        nothing = {
            device: Tally(late=True, dropped_messages=self._tallies[device].dropped_messages) for device in self._left
        }
        tallies = {**self._tallies, **nothing}
        self._tallies, self._left = defaultdict(Tally), set()
        return tallies

    def put_tallies(self, tallies: Mapping[str, Tally]) -> None:
        """Takes over what another server saw of its part of the round."""
        self._tallies.update(tallies)

    def drop(self, device: str) -> None:
        """Counts a message that came after its round was over, and was dropped."""
        self._tallies[device].dropped_messages += 1

    def contributions(self) -> list[Contribution]:
        """The adapters of a round, each tensor with the weight of what was trained into it.

        Where a device has a server adapter of its own, the two joined are its full adapter. A server adapter that
        several devices trained is a contribution of its own, which counts at each block with the weight of those
        whose activations passed through it there.

        Of those who left there is none; where everybody did, there is none at all.

        The server's own tensors are not copied: aggregate before the next round is opened.
        """
        self._forget()
        result = []
        served: dict[str, list[tuple[DevicePlan, float]]] = {}
        stayed = [device for device in self.open.plan.devices if device.device not in self.open.gone]
        for device in sorted(stayed, key=lambda plan: plan.device):
            update, owner = self.open.updates[device.device], self.open.owner(device.device)
            adapter, weight = update.adapter, float(update.weight)
            if owner == device.device:
                own = self._trainables.get(owner)
                adapter = {**adapter, **(own.values() if own else {})}
            else:
                served.setdefault(owner, []).append((device, weight))
            result.append(Contribution(adapter, dict.fromkeys(adapter, weight), **self._structure(update)))
        for owner, devices in sorted(served.items()):
            adapter = self._trainables[owner].values()
            weights = {key: sum(w for device, w in devices if self._on_server(key, device.cut)) for key in adapter}
            result.append(Contribution(adapter, weights))
        return result

    def _forget(self) -> None:
        """Puts the moments of server adapters that nobody who stayed has trained back to where the round began."""
        devices = [device.device for device in self.open.plan.devices]
        stayed = {self.open.owner(device) for device in devices if device not in self.open.gone}
        for owner in {self.open.owner(device) for device in self.open.gone} - stayed:
            if owner in self._trainables:
                self._trainable(owner).load_moments(self.open.moments.get(owner, {}))

    def _structure(self, update: Update) -> dict[str, Any]:
        """Where the tensors of a pruned device lie in the full ones, and what it says of its units."""
        if not update.structure:
            return {}
        structure = self.base.structure
        kept, importance = structure.from_tensors(update.structure, update.device)
        places = {name: structure.where(name, kept) for name in update.adapter}
        return {
            "where": {name: place for name, place in places.items() if place is not None},
            "kept": kept,
            "importance": importance,
        }

    def _on_server(self, name: str, cut: int) -> bool:
        block = self.base.block_of(name)
        return block is None or block >= cut

    def fold(self, stack: Adapter) -> None:
        """Adds the product of a stack to the base: here now, on each device with its next assignment."""
        new = numbered(self._num_folds, stack)
        self.folds |= new
        self.base.fold(new)

    def load_folds(self, folds: Adapter, held: Mapping[str, int]) -> None:
        """Folds anew what was folded before a stop; `held` is how many of them each device has."""
        self.folds, self.folds_held = dict(folds), dict(held)
        self.base.fold(folds)

    def exported(self) -> Adapter:
        """The full adapter as it is on the base as stored, which folds have not changed."""
        return taken_back(self.adapter, self.folds)

    @property
    def fold_bytes(self) -> int:
        """What all folds so far take, kept for devices that have yet to have them and for the export."""
        return sum(value.nbytes for value in self.folds.values())

    @property
    def _num_folds(self) -> int:
        return len(by_number(self.folds))

    def moments(self) -> dict[str, Adapter]:
        """AdamW's moments of every server adapter, by owner."""
        return {name: trainable.moments() for name, trainable in self._trainables.items()}

    def load_moments(self, moments: Mapping[str, Adapter]) -> None:
        """Goes on from `moments`."""
        for name, tensors in moments.items():
            self._trainable(name).load_moments(tensors)

    def part(self, device: str) -> Part | None:
        """A device's part of the round under way, or of the last one; None where it has none. Changes nothing."""
        opened = self._round
        plan = next((plan for plan in opened.plan.devices if plan.device == device), None) if opened else None
        if opened is None or plan is None:
            return None
        steps = self._tallies[device].steps if device in self._tallies else 0
        return Part(plan, steps, device in opened.updates, device in opened.gone)

    @property
    def open(self) -> OpenRound:
        """The round under way."""
        assert self._round is not None, "a round is opened by begin()"
        return self._round

    def _trainable(self, owner: str) -> Trainable:
        if owner not in self._trainables:
            self._trainables[owner] = Trainable({}, self._settings.optimizer)
        return self._trainables[owner]
