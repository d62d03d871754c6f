"""The engine: what the server computes on its one base model, as a graph that is made, followed back and stepped.

    graph = engine.loss(owner, span, batch)      forward, up to the mean loss
    graph.back(share)                            gradients of the owner's adapter, and of what came in
    engine.step(owner, rate)                     the adapter moves

Everything here is synchronous: a server step calls it inside a piece of work of the server's machine, which takes the
time and is recorded. A step that needs logits before it knows a loss asks for `logits` instead, and follows the graph
back by a gradient of its own.

Shapes: B batch, T tokens, D hidden size, K classes or tokens of the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from cutlayer.errors import DivergedError
from cutlayer.model.base import Base, Blocks
from cutlayer.model.dropout import seeded_dropout
from cutlayer.model.finite import finite, within
from cutlayer.model.trainable import TrainSettings
from cutlayer.server.adapters import Adapters
from cutlayer.server.owners import SHARED
from cutlayer.wire.messages import Activations

MOST_GRADIENT = 2.0**60
"""AdamW keeps squares of gradients in 32 bits: beyond this one they are not finite."""


@dataclass(frozen=True, slots=True)
class Span:
    """A run of blocks of the model.

    Attributes:
      first: its lowest block.
      end: the block above its highest; None for everything up to the head, and the head.
      blocks: which of all blocks have an adapter; None for all.
      trains_below: whether something below it trains, and waits for a gradient.
    """

    first: int
    end: int | None = None
    blocks: Blocks = None
    trains_below: bool = True


@dataclass(slots=True)
class Graph:
    """A forward pass whose backward pass is still to come.

    Attributes:
      input_BTD: what came in, a leaf.
      output: the loss, logits (B, K) or (B, T, K), or hidden states (B, T, D).
    """

    input_BTD: Tensor
    output: Tensor

    @property
    def value(self) -> float:
        """The loss as a number."""
        return float(self.output.detach())

    def back(self, gradient: Tensor | float = 1.0) -> Tensor | None:
        """Adds the gradients of the adapter to those that it has.

        Args:
          gradient: By the output, in its shape; or the number by which a loss counts.

        Returns:
          The gradient by what came in; None where nothing below waits for one.
        """
        if isinstance(gradient, float):
            gradient = torch.full_like(self.output, gradient)
        self.output.backward(gradient)
        return self.input_BTD.grad


class Engine:
    """Computes on the base.

    Args:
      base: The frozen model.
      adapters: Whose server adapters are put in and stepped.
      settings: How the server trains.
    """

    def __init__(self, base: Base, adapters: Adapters, settings: TrainSettings) -> None:
        self._base, self._adapters, self._settings = base, adapters, settings

    def span(self, cut: int, blocks: Blocks, end: int | None = None) -> Span:
        """The span above a cut; or, where the device has the labels, from the cut up to its tail."""
        return Span(cut, end, blocks, trains_below=bool(self._base.device_names(cut, blocks)))

    def loss(self, owner: str, span: Span, batch: Activations) -> Graph:
        """Runs a batch, or a part of one, through the span to its mean loss.

        Args:
          owner: Whose adapter is put in.
          span: From the cut to the head.
          batch: What came in, at the cut.
        """
        h_BTD, mask_BT, labels = self._given(span, batch)
        part = self._base.server_part(span.first, span.blocks)
        part.use(self._adapters.trainable(owner).parameters)
        with self._dropout("server", batch):
            return Graph(h_BTD, part.loss(h_BTD, mask_BT, labels))

    def logits(self, owner: str, span: Span, batch: Activations) -> Graph:
        """Runs a batch through the span to its logits. See `loss`."""
        h_BTD, mask_BT, _ = self._given(span, batch)
        part = self._base.server_part(span.first, span.blocks)
        part.use(self._adapters.trainable(owner).parameters)
        with self._dropout("server", batch):
            return Graph(h_BTD, part.logits(h_BTD, mask_BT))

    def through(self, span: Span, batch: Activations, adapter: Mapping[str, Tensor]) -> Graph:
        """Runs a batch through the blocks of a span, to the hidden states at its end, (B, T, D).

        Args:
          span: From the cut to where the device's tail begins.
          batch: What came in, at the cut.
          adapter: What is put in, by name.
        """
        assert span.end is not None, "blocks are run up to a block"
        h_BTD = batch.h_BTD.detach().requires_grad_(span.trains_below)
        part = self._base.middle_part(span.first, span.end, span.blocks)
        part.use(adapter)
        with self._dropout("server", batch):
            return Graph(h_BTD, part.forward(h_BTD, batch.mask_BT.to(h_BTD.device)))

    def lift(self, span: Span, batch: Activations) -> Tensor:
        """The activations at the end of a span, (B, T, D), from those at its beginning: no adapter, no gradient."""
        assert span.end is not None, "activations are lifted to a block"
        part = self._base.middle_part(span.first, span.end, frozenset())
        drops = self._base.settings.base_dropout
        with torch.no_grad(), self._dropout("lift", batch, drops=drops):
            return part.forward(batch.h_BTD, batch.mask_BT.to(batch.h_BTD.device))

    def step(self, owner: str, rate: float) -> None:
        """Moves an adapter by the gradients that have added up."""
        self._adapters.trainable(owner).step(rate, self._adapters.rule(owner))

    def check_finite(self, loss: float, device: str, round: int, step: int) -> None:
        """Raises DivergedError where a loss is not finite.

        Args:
          loss: The loss.
          device: Of whom, or `SHARED`.
          round: In which round.
          step: In which local step.
        """
        if not math.isfinite(loss):
            who = "all devices" if device == SHARED else f"device {device}"
            raise DivergedError(
                f"{who}, round {round}, step {step}: expected a finite loss, got {loss}. "
                "Lower the learning rate (--lr), or set train.clip.",
                device=device,
                round=round,
                step=step,
            )

    def check_hidden(self, h_BTD: Tensor, device: str, round: int, step: int) -> None:
        """Raises DivergedError where hidden states, (B, T, D), are not finite; the others as of `check_finite`."""
        if not finite(h_BTD.detach()):
            raise DivergedError(
                f"device {device}, round {round}, step {step}: expected finite hidden states, got others. "
                "Lower the learning rate (--lr), or set train.clip.",
                device=device,
                round=round,
                step=step,
            )

    def check_gradients(
        self, parameters: Mapping[str, Tensor], grad_BTD: Tensor | None, device: str, round: int, step: int
    ) -> None:
        """Raises DivergedError where a gradient is not finite, or so large that its square is not; then there is none.

        Args:
          parameters: Of the adapter that was put in, by name, each with the gradients that it has.
          grad_BTD: What goes back; None for nothing.
          device, round, step: See `check_finite`.
        """
        found = [parameter.grad for parameter in parameters.values() if parameter.grad is not None]
        if all(within(grad, MOST_GRADIENT) for grad in (*found, *(() if grad_BTD is None else (grad_BTD,)))):
            return
        for parameter in parameters.values():
            parameter.grad = None
        who = "all devices" if device == SHARED else f"device {device}"
        raise DivergedError(
            f"{who}, round {round}, step {step}: expected gradients up to {MOST_GRADIENT:g}, got others. "
            "Lower the learning rate (--lr), or set train.clip.",
            device=device,
            round=round,
            step=step,
        )

    def _given(self, span: Span, batch: Activations) -> tuple[Tensor, Tensor, Tensor]:
        """A batch as the model takes it: activations as a leaf, mask, labels."""
        h_BTD = batch.h_BTD.detach().requires_grad_(span.trains_below)
        return h_BTD, batch.mask_BT.to(h_BTD.device), batch.targets.long().to(h_BTD.device)

    def _dropout(self, what: str, batch: Activations, *, drops: bool | None = None) -> AbstractContextManager[None]:
        """Dropout drawn for this part of this step of this device, whoever was served before."""
        drops = self._base.settings.drops if drops is None else drops
        at = (batch.step, batch.micro_batch) if batch.micro_batch else (batch.step,)
        return seeded_dropout(drops, self._settings.seed, what, batch.device, batch.round, *at)
