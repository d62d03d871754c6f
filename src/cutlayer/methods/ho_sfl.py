"""HO-SFL: devices run forward only and move by random directions; the server trains by gradients.

HO-SFL: Hybrid-Order Split Federated Learning with Backprop-Free Clients and Dimension-Free Aggregation
    Qiyuan Chen, Xian Wu, Yi Wang, Xianhao Chen. ICML 2026. https://arxiv.org/abs/2603.14773

    the paper (a detailed reading by others)                 here
    -----------------------------------------------------    ------------------------------------------
    client: z = f_c(x; theta_c), no gradient; z, y up        hybrid(): Device.bottom(graph=False)
    server: forward, backward, own step; lambda = dl/dz      one_device_at_a_time(fifo(), owner=one_for_all)
    v_p = <lambda, f_c(x; theta_c + mu u_p) - z>             model.zeroth.projected, in fp32, the difference first
    P scalars up                                             Facts(slopes), v_p / mu
    g_c = 1/(P mu) sum_p v_p u_p, a step of descent          optimizers.zeroth(mean_terms(seeds, slopes))
    O(P) aggregation: no client model is sent up             rounds.hybrid.moved: the server makes the steps again

No code is public, and the paper itself could not be read. From a detailed reading by others: one upload and one
gradient down a step, P = 2 for language, mu = 1e-3; and the scalar, which an equation of HO-FL repeats. Our reading:
each device has seeds of its own and moves by its own slopes, averaged after each round, which lets devices have cuts of
their own (as HO-FL of the same group; the paper shares P directions and averages the scalars at each step, for which
all devices must hold the same blocks); the server's adapter is stepped by AdamW, as everywhere here, the device's by
descent at `scale` times the run's rate. The paper has no table of rates for LoRA: ours was tried on one data set
(docs/lab-log.md).

Neutral: none, a device moves along random directions and not along its gradient.

Evidence: a detailed reading of the paper by others; rates, seeds per device and averaging per round are ours.
"""

from __future__ import annotations

from cutlayer.methods.method import Method
from cutlayer.policies.aggregate import mean_per_block
from cutlayer.policies.cut_by_name import cut_by_name
from cutlayer.policies.directions import along_directions
from cutlayer.policies.order import fifo
from cutlayer.policies.select import everyone, random_fraction
from cutlayer.rounds.hybrid import hybrid
from cutlayer.server.owners import one_for_all
from cutlayer.server.steps.one_at_a_time import one_device_at_a_time


def ho_sfl(
    *,
    directions: int = 2,
    mu: float = 1e-3,
    scale: float = 1.0,
    at_once: int = 1,
    cut: int | str | None = "memory",
    least: int = 1,
    weighted: bool = True,
    fraction: float = 1.0,
) -> Method:
    """Builds HO-SFL.

    Args:
      directions: Random directions along which a device looks in each local step (P).
      mu: How far along each of them.
      scale: The device's learning rate as a part of the run's.
      at_once: Directions in one forward pass; more need more memory and less time.
      cut: Blocks on every device; memory, or None, gives each as many as its memory holds; latency as many as make the
        round short: what a real fleet takes where nobody says.
      least: With cut memory or latency, the fewest blocks that a device must be able to hold.
      weighted: Whether devices count by what they trained in the mean; False counts them alike.
      fraction: Of the fleet, drawn anew every round.
    """
    return Method(
        plan=(
            everyone(),
            random_fraction(fraction),
            along_directions(directions, mu, scale, at_once),  # before the cut: memory goes by what a step runs
            cut_by_name("memory" if cut is None else cut, least=least),
        ),
        round=hybrid(server_step=one_device_at_a_time(fifo(), owner=one_for_all)),
        aggregate=mean_per_block(weighted=weighted),
    )
