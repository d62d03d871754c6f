"""Sums over rows that were judged: what several machines know of their own rows adds up to the metrics over all.

Shapes: B batch, T tokens, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from cutlayer.model.dropout import still
from cutlayer.model.loss import Learned


@dataclass(slots=True)
class Sums:
    """The result of judging so many batches.

    Attributes:
      classes: of how many classes hits are counted apart; 1 for all of them together, 0 for no such count.
      samples: rows.
      weight: rows, or unmasked target tokens.
      losses: of each batch, the sum of its losses.
      counts_3C: int64; by class, hits, samples predicted to be of it, samples of it.
    """

    classes: int
    samples: int = 0
    weight: int = 0
    losses: list[float] = field(default_factory=list)
    counts_3C: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.counts_3C = torch.zeros(3, self.classes, dtype=torch.int64)

    def judge(self, model: nn.Module, logits: Callable[[], Tensor], labels: Tensor, weight: int) -> None:
        """Judges a batch, with dropout off and without a graph; of a language model at learned positions alone.

        Args:
          model: Whose head makes the logits.
          logits: Runs it: (B, C), or those of tokens.
          labels: (B,) classes or (B, T) tokens, -100 where masked; int64, where the logits are.
          weight: Of the batch.
        """
        with still(model):
            if labels.dim() == 1:
                self.add(logits(), labels, weight)
                return
            learned = Learned.of(labels)
            with learned.alone(model):
                loss = float(learned.loss(logits()))
        self.note(len(labels), weight, loss * weight)

    def add(self, logits_BC: Tensor, labels_B: Tensor, weight: int) -> None:
        """Judges a batch of classes by its logits.

        Args:
          logits_BC: Of the batch.
          labels_B: Its classes, int64, where the logits are.
          weight: Of the batch.

        Example:
          >>> sums = Sums(classes=2)
          >>> sums.add(torch.tensor([[2.0, 0.0], [2.0, 0.0]]), torch.tensor([0, 1]), 2)
          >>> sums.samples, sums.counts_3C.tolist(), round(sums.losses[0], 4)
          (2, [[1, 0], [2, 0], [1, 1]], 2.2539)
        """
        self.note(len(labels_B), weight, float(cross_entropy(logits_BC, labels_B)) * weight)
        predicted_B, labels_B = logits_BC.argmax(dim=1).cpu(), labels_B.cpu()
        if self.classes == 1:
            self.counts_3C += torch.tensor([[int((predicted_B == labels_B).sum())], [len(labels_B)], [len(labels_B)]])
        else:
            hits_B = labels_B[predicted_B == labels_B]
            each = (torch.bincount(of, minlength=self.classes) for of in (hits_B, predicted_B, labels_B))
            self.counts_3C += torch.stack(list(each))

    def note(self, samples: int, weight: int, loss: float | None = None) -> None:
        """Counts rows whose losses another machine knows; or, with their sum, whose hits it does."""
        self.samples += samples
        self.weight += weight
        if loss is not None:
            self.losses.append(loss)

    def take(self, other: Sums) -> None:
        """Adds what another machine knows of other rows, or of these."""
        self.samples += other.samples
        self.weight += other.weight
        self.losses += other.losses
        self.counts_3C = self.counts_3C + other.counts_3C
