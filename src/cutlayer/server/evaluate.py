"""The metrics of a full adapter on held-out data, by the whole model. Costs no virtual time: it trains nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn

from cutlayer.data.batches import parts_of
from cutlayer.model.base import Base
from cutlayer.model.finite import finite
from cutlayer.model.loss import MASKED
from cutlayer.model.part import WholePart
from cutlayer.report.metrics import ClassificationMetrics, LanguageMetrics
from cutlayer.types import Adapter, Batch, Kept

BUDGET_BYTES = 2**28
"""Bytes that the logits of a causal LM may take at a time, and that one block's widest tensors may."""
WIDE = 3
"""Tensors of a feed-forward's width that are alive at once: gate, up and what they make."""


def evaluate(
    base: Base,
    adapter: Adapter,
    batches: Iterable[Batch],
    kept: Kept | None = None,
    *,
    told: Callable[[int], None] = lambda _done: None,
) -> dict[str, float]:
    """Runs the whole model with this adapter over the batches, dropout off.

    Of a causal LM the loss is that of training: logits at learned positions alone, and of as many rows at a time as
    `BUDGET_BYTES` allows.

    Args:
      base: the model.
      adapter: its full adapter.
      batches: what to judge by.
      kept: of a pruned model, what is left; the adapter's part for it is taken.
      told: told after every piece of work how many samples are done.

    Returns:
      `accuracy`, `macro_f1`, `loss` for classification; `loss`, `perplexity`, `tokens` for causal LM.
    """
    part, adapter = _whole(base, adapter, kept)
    part.use(adapter)
    classification = base.settings.task == "classification"
    classes, language = ClassificationMetrics(max(1, base.settings.num_labels)), LanguageMetrics()
    part.model.eval()
    done = 0
    try:
        with torch.inference_mode():
            for batch in batches:
                if classification:
                    loss, logits = part.loss_and_logits(batch)
                    classes.add(logits.cpu(), batch.labels, float(loss) * batch.weight)
                    done += batch.num_samples
                    told(done)
                    continue
                for rows in parts_of(batch, rows_at_once(batch, base)):
                    if rows.weight:  # the loss of nothing is no number
                        language.add(float(part.loss(rows)) * rows.weight, rows.weight)
                    done += rows.num_samples
                    told(done)
    finally:
        part.model.train()
    return classes.result() if classification else language.result()


def has_gradients(base: Base, adapter: Adapter, batch: Batch, kept: Kept | None = None) -> bool:
    """Whether the loss of a batch and its gradients are finite with this adapter, dropout off.

    Args:
      base, adapter, kept: See `evaluate`.
      batch: some rows, all at once.
    """
    part, adapter = _whole(base, adapter, kept)
    parameters = {name: nn.Parameter(value.detach()) for name, value in adapter.items()}
    part.use(parameters)
    part.model.eval()
    try:
        loss = part.loss(batch)
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    finally:
        part.model.train()
    return finite(loss) and all(finite(one) for one in gradients if one is not None)


def _whole(base: Base, adapter: Adapter, kept: Kept | None) -> tuple[WholePart, Adapter]:
    """The whole model for this adapter, or what is left of it; and what of the adapter is for that."""
    if kept is None:
        return base.whole(base.blocks_in(adapter)), adapter
    return base.pruned(kept, base.blocks_in(adapter)), base.structure.slice_all(adapter, kept)


def rows_at_once(batch: Batch, base: Base) -> list[int]:
    """Rows in each part that a batch of texts is cut into, so that what comes and goes stays within `BUDGET_BYTES`."""
    each = base.dtype.itemsize
    per_logit = 4 if each == 4 else 4 + each  # the loss is computed in 32 bits
    logits_B = ((batch.labels[:, 1:] != MASKED).sum(1) * base.vocabulary * per_logit).tolist()
    hidden_bytes = WIDE * batch.labels.shape[1] * base.widest * each
    sizes, logits, rows = [], 0, 0
    for row_bytes in logits_B:
        if rows and (logits + row_bytes > BUDGET_BYTES or (rows + 1) * hidden_bytes > BUDGET_BYTES):
            sizes.append(rows)
            logits, rows = 0, 0
        logits, rows = logits + row_bytes, rows + 1
    return [*sizes, rows]
