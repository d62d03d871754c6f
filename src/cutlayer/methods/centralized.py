"""Centralized: the bound, one adapter for all blocks, trained on batches mixed over all devices.

No published system: what a server could learn if the data were its own, the comparison that every paper makes.

    centralized LoRA                          here
    -------------------------------------     ------------------------------------------
    one model, an adapter on every block      cut_at(0): devices hold the embeddings alone, which are frozen
    batches drawn from all of the data        stream(window): shuffled over the devices' batches
    one optimizer step per batch              the shared adapter of the stream

It is computed as a stream of embedded texts, so that it sees the samples that the other methods see in the same
rounds, as many of them, in batches of the same size. Its accuracy is that of centralized training. Its times and bytes
are those of sending embeddings, and no centralized run would have them.

Evidence: no published system.
"""

from __future__ import annotations

from cutlayer.methods.method import Method
from cutlayer.policies.aggregate import mean_per_block
from cutlayer.policies.cut import cut_at
from cutlayer.policies.ranks import ranks_above_deepest_cut
from cutlayer.policies.select import everyone, random_fraction
from cutlayer.rounds.stream import stream


def centralized(*, window: int | None = None, fraction: float = 1.0, seed: int = 0) -> Method:
    """Builds centralized training.

    Args:
      window: Samples that are gathered before a batch is drawn; None is one batch of every device.
      fraction: Of the fleet, whose data a round has, drawn anew every round.
      seed: Of the shuffling.
    """
    return Method(
        plan=(everyone(), random_fraction(fraction), cut_at(0, trains=False), ranks_above_deepest_cut()),
        round=stream(window=window, cache=False, seed=seed),
        aggregate=mean_per_block(),  # of one contribution: what the server trained
    )
