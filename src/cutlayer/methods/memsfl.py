"""MemSFL: one base on the server, an adapter per device swapped in; unequal cuts; the order of devices optimised.

Memory-Efficient Split Federated Learning for LLM Fine-Tuning on Heterogeneous Mobile Devices
    Xiaopei Chen, Liang Li, Fei Ji, Wen Wu. IEEE INFOCOM IEILM workshop 2025. https://arxiv.org/abs/2506.02940

    the paper                                         here
    ---------------------------------------------     ------------------------------------------
    the server assigns W_u: embedding + k_u blocks    cut_by_memory()
    one full model, per-client server adapters        one_device_at_a_time(order, owner=one_per_device)
    clients one at a time, order by the scheduler     order
    R_u^f = R_u^c + R_u^s covers all layers           Server.contributions: names joined, depth differences vanish
    aggregation of R_u^f, layer by layer              mean_per_block(weighted by what was trained)

What is certain (abstract, reviews): one full model, adapters per client, the order optimised, different cuts. Our
reading (nothing of it could be read): the aggregation, its weights |D_u| and its interval (train.local_steps), cuts
by memory, and the greedy rule `ratio`. `optimal` and `momentum` are ours.

Evidence: abstract and reviews; aggregation inferred, order rule recalled.
"""

from __future__ import annotations

from cutlayer.methods.method import Method
from cutlayer.policies.aggregate import mean_per_block, with_momentum
from cutlayer.policies.cut_by_name import cut_by_name
from cutlayer.policies.labels import heads_for, labels_stay
from cutlayer.policies.order import order_by_name
from cutlayer.policies.select import everyone, random_fraction
from cutlayer.rounds.split import split
from cutlayer.rounds.u_shape import u_shape
from cutlayer.server.owners import one_per_device
from cutlayer.server.steps.halves import in_halves
from cutlayer.server.steps.one_at_a_time import one_device_at_a_time


def memsfl(
    *,
    order: str = "longest_tail",
    cut: int | str | None = "memory",
    least: int = 1,
    labels: str = "server",
    weighted: bool = True,
    momentum: float = 0.0,
    fraction: float = 1.0,
    seed: int = 0,
) -> Method:
    """Builds MemSFL.

    Args:
      order: Who is served next: fifo, random, longest_tail, ratio, strict_ratio or optimal.
      cut: Blocks on every device; memory, or None, gives each as many as its memory holds; latency as many as make the
        round short: what a real fleet takes where nobody says.
      least: With cut memory or latency, the fewest blocks that a device must be able to hold.
      labels: Where they are: server (they go up with the activations) or device (they stay there, with the head).
      weighted: Whether devices count by what they trained in the mean; False counts them alike (the 1/U of the
        paper's objective).
      momentum: Of the averaged updates, from round to round; 0 is the paper's plain mean.
      fraction: Of the fleet, drawn anew every round; the paper has everyone.
      seed: Of the random order.
    """
    served = order_by_name(order, seed)
    return Method(
        plan=(
            everyone(),
            random_fraction(fraction),
            *heads_for(labels),
            cut_by_name("memory" if cut is None else cut, least=least),
        ),
        round=(
            u_shape(server_step=in_halves(served, owner=one_per_device))
            if labels_stay(labels)
            else split(server_step=one_device_at_a_time(served, owner=one_per_device))
        ),
        aggregate=with_momentum(mean_per_block(weighted=weighted), momentum),
    )
