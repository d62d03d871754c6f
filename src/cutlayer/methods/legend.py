"""LEGEND: federated; each device adapts its last blocks, as many as its measured speed allows, ranks rising upwards.

Adaptive Parameter-Efficient Federated Fine-Tuning on Heterogeneous Devices
    Jun Liu, Yunming Liao, Hongli Xu, Yang Xu, Jianchun Liu, Chen Qian. IEEE TMC 2025. https://arxiv.org/abs/2412.20004

    the paper                                            here
    -------------------------------------------------    ------------------------------------------
    a rank per layer, higher towards the output          arithmetic_ranks(first, step)
    capacities: back-propagation time, upload cost       policies.depth.measured: moving averages of the history
    LoRA configuration: a depth k_i for each device      depth_by_time(): blocks L - k_i to L - 1 have adapters
    local fine-tuning of the last k_i layers             local(): backward ends at block L - k_i
    aggregation layer by layer, over those who have it   mean_per_block(): unweighted, a block without owner stays

What is certain (abstract, reviews): depths and ranks together, higher ranks near the output, capacities measured and
not declared, a greedy choice. From a re-implementation by others: the arithmetic list (there 17 to 28 on 12 layers),
and the mean over owners. Our reading: the time of a round, which depth the greedy choice takes, what a device does
before it was measured, and that a head trains on every device and is averaged over all.

Neutral: step=0.

Evidence: reviews; rank list from a re-implementation, the choice of depths is our reading.
"""

from __future__ import annotations

from cutlayer.methods.method import Method
from cutlayer.policies.aggregate import mean_per_block
from cutlayer.policies.cut import whole_model
from cutlayer.policies.depth import depth_by_time
from cutlayer.policies.ranks import arithmetic_ranks
from cutlayer.policies.select import everyone, random_fraction
from cutlayer.rounds.local import local


def legend(
    *,
    first: int | None = None,
    step: int = 1,
    least: int = 1,
    waiting: float = 1.0,
    weighted: bool = False,
    fraction: float = 1.0,
) -> Method:
    """Builds LEGEND.

    Args:
      first: LoRA rank of block 0; None keeps the mean over the blocks to the run's rank.
      step: What each block has more than the one below it.
      least: The fewest blocks that a device trains.
      waiting: The most that devices may wait for the slowest on average, as a part of the round; 1 is no limit.
      weighted: Whether owners count by what they trained in the mean.
      fraction: Of the fleet, drawn anew every round.
    """
    return Method(
        plan=(
            everyone(),
            random_fraction(fraction),
            arithmetic_ranks(first, step),
            depth_by_time(least=least, waiting=waiting),
            whole_model(),
        ),
        round=local(),
        aggregate=mean_per_block(weighted=weighted),
    )
