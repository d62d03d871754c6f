"""HSFL: each device keeps its own lower part, cut where rounds are short; one shared upper part on the server.

Split Federated Learning Over Heterogeneous Edge Devices: Algorithm and Optimization
    Yunrui Sun, Gang Hu, Yinglei Teng, Dunbo Cai. 2024. https://arxiv.org/abs/2411.13907

    the paper                                         here
    ---------------------------------------------     ------------------------------------------
    cuts of their own, latency minimised              cut_by_latency(least, spread)
    clients in parallel, client parts personal        split(), personal_below_the_cut
    server-side model trained for all                 accumulated(): stepped once a round, by everybody's gradients
    aggregation of what the server holds              the server's adapter is one; mean_per_block of one contribution

Certain (abstract): client-side models are personal, devices train in parallel at cuts of their own, and latency is
minimised over computing and transmission. Our reading: personal is the LoRA of the blocks that a device holds; the
server's adapter moves once a round on gradients weighed by what was trained, so that what is learnt depends neither on
the cuts nor on the order (server=copies gives each device a copy that is stepped and averaged, as SplitFed does); how
the planner is put together (`policies/latency_plan.py`).

With personal parts there are as many models as devices: metrics are means over the devices' own views, an evaluation
costs as much, and a run ends with an adapter for each (`adapters/NAME/`).

Neutral: server=copies.

Evidence: abstract; the server's step, what is personal and all of the planner's formulas are our reading.
"""

from __future__ import annotations

from cutlayer.errors import ConfigError
from cutlayer.methods.method import Method
from cutlayer.policies.aggregate import mean_per_block
from cutlayer.policies.cut import cut_at
from cutlayer.policies.labels import heads_for, labels_stay
from cutlayer.policies.latency_plan import cut_by_latency
from cutlayer.policies.order import fifo
from cutlayer.policies.scope import personal_below_the_cut, shared
from cutlayer.policies.select import everyone, random_fraction
from cutlayer.rounds.split import split
from cutlayer.rounds.u_shape import u_shape
from cutlayer.server.steps.accumulated import accumulated
from cutlayer.server.steps.halves import accumulated_in_halves, in_halves
from cutlayer.server.steps.one_at_a_time import a_copy_each

SERVERS = {"accumulated": accumulated, "copies": a_copy_each}


def hsfl(
    *,
    cut: int | None = None,
    least: int = 1,
    spread: float = 0.0,
    personal: bool = True,
    server: str = "accumulated",
    labels: str = "server",
    weighted: bool = True,
    fraction: float = 1.0,
) -> Method:
    """Builds HSFL.

    Args:
      cut: Blocks on every device; None chooses cuts that make a round short.
      least: With cut None, the fewest blocks that a device must be able to hold.
      spread: With cut None, how much links vary: standard deviation of the logarithm of their rates.
      personal: Whether the adapter of the blocks that a device holds stays its own.
      server: How the server's adapter moves: accumulated (once a round) or copies (as sfl_v1).
      labels: Where they are: server (they go up with the activations) or device (they stay there, with the head).
      weighted: Whether devices count by what they trained in the mean; False counts them alike.
      fraction: Of the fleet, drawn anew every round.
    """
    if server not in SERVERS:
        raise ConfigError(f"method.server: expected one of {', '.join(SERVERS)}, got {server!r}. Choose one of these.")
    return Method(
        plan=(
            everyone(),
            random_fraction(fraction),
            *heads_for(labels),
            cut_by_latency(least=least, spread=spread) if cut is None else cut_at(cut),
        ),
        round=(
            u_shape(server_step=accumulated_in_halves() if server == "accumulated" else in_halves(fifo(), copies=True))
            if labels_stay(labels)
            else split(server_step=SERVERS[server]())
        ),
        aggregate=mean_per_block(weighted=weighted),
        scope=personal_below_the_cut if personal else shared,
    )
