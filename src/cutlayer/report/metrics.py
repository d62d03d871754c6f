"""Exact metrics, collected batch by batch: the same numbers whatever the batches and their order.

Counts are integers and losses are summed with one rounding at the end (`math.fsum`).

Shapes: B batch, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from cutlayer.errors import DataError


class ClassificationMetrics:
    """Accuracy, macro F1 and mean loss over a validation set.

    Macro F1 is the unweighted mean of the per-class F1 over the classes that occur among the labels or the
    predictions, which is the convention of scikit-learn's `f1_score(average="macro")`: a class that neither
    occurs nor is predicted counts neither as 0 nor as 1.
    """

    def __init__(self, num_classes: int) -> None:
        self._num_classes = num_classes
        self._hits_C = torch.zeros(num_classes, dtype=torch.int64)
        self._predicted_C = torch.zeros(num_classes, dtype=torch.int64)
        self._labelled_C = torch.zeros(num_classes, dtype=torch.int64)
        self._loss_sums: list[float] = []

    def add(self, logits_BC: Tensor, labels_B: Tensor, loss_sum: float) -> None:
        """Counts one batch.

        Args:
          logits_BC: any dtype and device; a tie goes to the lower class.
          labels_B: class ids.
          loss_sum: the batch's loss summed over its samples.

        Raises:
          DataError: a label is not one of the classes.
        """
        predictions_B, labels_B = logits_BC.detach().argmax(dim=1).cpu(), labels_B.detach().cpu().long()
        wrong = labels_B[(labels_B < 0) | (labels_B >= self._num_classes)]
        if wrong.numel():
            raise DataError(
                f"evaluation labels: expected class ids 0..{self._num_classes - 1}, got {int(wrong[0])}. "
                "Map the label column to the classes the model was trained with."
            )
        self._hits_C += self._count(labels_B[predictions_B == labels_B])
        self._predicted_C += self._count(predictions_B)
        self._labelled_C += self._count(labels_B)
        self._loss_sums.append(loss_sum)

    def add_counts(self, counts_3C: Tensor, loss_sums: Iterable[float]) -> None:
        """Counts batches that others have judged: hits, predictions and labels by class, and each one's loss."""
        hits_C, predicted_C, labelled_C = counts_3C
        self._hits_C += hits_C
        self._predicted_C += predicted_C
        self._labelled_C += labelled_C
        self._loss_sums += loss_sums

    def _count(self, classes: Tensor) -> Tensor:
        return torch.bincount(classes, minlength=self._num_classes)

    def result(self) -> dict[str, float]:
        """`accuracy` and `macro_f1` in [0, 1], `loss` per sample.

        Raises:
          DataError: no sample was added.
        """
        num_samples = int(self._labelled_C.sum())
        _expect_some(num_samples, "samples")
        hits, support = self._hits_C.tolist(), (self._predicted_C + self._labelled_C).tolist()
        f1 = [2 * hit / both for hit, both in zip(hits, support, strict=True) if both]
        return {
            "accuracy": sum(hits) / num_samples,
            "macro_f1": math.fsum(f1) / len(f1),
            "loss": math.fsum(self._loss_sums) / num_samples,
        }


class LanguageMetrics:
    """Mean loss per target token, and its perplexity."""

    def __init__(self) -> None:
        self._loss_sums: list[float] = []
        self._num_tokens = 0

    def add(self, loss_sum: float, num_tokens: int) -> None:
        """Counts one batch: its loss summed over its `num_tokens` unmasked target tokens."""
        self._loss_sums.append(loss_sum)
        self._num_tokens += num_tokens

    def result(self) -> dict[str, float]:
        """`loss` in nats per token, `perplexity` = exp(loss), or inf where that overflows, and `tokens`.

        Raises:
          DataError: no token was added.
        """
        _expect_some(self._num_tokens, "target tokens")
        loss = math.fsum(self._loss_sums) / self._num_tokens
        return {"loss": loss, "perplexity": perplexity(loss), "tokens": self._num_tokens}


def perplexity(loss: float) -> float:
    """exp(loss), or inf where that is beyond a float.

    Example:
      >>> perplexity(0.0), perplexity(1e4)
      (1.0, inf)
    """
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def _expect_some(count: int, what: str) -> None:
    if count == 0:
        raise DataError(
            f"evaluation: expected at least one of the {what}, got 0. "
            "Check the validation split, and that its answers are not cut off by --max-length."
        )
