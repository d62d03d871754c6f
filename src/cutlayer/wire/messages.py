"""Everything that a device and the server say to each other.

Every message names its run and its round, and its local step where there is one, so that whoever receives it
recognises a repeat or a late one. Rounds and steps count from 0. Fields that the wire can carry: text, whole
numbers that are not negative, numbers, tuples of those, a `DevicePlan`, tensors and adapters (`frames.py`).

Shapes: B batch, T tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from cutlayer.types import Adapter, DevicePlan

PROTOCOL_VERSION = 1
"""Raised by one whenever a frame of the old code would be misread by the new."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """Server to device, opening a round: what to do, and the adapter to start from.

    Attributes:
      run: the run's identifier.
      round: the round that it opens.
      device: whom it is for.
      plan: the device's part of the round's plan.
      learning_rates: the rate of each local step; as many as `plan.local_steps`.
      adapter: the tensors of the blocks that the device holds, by global name.
      folds: what is to be added to their frozen weights first, all that the device has not had (`model/folds.py`);
        empty where frozen weights stay frozen.
    """

    run: str
    round: int
    device: str
    plan: DevicePlan
    learning_rates: tuple[float, ...]
    adapter: Adapter
    folds: Adapter = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Activations:
    """Device to server, once per local step: the batch as it leaves the device-side model.

    Attributes:
      run: the run's identifier.
      round: the round that it belongs to.
      step: the device's local step.
      device: who sends it.
      h_BTD: hidden states at the cut, detached.
      mask_BT: True where there is a token, False where there is padding.
      labels: int32; (B,) class ids, or (B, T) token ids with -100 where the loss is masked.
      weight: the loss normaliser of the batch: samples, or unmasked target tokens (`types.Batch.weight`).
      rows_B: int32; which rows of the device's data these are, where the server is to keep their activations.
    """

    run: str
    round: int
    step: int
    device: str
    h_BTD: Tensor
    mask_BT: Tensor
    labels: Tensor
    weight: int
    rows_B: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Recall:
    """Device to server, in place of `Activations` that it has sent before: a batch by the names of its samples.

    Attributes:
      run: the run's identifier.
      round: the round that it belongs to.
      step: the device's local step.
      device: who sends it.
      rows_B: int32; the samples, as rows of the device's data.
      num_tokens: positions of the batch, padding included.
    """

    run: str
    round: int
    step: int
    device: str
    rows_B: Tensor
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Gradients:
    """Server to device, the answer to `Activations`.

    Attributes:
      run: the run's identifier.
      round: the round that it belongs to.
      step: the local step that it answers.
      device: whom it is for.
      grad_BTD: gradient of the loss by the device's `h_BTD`; None where nothing on the device trains.
      loss: mean loss of the batch; not finite when training diverged.
    """

    run: str
    round: int
    step: int
    device: str
    grad_BTD: Tensor | None
    loss: float


@dataclass(frozen=True, slots=True)
class Update:
    """Device to server, closing the device's part of a round.

    Attributes:
      run: the run's identifier.
      round: the round that it closes.
      device: who sends it.
      adapter: the tensors that the device trained, by global name.
      steps: local steps that it took alone, without the server; 0 where the server computed every loss.
      samples: training samples that it saw in this round.
      weight: sum of its batches' weights.
      loss: mean loss of those steps, weighted by the batches' weights; not finite when training diverged.
      busy_seconds: time that the device computed in this round; virtual in simulation.
      change: where the device scores its units, the Frobenius norm of what the round changed in its LoRA factors.
      structure: where the device prunes, what is left of its model and the importance of its units
        (`model/structure.py`); its adapter then has what is left of each factor.
      ranks_left: where the device may prune its own ranks, the rank of its adapter on each block.
    """

    run: str
    round: int
    device: str
    adapter: Adapter
    steps: int
    samples: int
    weight: int
    loss: float
    busy_seconds: float
    change: float = 0.0
    structure: Adapter = field(default_factory=dict)
    ranks_left: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Finish:
    """Server to device: there is nothing more to do.

    Attributes:
      run: the run's identifier.
      round: the round that will not be opened.
      reason: why, for a person to read.
    """

    run: str
    round: int
    reason: str


Message = Assignment | Activations | Recall | Gradients | Update | Finish

Role = Literal["activations", "gradients", "broadcast", "update"]

ROLES: Mapping[type[Any], Mapping[str, Role]] = {
    Assignment: {"adapter": "broadcast"},
    Activations: {"h_BTD": "activations"},
    Gradients: {"grad_BTD": "gradients"},
    Update: {"adapter": "update"},
}
"""What may travel packed: per kind of message the fields, and what they are. Between two ends that agreed on a codec
they hold the packed tensors (`policies/compress.py`); nobody but those two ends sees such a message. What both ends
must hold alike, such as folds, is never packed."""
