"""The metrics of a full adapter on held-out data, by the whole model. Costs no virtual time: it trains nothing."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from cutlayer.model.base import Base
from cutlayer.report.metrics import ClassificationMetrics, LanguageMetrics
from cutlayer.types import Adapter, Batch, Kept


def evaluate(base: Base, adapter: Adapter, batches: Iterable[Batch], kept: Kept | None = None) -> dict[str, float]:
    """Runs the whole model with this adapter over the batches, dropout off.

    Args:
      base: the model.
      adapter: its full adapter.
      batches: what to judge by.
      kept: of a pruned model, what is left; the adapter's part for it is taken.

    Returns:
      `accuracy`, `macro_f1`, `loss` for classification; `loss`, `perplexity`, `tokens` for causal LM.
    """
    if kept is None:
        part = base.whole(base.blocks_in(adapter))
    else:
        part, adapter = base.pruned(kept, base.blocks_in(adapter)), base.structure.slice_all(adapter, kept)
    part.use(adapter)
    classification = base.settings.task == "classification"
    classes, language = ClassificationMetrics(max(1, base.settings.num_labels)), LanguageMetrics()
    part.model.eval()
    try:
        with torch.inference_mode():
            for batch in batches:
                loss, logits = part.loss_and_logits(batch)
                if classification:
                    classes.add(logits.cpu(), batch.labels, float(loss) * batch.weight)
                else:
                    language.add(float(loss) * batch.weight, batch.weight)
    finally:
        part.model.train()
    return classes.result() if classification else language.result()
