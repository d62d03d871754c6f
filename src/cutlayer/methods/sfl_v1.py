"""SFL-V1: a server copy for every device; both sides averaged every round, unweighted.

SplitFed: When Federated Learning Meets Split Learning
    Chandra Thapa, M. A. P. Chamikara, Seyit Camtepe, Lichao Sun. AAAI 2022. https://arxiv.org/abs/2004.12088

    the authors' code                             here, with LoRA
    -----------------------------------------     ------------------------------------------
    a fraction of the clients in each round       random_fraction(fraction)
    a server-side copy per client                 a_copy_each(): a server adapter per device
    mean of the server copies and of the          mean_per_block(weighted=False)
      client parts, every client alike

With the base frozen, copies of it are equal for ever: the arithmetic is that of memsfl with equal cuts, bit for bit (a
test), and one base serves in simulation. What the copies would hold is in the memory that `cutlayer plan` reports;
benchmarks/memory.py makes them and measures. A slip of that code is not repeated: a new Adam for every batch, so that
no moments gather. Its local work is one epoch; here it is train.local_steps.

Evidence: the authors' code.
"""

from __future__ import annotations

from cutlayer.methods.method import Method
from cutlayer.policies.aggregate import mean_per_block
from cutlayer.policies.cut_by_name import cut_by_name
from cutlayer.policies.labels import heads_for, labels_stay
from cutlayer.policies.order import fifo
from cutlayer.policies.select import everyone, random_fraction
from cutlayer.rounds.split import split
from cutlayer.rounds.u_shape import u_shape
from cutlayer.server.steps.halves import in_halves
from cutlayer.server.steps.one_at_a_time import a_copy_each


def sfl_v1(*, cut: int | str = 1, labels: str = "server", fraction: float = 1.0) -> Method:
    """Builds SFL-V1.

    Args:
      cut: Blocks on every device; or memory, as many as each holds, or latency, as many as make the round short.
      labels: Where they are: server (they go up with the activations) or device (they stay there, with the head).
      fraction: Of the fleet, drawn anew every round.
    """
    return Method(
        plan=(everyone(), random_fraction(fraction), *heads_for(labels), cut_by_name(cut)),
        round=(
            u_shape(server_step=in_halves(fifo(), copies=True))
            if labels_stay(labels)
            else split(server_step=a_copy_each())
        ),
        aggregate=mean_per_block(weighted=False),
    )
