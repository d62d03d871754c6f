"""SFL-V2: one shared server adapter, stepped by the devices in random order; device adapters averaged.

SplitFed: When Federated Learning Meets Split Learning
    Chandra Thapa, M. A. P. Chamikara, Seyit Camtepe, Lichao Sun. AAAI 2022. https://arxiv.org/abs/2004.12088

    the authors' code                             here, with LoRA
    -----------------------------------------     ------------------------------------------
    a fraction of the clients in each round       random_fraction(fraction)
    one server model, stepped by the clients      one_device_at_a_time(random_order(seed), owner=one_for_all)
      in random order
    mean of the client parts, every client alike  mean_per_block(weighted=False)

Our reading of the order: at every step anyone of those whose activations are here, so the server never waits; the
code lets one client finish its epoch before the next begins. A slip of that code is not repeated: a new Adam for every
batch, so that no moments gather. Its local work is one epoch; here it is train.local_steps.

Evidence: the authors' code; the order per step is our reading.
"""

from __future__ import annotations

from cutlayer.methods.method import Method
from cutlayer.policies.aggregate import mean_per_block
from cutlayer.policies.cut_by_name import cut_by_name
from cutlayer.policies.labels import heads_for, labels_stay
from cutlayer.policies.order import random_order
from cutlayer.policies.select import everyone, random_fraction
from cutlayer.rounds.split import split
from cutlayer.rounds.u_shape import u_shape
from cutlayer.server.owners import one_for_all
from cutlayer.server.steps.halves import in_halves
from cutlayer.server.steps.one_at_a_time import one_device_at_a_time


def sfl_v2(*, cut: int | str = 1, labels: str = "server", fraction: float = 1.0, seed: int = 0) -> Method:
    """Builds SFL-V2.

    Args:
      cut: Blocks on every device; or memory, as many as each holds, or latency, as many as make the round short.
      labels: Where they are: server (they go up with the activations) or device (they stay there, with the head).
      fraction: Of the fleet, drawn anew every round.
      seed: Of the random order.
    """
    return Method(
        plan=(everyone(), random_fraction(fraction), *heads_for(labels), cut_by_name(cut)),
        round=(
            u_shape(server_step=in_halves(random_order(seed), owner=one_for_all))
            if labels_stay(labels)
            else split(server_step=one_device_at_a_time(random_order(seed), owner=one_for_all))
        ),
        aggregate=mean_per_block(weighted=False),
    )
