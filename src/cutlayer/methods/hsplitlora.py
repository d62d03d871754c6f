"""HSplitLoRA: ranks by the importance of each weight matrix and cuts by a knapsack, within unequal memories; stacked.

HSplitLoRA: A Heterogeneous Split Parameter-Efficient Fine-Tuning Framework for Large Language Models
    Zheng Lin, Yuxin Zhang, Zhe Chen, Zihan Fang, Xianhao Chen, Praneeth Vepakomma, Wei Ni, Jun Luo, Yue Gao.
    IEEE Transactions on Mobile Computing. 2025. https://arxiv.org/abs/2505.02795

    the paper                                         here
    ---------------------------------------------     ------------------------------------------
    important weight identification: gradient-        weighing(probe_every), weighing_split():
      weight product by memory cost, smoothed           model.matrix_importance on both ends
    adaptive rank: high ranks for important           ranks_by_importance(lowest, threshold)
      weights, within each device's memory
    split point by importance, changed when           cut_by_knapsack(threshold, server_share)
      importance has changed enough
    clients in turn with one server, as SplitLoRA     weighing_split(fifo(), owner=one_for_all)
    noise-free aggregation: factors concatenated      stack()
    merged into the base, adapters begin anew         Method.fold, begin_anew(), fresh_moments()

From reviews, no code is public: the three parts, ranks in order of importance under a budget, a threshold before a
split point changes, stacking, folding, beginning anew. From one review alone: the formulas of importance (the product
of value and gradient over a memory cost) and of its smoothing. Our reading: absolute values; the cost; the proxy of
LoRA's gradients between exact probes; that ranks rise one rung at a time; the knapsack's objective; that the server's
own copy counts in the stack with what was trained through it; all constants (the paper's are not known here). A round
here is the paper's aggregation period: train.local_steps.

Evidence: reviews; formulas second-hand, the objective and all constants are our reading.
"""

from __future__ import annotations

from cutlayer.methods.method import Method
from cutlayer.policies.cut_by_name import cut_by_name
from cutlayer.policies.importance_ranks import importance_of_modules, ranks_by_importance, weighing
from cutlayer.policies.knapsack import cut_by_knapsack
from cutlayer.policies.moments import fresh_moments
from cutlayer.policies.order import fifo
from cutlayer.policies.ranks import uniform_ranks
from cutlayer.policies.select import everyone, random_fraction
from cutlayer.policies.stack import begin_anew, stack
from cutlayer.rounds.weighing import weighing_split
from cutlayer.server.owners import one_for_all


def hsplitlora(
    *,
    cut: int | str | None = None,
    lowest: int = 1,
    threshold: float = 0.1,
    server_share: float = 0.5,
    probe_every: int = 5,
    least: int = 1,
    fraction: float = 1.0,
    seed: int = 0,
) -> Method:
    """Builds HSplitLoRA.

    Args:
      cut: Blocks on every device; None or knapsack chooses them with the ranks; memory gives each as many as its memory
        holds at the lowest rank, latency as many as make the round short.
      lowest: The lowest rank of a matrix; the run's is the highest, and equal to it makes all ranks equal.
      threshold: By how much importance must have moved, as a part of it, before ranks and cuts change.
      server_share: With the knapsack, what a matrix on the server is worth beside one on the device: 1 leaves as much
        as possible to the server, 0 counts nothing that is there.
      probe_every: Rounds from one exact probe of importance to the next.
      least: Where cuts are chosen, the fewest blocks that a device must be able to hold.
      fraction: Of the fleet, drawn anew every round; the paper has everyone.
      seed: Of the fresh adapters.
    """
    if cut is None or cut == "knapsack":
        where = cut_by_knapsack(lowest=lowest, threshold=threshold, server_share=server_share, least=least)
    else:
        where = cut_by_name(cut, least=least)
    return Method(
        plan=(
            everyone(),
            uniform_ranks(lowest),
            random_fraction(fraction),
            where,
            ranks_by_importance(lowest=lowest, threshold=threshold),
            weighing(probe_every),
            fresh_moments(),
        ),
        round=weighing_split(fifo(), owner=one_for_all),
        aggregate=begin_anew(seed),
        fold=stack,
        observe=importance_of_modules,
    )
