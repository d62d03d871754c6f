"""Parts of a model as they run: what a device holds, what the server holds, and the whole.

Shapes: B batch, T tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cutlayer.model.adapter import Slot, put
from cutlayer.model.cut import Feed
from cutlayer.model.loss import Learned, replica_losses
from cutlayer.types import Batch


class Part:
    """A part of the model with slots for the trainable tensors that it holds.

    Attributes:
      names: global names of those tensors, in slot order.
    """

    def __init__(self, model: nn.Module, slots: list[Slot]) -> None:
        self.model = model
        self.slots = slots
        self.names = [slot.name for slot in slots]

    def use(self, adapter: Mapping[str, Tensor]) -> None:
        """Puts an adapter in: the next forward pass uses it, earlier graphs keep theirs."""
        put(adapter, self.slots)


class DevicePart(Part):
    """Embeddings and blocks `[0, cut)`."""

    def __init__(self, model: nn.Module, backbone: nn.Module, slots: list[Slot]) -> None:
        super().__init__(model, slots)
        self._backbone = backbone

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """The activations at the cut, (B, T, D), with their graph where something on the device trains.

        Args:
          inputs: What `model_inputs` makes of a batch.
        """
        hidden: Tensor = self._backbone(**inputs).last_hidden_state
        return hidden


class ServerPart(Part):
    """Blocks `[cut, L)` and the head."""

    def __init__(self, model: nn.Module, feed: Feed, slots: list[Slot]) -> None:
        super().__init__(model, slots)
        self._feed = feed

    def loss(self, h_BTD: Tensor, mask_BT: Tensor | None, labels: Tensor | Learned) -> Tensor:
        """The mean loss over the batch: over samples, or over unmasked target tokens, at which alone there are logits.

        Args:
          h_BTD: Activations at the cut; a leaf that requires grad if their gradient is wanted.
          mask_BT: True where there is a token; None where nothing is padded.
          labels: (B,) classes, (B, T) tokens with -100 where masked, int64; or what these tokens say.
        """
        learned = _learned(labels)
        if isinstance(learned, Learned):
            with learned.alone(self.model):
                return learned.loss(self.logits(h_BTD, mask_BT))
        loss: Tensor = self._run(h_BTD, mask_BT, labels=learned).loss
        return loss

    def logits(self, h_BTD: Tensor, mask_BT: Tensor | None) -> Tensor:
        """The logits, (B, classes) or (B, T, vocabulary). See `loss`."""
        logits: Tensor = self._run(h_BTD, mask_BT).logits
        return logits

    def _run(self, h_BTD: Tensor, mask_BT: Tensor | None, **labels: Tensor) -> Any:
        self._feed.h_BTD = h_BTD
        try:
            return self.model(**fed_inputs(h_BTD, mask_BT), **labels)
        finally:
            self._feed.h_BTD = None

    def losses(self, h_BTD: Tensor, mask_BT: Tensor | None, labels: Tensor, replicas: int) -> Tensor:
        """The mean loss of each replica of a batch, (replicas,). See `loss`, and `model/replicas.py`.

        Args:
          h_BTD: Activations of all replicas, one after the other.
          mask_BT: That of one of them.
          labels: Those of one of them.
          replicas: How many times the batch is there.
        """
        mask = None if mask_BT is None else mask_BT.repeat(replicas, 1)
        return _replicated(self.model, lambda: self.logits(h_BTD, mask), labels, replicas)


class MiddlePart(Part):
    """Blocks `[first, end)` alone, between two cuts: what lifts activations, and one stage of a pipeline."""

    def __init__(self, model: nn.Module, backbone: nn.Module, feed: Feed, slots: list[Slot]) -> None:
        super().__init__(model, slots)
        self._backbone, self._feed = backbone, feed

    def forward(self, h_BTD: Tensor, mask_BT: Tensor | None) -> Tensor:
        """The activations at `end`, (B, T, D), from those at `first`. See `ServerPart.loss`."""
        self._feed.h_BTD = h_BTD
        try:
            hidden: Tensor = self._backbone(**fed_inputs(h_BTD, mask_BT)).last_hidden_state
            return hidden
        finally:
            self._feed.h_BTD = None


class WholePart(Part):
    """The whole model, for evaluation and as the thing that a split must equal."""

    def __init__(self, model: nn.Module, slots: list[Slot], device: torch.device) -> None:
        super().__init__(model, slots)
        self.device = device

    def loss(self, batch: Batch) -> Tensor:
        """The mean loss over the batch, with its graph: what a device that holds the whole model trains on."""
        return self.loss_of(model_inputs(batch, self.device), batch.labels.to(self.device))

    def loss_of(self, inputs: Mapping[str, Tensor], labels: Tensor | Learned) -> Tensor:
        """The mean loss over a batch. See `ServerPart.loss`.

        Args:
          inputs: What `model_inputs` makes of it.
          labels: What it should give.
        """
        learned = _learned(labels)
        if isinstance(learned, Learned):
            with learned.alone(self.model):
                return learned.loss(self.model(**inputs).logits)
        loss: Tensor = self.model(**inputs, labels=learned).loss
        return loss

    def losses(self, batch: Batch, replicas: int) -> Tensor:
        """The mean loss of each of so many replicas of the batch, (replicas,), in one pass. See `model/replicas.py`."""
        inputs = repeated(model_inputs(batch, self.device), replicas)
        labels = batch.labels.to(self.device)
        return _replicated(self.model, lambda: self.model(**inputs).logits, labels, replicas)

    def loss_and_logits(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Mean loss as transformers has it, and all logits: (B, classes) or (B, T, vocabulary)."""
        output = self.model(**model_inputs(batch, self.device), labels=batch.labels.to(self.device))
        return output.loss, output.logits


def _learned(labels: Tensor | Learned) -> Tensor | Learned:
    """Classes as they are, or what tokens say."""
    return Learned.of(labels) if isinstance(labels, Tensor) and labels.dim() == 2 else labels


def _replicated(model: nn.Module, logits: Callable[[], Tensor], labels: Tensor, replicas: int) -> Tensor:
    learned = _learned(labels)
    if not isinstance(learned, Learned):
        return replica_losses(logits(), learned, replicas)
    with learned.repeated(replicas, labels.numel()).alone(model):
        return replica_losses(logits(), learned, replicas)


def fed_inputs(h_BTD: Tensor, mask_BT: Tensor | None) -> dict[str, Tensor]:
    """The keyword arguments of a model whose embeddings are a feed: its ids say how many there are, and no more."""
    inputs = {"input_ids": torch.zeros(h_BTD.shape[:2], dtype=torch.int64, device=h_BTD.device)}
    return inputs if mask_BT is None else {**inputs, "attention_mask": mask_BT.long()}


def model_inputs(batch: Batch, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """The keyword arguments that a transformers model takes for a batch, on the device that computes."""
    inputs = {"input_ids": batch.input_ids_BT, "attention_mask": batch.attention_mask_BT}
    if batch.token_type_ids_BT is not None:
        inputs["token_type_ids"] = batch.token_type_ids_BT
    return {name: tensor.to(device) for name, tensor in inputs.items()}


def repeated(inputs: Mapping[str, Tensor], times: int) -> dict[str, Tensor]:
    """The inputs of a batch that is there so many times, one after the other."""
    return {name: tensor.repeat(times, 1) for name, tensor in inputs.items()}
